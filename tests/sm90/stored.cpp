// SPDX-License-Identifier: Apache-2.0
// Runs the Hopper kernels with stored weights on the host machine of host_sm90.h: the readout, or
// with gradient=1 its gradient to prototypes. Arguments as name=value; prints relative errors
// against the definition in double.
#include <cstdio>
#include <vector>

#include "cases.h"
#include "ops/cuda/readout_sm90_sums.cuh"
#include "ops/cuda/readout_sm90_weighers.cuh"
#include "ops/cuda/readout_sm90_weights.cuh"

namespace {

using namespace fcl::ops::cuda;
using host_sm90::HostSm90;
using host_sm90::Matrix;

constexpr double kLog2E = 1.4426950408889634;

Sm90StoredPlan plan_of(const Case& given, int64_t left, int64_t right, int64_t depth, int64_t width,
                       bool stores) {
  Sm90StoredLimits limits;
  limits.weight_bytes = given.whole("weight_kib", 24 << 10) << 10;
  limits.cached_bytes = given.whole("cached_kib", 32 << 10) << 10;
  limits.flush = given.whole("flush", 512);
  const Sm90StoredPlan plan =
      plan_sm90_stored({left, right, depth, width, stores},
                       static_cast<int>(given.whole("multiprocessors", 4)), limits);
  std::printf("cluster %d, blocks of %d row tiles, chunks of %d tiles: %d x %d, %d x %d: ",
              plan.cluster, plan.row_tiles, plan.chunk_tiles, plan.weight_splits, plan.weight_tiles,
              plan.sum_splits, plan.sum_tiles);
  return plan;
}

// A launch: clusters along x.
template <typename F>
void launch(const Case& given, int cluster, int x_blocks, int y_blocks, const F& block) {
  host_sm90::Cluster machine(cluster, Sm90StoredTile<void>::kThreads, options(given));
  for (int x = 0; x < x_blocks; x += cluster) {
    for (int y = 0; y < y_blocks; ++y) machine.run(x, y, block);
  }
}

// What the launcher does. `summed` are the rows that the second product takes.
template <class Weigher>
struct Runner {
  using Tile = typename Weigher::Tile;

  const Case& given;
  const Sm90StoredPlan& plan;
  const Matrix left, right, summed;
  std::vector<uint16_t> weights;

  Runner(const Case& given, const Sm90StoredPlan& plan, Matrix left, Matrix right, Matrix summed)
      : given(given),
        plan(plan),
        left{left.data, left.rows, left.columns, Tile::kRows},
        right{right.data, right.rows, right.columns, Tile::kColumns / plan.cluster},
        summed{summed.data, summed.rows, summed.columns, Tile::kDepth / plan.cluster},
        weights(Weigher::kStores ? plan.weight_bytes() / 2 : 0, 0x7fff) {}

  void weigh(const Sm90Chunk& chunk, int row_tiles, const typename Weigher::Task& task) {
    const Sm90Weights p{chunk, right.rows, static_cast<int>((left.columns + 63) / 64),
                        plan.weight_tiles, weights.data()};
    launch(given, plan.cluster, row_tiles, plan.weight_splits,
           [&] { WeightsBlock<HostSm90, Weigher>{&left, &right, p, task}.run(); });
  }

