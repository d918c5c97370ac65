// SPDX-License-Identifier: Apache-2.0
// Shapes of the Hopper path of softmax_readout: tiles, shared memory, how classes are split over
// the multiprocessors. Free of torch and CUDA, so that the tests read the same numbers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/cuda_limits.h"
#include "common/sm90_layout.h"

namespace fcl::ops::cuda {

// One launch. Sums and maxima are indexed [split][row], means [split][row][column].
struct Sm90Readout {
  const int64_t* exclude;  // [N] or null
  const float* factors;    // [C] or null: multiplies a class row, in logits and in the mean
  int64_t num_rows, num_classes;
  int dim;
  int tiles_per_split;
  int flush_tiles;   // tiles of classes that one float accumulator may see
  float scale;       // to base-2 logits
  bool fixed_shift;  // `shift` takes the place of the running maximum
  float shift;       // in base-2 logits
  float* max;
  double* sum;
  float* mean;  // null if only the log-sum-exp is wanted
};

// Shared memory of a block: the tile of rows, a ring of tiles of classes with the factors of each,
// and the barriers. 128 rows, 64 for each of two consumer warpgroups.
template <typename Storage, int kPanelCount, int kTileClasses, int kRingStages, bool kWantMean>
struct Sm90Tile {
  using S = Storage;
  static constexpr bool kMean = kWantMean;
  static constexpr int kPanels = kPanelCount;
  static constexpr int kDim = kPanels * fcl::sm90::kPanelColumns;
  static constexpr int kConsumers = 2;
  static constexpr int kRows = kConsumers * fcl::sm90::kProductRows;
  static constexpr int kThreads = (kConsumers + 1) * fcl::sm90::kWarpgroup;
  static constexpr int kClasses = kTileClasses;
  static constexpr int kStages = kRingStages;
  // Consumers alternate between products and exponentials where the latter take as long.
  static constexpr bool kTakeTurns = kDim <= 128;

  static constexpr uint32_t kRowsBytes = kRows * kDim * 2;
  static constexpr uint32_t kStageBytes = kClasses * kDim * 2;
  static constexpr uint32_t kStagesAt = kRowsBytes;
  static constexpr uint32_t kFactorsAt = kStagesAt + kStages * kStageBytes;
  static constexpr uint32_t kBarriersAt = kFactorsAt + kStages * kClasses * 4;
  static constexpr uint32_t kSharedBytes = kBarriersAt + 8 * (1 + 2 * kStages);
  static_assert(kSharedBytes <= 227 * 1024, "more than a block may have");
  // Each block of a cluster of two loads half of the classes of a tile.
  static_assert(kClasses % 16 == 0 && kStageBytes % fcl::sm90::kPatternBytes == 0);

  FCL_HOST_DEVICE static constexpr uint32_t stage(int s) { return kStagesAt + s * kStageBytes; }
  FCL_HOST_DEVICE static constexpr uint32_t factors(int s) { return kFactorsAt + s * kClasses * 4; }
  FCL_HOST_DEVICE static constexpr uint32_t rows_barrier() { return kBarriersAt; }
  FCL_HOST_DEVICE static constexpr uint32_t full_barrier(int s) {
    return kBarriersAt + 8 * (1 + s);
  }
  FCL_HOST_DEVICE static constexpr uint32_t empty_barrier(int s) {
    return kBarriersAt + 8 * (1 + kStages + s);
  }
};

// Calls f with the tile for a width. Shared memory holds the rows and as many class tiles as fit;
// 80 classes at 256 columns leave the accumulators room for what else a thread needs.
template <typename S, bool kMean, typename F>
void with_sm90_tile(int64_t dim, const F& f) {
  if (dim <= 64) {
    f(Sm90Tile<S, 1, 128, 8, kMean>());
  } else if (dim <= 128) {
    f(Sm90Tile<S, 2, 128, 5, kMean>());
  } else if (dim <= 192) {
    f(Sm90Tile<S, 3, 96, 4, kMean>());
  } else {
    f(Sm90Tile<S, 4, 80, 4, kMean>());
  }
}
template <typename S, typename F>
void with_sm90_tile(int64_t dim, bool need_mean, const F& f) {
  if (need_mean) {
    with_sm90_tile<S, true>(dim, f);
  } else {
    with_sm90_tile<S, false>(dim, f);
  }
}

// How a launch is cut: clusters of row tiles x splits of the classes.
struct Sm90Split {
  int cluster;        // blocks that share the loads of a class tile, neighbours in row tiles
  int64_t row_tiles;  // a multiple of cluster; those past the last row only take part in loads
  int splits;
  int tiles_per_split;
};

// Splits fill whole waves of the multiprocessors: `multiprocessors` blocks run at a time, each as
// long as its tiles and kOverhead more (filling the ring, writing the sums).
inline Sm90Split split_sm90(int64_t num_rows, int64_t num_classes, int rows, int classes,
                            int multiprocessors) {
  constexpr int64_t kOverhead = 4;
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t row_tiles = std::max<int64_t>(divide_up(num_rows, rows), 1);
  // An odd tile's neighbour would idle: worth it where that is little.
  const int cluster = row_tiles % 2 == 0 || row_tiles > 15 ? 2 : 1;
  row_tiles = divide_up(row_tiles, cluster) * cluster;
  const int64_t tiles = divide_up(num_classes, classes);
  const int64_t at_once = std::max(multiprocessors / cluster * cluster, cluster);
  const int64_t most = std::min({tiles, 4 * at_once / row_tiles + 1, int64_t{65535}});
  int64_t best = 1;
  int64_t best_time = INT64_MAX;
  for (int64_t splits = 1; splits <= most; ++splits) {
    const int64_t time =
        divide_up(row_tiles * splits, at_once) * (divide_up(tiles, splits) + kOverhead);
    if (time < best_time) {
      best = splits;
      best_time = time;
    }
  }
  const int64_t per_split = divide_up(tiles, best);
  // Rounding up may leave nothing for the last ones.
  return {cluster, row_tiles, static_cast<int>(divide_up(tiles, per_split)),
          static_cast<int>(per_split)};
}

}  // namespace fcl::ops::cuda
