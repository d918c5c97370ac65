// SPDX-License-Identifier: Apache-2.0
// Problems for the Hopper kernels on the host machine: made of arguments name=value, with the
// readout by its definition in double.
#pragma once

#include <cmath>
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "host_sm90.h"

struct Case {
  std::map<std::string, std::string> given;
  double number(const std::string& name, double otherwise) const {
    const auto found = given.find(name);
    return found == given.end() ? otherwise : std::stod(found->second);
  }
  int64_t whole(const std::string& name, int64_t otherwise) const {
    return static_cast<int64_t>(number(name, static_cast<double>(otherwise)));
  }
};

struct Data {
  int64_t n, d, c, dv;
  std::vector<uint16_t> x, w, v;                  // v: values of their own, or empty
  std::vector<double> exact_x, exact_w, exact_v;  // what the 16-bit values stand for
  std::vector<int64_t> exclude;
  std::vector<float> factors;
  double scale;
};

template <typename S>
void fill(std::mt19937_64& random, int64_t rows, int64_t dim, bool vary,
          std::vector<uint16_t>& bits, std::vector<double>& exact) {
  std::normal_distribution<double> normal;
  for (int64_t i = 0; i < rows; ++i) {
    std::vector<double> row(dim);
    double norm = 0;
    for (double& v : row) {
      v = normal(random);
      norm += v * v;
    }
    norm = std::sqrt(norm) * (vary ? 0.5 + static_cast<double>(i % 7) / 4 : 1);
    for (const double v : row) {
      bits.push_back(host_sm90::bits_of<S>(static_cast<float>(v / norm)));
      exact.push_back(host_sm90::value_of(bits.back(), std::is_same_v<S, fcl::BFloat16>));
    }
  }
}

template <typename S>
Data make(const Case& given) {
  Data data{};
  data.n = given.whole("n", 200);
  data.d = given.whole("d", 64);
  data.c = given.whole("c", 1000);
  data.dv = given.whole("dv", data.d);
  data.scale = given.number("scale", 20);
  std::mt19937_64 random(given.whole("seed", 1));
  const bool has_factors = given.whole("factors", 0) != 0;
  fill<S>(random, data.n, data.d, false, data.x, data.exact_x);
  if (given.whole("nan", 0) != 0) {  // of one row
    data.x[3 * data.d] = host_sm90::bits_of<S>(NAN);
    data.exact_x[3 * data.d] = NAN;
  }
  fill<S>(random, data.c, data.d, has_factors, data.w, data.exact_w);
  if (given.given.count("dv") != 0) fill<S>(random, data.c, data.dv, false, data.v, data.exact_v);
  const auto set = [](std::vector<uint16_t>& bits, std::vector<double>& exact, int64_t at,
                      float to) {
    bits[at] = host_sm90::bits_of<S>(to);
    exact[at] = host_sm90::value_of(bits[at], std::is_same_v<S, fcl::BFloat16>);
  };
  // Logits that rise and fall by `steps`, or more, from one group of classes to the next.
  const double steps = given.number("steps", 0);
  for (int64_t j = 0; steps != 0 && j < data.c; ++j) {
    const double height = steps / data.scale * static_cast<double>(5 - j / 128 * 3 % 5);
    set(data.w, data.exact_w, j * data.d, static_cast<float>(height));
  }
  for (int64_t i = 0; steps != 0 && i < data.n; ++i) {
    set(data.x, data.exact_x, i * data.d, i % 2 == 0 ? 1 : -1);
  }
  for (int64_t i = 0; given.whole("exclude", 0) != 0 && i < data.n; ++i) {
    data.exclude.push_back(static_cast<int64_t>(random() % (data.c + 1)) - 1);
  }
  for (int64_t i = 0; has_factors && i < data.c; ++i) {
    double norm = 0;
    for (int64_t k = 0; k < data.d; ++k) norm += std::pow(data.exact_w[i * data.d + k], 2);
    data.factors.push_back(static_cast<float>(1 / std::sqrt(norm)));
  }
  return data;
}

struct Result {
  std::vector<double> lse, mean;
};

inline Result define(const Data& data) {
  Result result{std::vector<double>(data.n), std::vector<double>(data.n * data.dv)};
  std::vector<double> z(data.c);
  for (int64_t i = 0; i < data.n; ++i) {
    double top = -INFINITY;
    for (int64_t j = 0; j < data.c; ++j) {
      double dot = 0;
      for (int64_t k = 0; k < data.d; ++k) {
        dot += data.exact_x[i * data.d + k] * data.exact_w[j * data.d + k];
      }
      if (!data.factors.empty()) dot *= data.factors[j];
      z[j] = !data.exclude.empty() && data.exclude[i] == j ? -INFINITY : data.scale * dot;
      top = std::fmax(top, z[j]);
    }
    double total = 0;
    double* mean = &result.mean[i * data.dv];
    const bool own = !data.v.empty();
    const std::vector<double>& values = own ? data.exact_v : data.exact_w;
    for (int64_t j = 0; j < data.c; ++j) {
      const double e = std::isinf(top) ? 0 : std::exp(z[j] - top);
      total += e;
      const double factor = data.factors.empty() || own ? 1 : data.factors[j];
      for (int64_t k = 0; k < data.dv; ++k) mean[k] += e * factor * values[j * data.dv + k];
    }
    result.lse[i] = top + std::log(total);
    for (int64_t k = 0; k < data.dv && total > 0; ++k) mean[k] /= total;
  }
  return result;
}

// Prints the largest error of a log-sum-exp and the largest relative one of a mean.
inline void compare(const Data& data, const Result& ours, const Result& truth, bool need_mean) {
  double lse_error = 0;
  double mean_error = 0;
  for (int64_t i = 0; i < data.n; ++i) {
    if (std::isnan(truth.lse[i]) && std::isnan(ours.lse[i])) continue;
    const bool both_empty = std::isinf(truth.lse[i]) && ours.lse[i] == truth.lse[i];
    const double error = both_empty ? 0 : std::fabs(ours.lse[i] - truth.lse[i]);
    lse_error = error <= lse_error ? lse_error : error;  // keeps a NaN
    double difference = 0;
    double size = 1e-30;
    for (int64_t k = 0; need_mean && k < data.dv; ++k) {
      difference += std::pow(ours.mean[i * data.dv + k] - truth.mean[i * data.dv + k], 2);
      size += std::pow(truth.mean[i * data.dv + k], 2);
    }
    const double relative = std::sqrt(difference / size);
    mean_error = relative <= mean_error ? mean_error : relative;
  }
  std::printf("errors %.3g %.3g\n", lse_error, mean_error);
}

inline Case parse(int count, char** arguments) {
  Case given;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    const size_t equals = argument.find('=');
    given.given[argument.substr(0, equals)] = argument.substr(equals + 1);
  }
  return given;
}

inline host_sm90::Options options(const Case& given) {
  return {given.whole("late_loads", 1) != 0, given.whole("late_products", 1) != 0,
          static_cast<uint64_t>(given.whole("order", 0))};
}