  void sum(const Sm90Chunk& chunk, int row_tiles, Sm90StoredSums p) {
    p.chunk = chunk;
    p.tiles_per_split = plan.sum_tiles;
    p.panels = plan.panels;
    p.num_rows = left.rows;
    p.dim = summed.columns;
    const Matrix stored{weights.data(), chunk.left_rows, chunk.columns, Tile::kRows};
    launch(given, plan.cluster, row_tiles, plan.sum_splits * plan.panels,
           [&] { SumsBlock<HostSm90, typename Tile::S>{&stored, &summed, p}.run(); });
  }
};

template <typename S, bool kFactors, bool kStores>
Result emulate_readout(const Case& given, const Data& data) {
  const Sm90StoredPlan plan = plan_of(given, data.n, data.c, data.d, data.dv, kStores);
  std::vector<float> max(2 * plan.weight_splits * data.n, NAN);
  std::vector<double> sum(plan.weight_splits * data.n, NAN);
  std::vector<float> top(2 * plan.sum_splits * data.n, NAN);
  std::vector<float> bases(plan.chunk_tiles * plan.left_rows(), NAN);
  std::vector<float> mean(plan.sum_splits * data.n * data.dv, NAN);
  const auto half = [](std::vector<float>& both, int number) {
    return both.data() + number % 2 * (both.size() / 2);
  };
  const bool own = !data.v.empty();
  Runner<ReadoutWeigher<HostSm90, S, kFactors, kStores>> runner(
      given, plan, {data.x.data(), data.n, data.d, 0}, {data.w.data(), data.c, data.d, 0},
      {own ? data.v.data() : data.w.data(), data.c, data.dv, 0});
  int last = 0;
  plan.run(data.n, data.c, [&](const Sm90Chunk& chunk, int number, int row_tiles) {
    Sm90StoredReadout task = {};
    task.readout.exclude = data.exclude.empty() ? nullptr : data.exclude.data();
    task.readout.factors = data.factors.empty() ? nullptr : data.factors.data();
    task.readout.num_rows = data.n;
    task.readout.num_classes = data.c;
    task.readout.scale = static_cast<float>(data.scale * kLog2E);
    task.readout.max = half(max, number);
    task.readout.sum = sum.data();
    task.max_before = number == 0 ? nullptr : half(max, number + 1);
    task.splits = plan.weight_splits;
    task.scale_weights = !own;
    task.bases = bases.data();
    runner.weigh(chunk, row_tiles, task);
    last = number;
    if constexpr (kStores) {
      Sm90StoredSums sums = {};
      sums.factor = 1;
      sums.adds = number > 0;
      sums.bases = bases.data();
      sums.top_before = half(top, number + 1);
      sums.top_after = half(top, number);
      sums.mean = mean.data();
      runner.sum(chunk, row_tiles, sums);
    }
  });
  // The combine kernel's part.
  Result result{std::vector<double>(data.n), std::vector<double>(data.n * data.dv)};
  for (int64_t i = 0; i < data.n; ++i) {
    double highest = -INFINITY;
    const auto at = [&](int s) { return s * data.n + i; };
    for (int s = 0; s < plan.weight_splits; ++s) {
      highest = std::fmax(highest, half(max, last)[at(s)]);
    }
    const double base = std::isinf(highest) ? 0 : highest;
    double total = 0;
    for (int s = 0; s < plan.weight_splits; ++s) {
      total += sum[at(s)] * std::exp2(half(max, last)[at(s)] - base);
    }
    result.lse[i] = (base + std::log2(total)) * 0.6931471805599453;
    for (int s = 0; s < plan.sum_splits && kStores && total != 0; ++s) {
      const double weight = std::exp2(half(top, last)[at(s)] - base) / total;
      for (int64_t k = 0; k < data.dv; ++k) {
        result.mean[i * data.dv + k] += weight * mean[at(s) * data.dv + k];
      }
    }
  }
  return result;
}

template <typename S>
int check_readout(const Case& given) {
  const Data data = make<S>(given);
  const Result truth = define(data);
  const bool factors = !data.factors.empty();
  const bool need_mean = given.whole("mean", 1) != 0;
  const auto emulate =
      need_mean ? (factors ? emulate_readout<S, true, true> : emulate_readout<S, false, true>)
                : (factors ? emulate_readout<S, true, false> : emulate_readout<S, false, false>);
  compare(data, emulate(given, data), truth, need_mean);
  return 0;
}

// Gradient of sum_i coefficient_i logsumexp_i to the classes' rows (times their factors).
int check_gradient(const Case& given) {
  const Data data = make<fcl::BFloat16>(given);
  const Result readout = define(data);
  const auto factor_of = [&](int64_t j) { return data.factors.empty() ? 1.0f : data.factors[j]; };
  std::vector<float> logsumexp(readout.lse.begin(), readout.lse.end());
  std::vector<float> coefficient(data.n);
  for (int64_t i = 0; i < data.n; ++i) coefficient[i] = static_cast<float>(i % 5) - 1.75f;
  std::vector<double> truth(data.c * data.d);
  for (int64_t i = 0; i < data.n; ++i) {
    for (int64_t j = 0; j < data.c; ++j) {
      if (!data.exclude.empty() && data.exclude[i] == j) continue;
      double dot = 0;
      for (int64_t k = 0; k < data.d; ++k) {
        dot += data.exact_x[i * data.d + k] * data.exact_w[j * data.d + k];
      }
      const double weight =
          std::exp(data.scale * factor_of(j) * dot - readout.lse[i]) * coefficient[i];
      for (int64_t k = 0; k < data.d; ++k) {
        truth[j * data.d + k] += data.scale * weight * data.exact_x[i * data.d + k];
      }
    }
  }
  const Sm90StoredPlan plan = plan_of(given, data.c, data.n, data.d, data.d, true);
  const bool accumulate = given.whole("accumulate", 0) != 0;
  std::vector<float> grad(plan.sum_splits * data.c * data.d, accumulate ? 0.5f : NAN);
  const Sm90StoredGradient task{logsumexp.data(),
                                coefficient.data(),
                                data.exclude.empty() ? nullptr : data.exclude.data(),
                                data.factors.empty() ? nullptr : data.factors.data(),
                                data.n,
                                data.c,
                                static_cast<float>(data.scale * kLog2E)};
  const Matrix rows{data.x.data(), data.n, data.d, 0};
  Runner<GradientWeigher<HostSm90, fcl::BFloat16>> runner(
      given, plan, {data.w.data(), data.c, data.d, 0}, rows, rows);
  plan.run(data.c, data.n, [&](const Sm90Chunk& chunk, int number, int row_tiles) {
    runner.weigh(chunk, row_tiles, task);
    Sm90StoredSums sums = {};
    sums.factor = static_cast<float>(data.scale);
    sums.adds = number > 0 || accumulate;
    sums.mean = grad.data();
    runner.sum(chunk, row_tiles, sums);
  });
  double difference = 0;
  double size = 0;
  for (int64_t i = 0; i < data.c * data.d; ++i) {
    double got = accumulate ? -0.5 * plan.sum_splits : 0;
    for (int s = 0; s < plan.sum_splits; ++s) got += grad[s * data.c * data.d + i];
    difference += std::pow(got - truth[i], 2);
    size += std::pow(truth[i], 2);
  }
  std::printf("errors 0 %.3g\n", std::sqrt(difference / size));
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const Case given = parse(count, arguments);
  try {
    if (given.whole("gradient", 0) != 0) return check_gradient(given);
    return given.whole("float16", 0) != 0 ? check_readout<fcl::Float16>(given)
                                          : check_readout<fcl::BFloat16>(given);
  } catch (const std::exception& error) {
    std::printf("failed: %s\n", error.what());
    return 1;
  }
}
