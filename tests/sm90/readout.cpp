// SPDX-License-Identifier: Apache-2.0
// Runs the Hopper readout on the host machine of host_sm90.h and compares it with its definition in
// double. Arguments as name=value; prints the relative errors of the log-sum-exp and of the mean.
#include <cstdio>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "host_sm90.h"
#include "ops/cuda/readout_sm90.cuh"
#include "ops/cuda/readout_sm90_wide.cuh"

namespace {

using namespace fcl::ops::cuda;
using host_sm90::HostSm90;

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
  int64_t n, d, c;
  std::vector<uint16_t> x, w;
  std::vector<double> exact_x, exact_w;  // what the 16-bit values stand for
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
  Data data{given.whole("n", 200),
            given.whole("d", 64),
            given.whole("c", 1000),
            {},
            {},
            {},
            {},
            {},
            {},
            given.number("scale", 20)};
  std::mt19937_64 random(given.whole("seed", 1));
  const bool has_factors = given.whole("factors", 0) != 0;
  fill<S>(random, data.n, data.d, false, data.x, data.exact_x);
  if (given.whole("nan", 0) != 0) {  // of one row
    data.x[3 * data.d] = host_sm90::bits_of<S>(NAN);
    data.exact_x[3 * data.d] = NAN;
  }
  fill<S>(random, data.c, data.d, has_factors, data.w, data.exact_w);
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

Result define(const Data& data) {
  Result result{std::vector<double>(data.n), std::vector<double>(data.n * data.d)};
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
    double* mean = &result.mean[i * data.d];
    for (int64_t j = 0; j < data.c; ++j) {
      const double e = std::isinf(top) ? 0 : std::exp(z[j] - top);
      total += e;
      const double factor = data.factors.empty() ? 1 : data.factors[j];
      for (int64_t k = 0; k < data.d; ++k) mean[k] += e * factor * data.exact_w[j * data.d + k];
    }
    result.lse[i] = top + std::log(total);
    for (int64_t k = 0; k < data.d && total > 0; ++k) mean[k] /= total;
  }
  return result;
}

// What the launcher and the combine kernel do, on the host machine.
template <class Tile, bool kFactors>
Result emulate(const Case& given, const Data& data) {
  const Sm90Split split = split_sm90(data.n, data.c, Tile::kRows, Tile::kClasses,
                                     static_cast<int>(given.whole("multiprocessors", 4)));
  std::vector<float> max(split.splits * data.n, NAN);
  std::vector<double> sum(split.splits * data.n, NAN);
  std::vector<float> mean(split.splits * data.n * data.d, NAN);
  Sm90Readout task = {};
  task.rows = data.x.data();
  task.exclude = data.exclude.empty() ? nullptr : data.exclude.data();
  task.factors = data.factors.empty() ? nullptr : data.factors.data();
  task.num_rows = data.n;
  task.num_classes = data.c;
  task.dim = static_cast<int>(data.d);
  task.tiles_per_split = split.tiles_per_split;
  task.flush_tiles = static_cast<int>(given.whole("flush_tiles", 3));
  task.scale = static_cast<float>(data.scale * 1.4426950408889634);
  task.fixed_shift = given.given.count("shift") != 0;
  task.shift = static_cast<float>(given.number("shift", 0) * 1.4426950408889634);
  task.max = max.data();
  task.sum = sum.data();
  task.mean = Tile::kMean ? mean.data() : nullptr;
  const host_sm90::Matrix rows{data.x.data(), data.n, data.d, Tile::kRows};
  const host_sm90::Matrix classes{data.w.data(), data.c, data.d, Tile::kClasses / split.cluster};
  using Block = std::conditional_t<Tile::kWide, ReadoutWideBlock<HostSm90, Tile, kFactors>,
                                   ReadoutBlock<HostSm90, Tile, kFactors>>;
  host_sm90::Cluster cluster(
      split.cluster, Tile::kThreads,
      {given.whole("late_loads", 1) != 0, given.whole("late_products", 1) != 0,
       static_cast<uint64_t>(given.whole("order", 0))});
  for (int64_t x = 0; x < split.row_tiles; x += split.cluster) {
    for (int y = 0; y < split.splits; ++y) {
      cluster.run(static_cast<int>(x), y, [&] { Block(&rows, &classes, task).run(); });
    }
  }
  std::printf("cluster %d, row tiles %d, splits %d of %d tiles: ", split.cluster,
              static_cast<int>(split.row_tiles), split.splits, split.tiles_per_split);
  Result result{std::vector<double>(data.n), std::vector<double>(data.n * data.d)};
  for (int64_t i = 0; i < data.n; ++i) {
    double top = -INFINITY;
    for (int s = 0; s < split.splits; ++s) top = std::fmax(top, max[s * data.n + i]);
    const double base = std::isinf(top) ? 0 : top;
    double total = 0;
    for (int s = 0; s < split.splits; ++s) {
      total += sum[s * data.n + i] * std::exp2(max[s * data.n + i] - base);
    }
    result.lse[i] = (base + std::log2(total)) * 0.6931471805599453;
    for (int s = 0; s < split.splits && Tile::kMean && total != 0; ++s) {
      const double weight = std::exp2(max[s * data.n + i] - base) / total;
      for (int64_t k = 0; k < data.d; ++k) {
        result.mean[i * data.d + k] += weight * mean[(s * data.n + i) * data.d + k];
      }
    }
  }
  return result;
}

template <typename S>
int check(const Case& given) {
  const Data data = make<S>(given);
  const Result truth = define(data);
  const bool need_mean = given.whole("mean", 1) != 0;
  Result ours;
  with_sm90_tile<S>(data.d, need_mean, [&](auto tile) {
    using Tile = decltype(tile);
    ours =
        data.factors.empty() ? emulate<Tile, false>(given, data) : emulate<Tile, true>(given, data);
  });
  double lse_error = 0;
  double mean_error = 0;
  for (int64_t i = 0; i < data.n; ++i) {
    if (std::isnan(truth.lse[i]) && std::isnan(ours.lse[i])) continue;
    const bool both_empty = std::isinf(truth.lse[i]) && ours.lse[i] == truth.lse[i];
    const double error = both_empty ? 0 : std::fabs(ours.lse[i] - truth.lse[i]);
    lse_error = error <= lse_error ? lse_error : error;  // keeps a NaN
    double difference = 0;
    double size = 1e-30;
    for (int64_t k = 0; need_mean && k < data.d; ++k) {
      difference += std::pow(ours.mean[i * data.d + k] - truth.mean[i * data.d + k], 2);
      size += std::pow(truth.mean[i * data.d + k], 2);
    }
    const double relative = std::sqrt(difference / size);
    mean_error = relative <= mean_error ? mean_error : relative;
  }
  std::printf("errors %.3g %.3g\n", lse_error, mean_error);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  Case given;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    const size_t equals = argument.find('=');
    given.given[argument.substr(0, equals)] = argument.substr(equals + 1);
  }
  try {
    return given.whole("float16", 0) != 0 ? check<fcl::Float16>(given)
                                          : check<fcl::BFloat16>(given);
  } catch (const std::exception& error) {
    std::printf("failed: %s\n", error.what());
    return 1;
  }
}
