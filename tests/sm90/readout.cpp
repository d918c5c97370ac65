// SPDX-License-Identifier: Apache-2.0
// Runs the Hopper readout on the host machine of host_sm90.h and compares it with its definition in
// double. Arguments as name=value; prints the relative errors of the log-sum-exp and of the mean.
#include <cstdio>
#include <vector>

#include "cases.h"
#include "ops/cuda/readout_sm90.cuh"
#include "ops/cuda/readout_sm90_wide.cuh"

namespace {

using namespace fcl::ops::cuda;
using host_sm90::HostSm90;

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
  host_sm90::Cluster cluster(split.cluster, Tile::kThreads, options(given));
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
  compare(data, ours, truth, need_mean);
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  const Case given = parse(count, arguments);
  try {
    return given.whole("float16", 0) != 0 ? check<fcl::Float16>(given)
                                          : check<fcl::BFloat16>(given);
  } catch (const std::exception& error) {
    std::printf("failed: %s\n", error.what());
    return 1;
  }
}
