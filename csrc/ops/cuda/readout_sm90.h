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
  const void* rows;        // [N, D], 16-bit
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
  static constexpr bool kWide = false;
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

// For more columns, which are dealt with in halves: 64 rows, rings of half tiles, two buffers of
// weights on the way from the warpgroup that makes them to those that use them. The rows are in the
// registers of the former, of the widest ones half of the columns in shared memory.
template <typename Storage, int kHalfPanelCount, int kTileClasses, int kRingStages, bool kWantMean>
struct Sm90WideTile {
  using S = Storage;
  static constexpr bool kWide = true;
  static constexpr bool kMean = kWantMean;
  static constexpr int kHalfPanels = kHalfPanelCount;
  static constexpr int kHalfDim = kHalfPanels * fcl::sm90::kPanelColumns;
  static constexpr int kDim = 2 * kHalfDim;
  // Sums of a half in as many products as it takes to have less than 128 registers in each: what a
  // thread has when it starts decides that, not what it gets later.
  static constexpr int kParts = kHalfDim > 192 ? 2 : 1;
  static constexpr int kPartDim = kHalfDim / kParts;
  static constexpr int kRows = fcl::sm90::kProductRows;
  static constexpr int kThreads = 4 * fcl::sm90::kWarpgroup;
  static constexpr int kClasses = kTileClasses;
  static constexpr int kStages = kRingStages;
  static constexpr bool kSharedRows = kHalfDim > 192;
  static constexpr int kProducerRegisters = 24;
  static constexpr int kLogitsRegisters = kSharedRows ? 168 : 216;
  static constexpr int kSumsRegisters = kSharedRows ? 160 : 136;
  static_assert(kProducerRegisters + kLogitsRegisters + 2 * kSumsRegisters <= 512);

  static constexpr uint32_t kHalfBytes = kClasses * kHalfDim * 2;
  static constexpr uint32_t kRowsBytes = kSharedRows ? kRows * kHalfDim * 2 : 0;
  static constexpr uint32_t kWeightsBytes = kRows * fcl::sm90::kRowBytes;
  static constexpr uint32_t kWeightsAt = kRowsBytes + 2 * kStages * kHalfBytes;
  static constexpr uint32_t kKeepAt = kWeightsAt + 2 * kWeightsBytes;
  static constexpr uint32_t kMovedAt = kKeepAt + 2 * 4 * kRows;
  static constexpr uint32_t kFactorsAt = kMovedAt + 2 * 4 * 4;
  static constexpr uint32_t kBarriersAt = kFactorsAt + kStages * kClasses * 4;
  static constexpr uint32_t kSharedBytes = kBarriersAt + 8 * (4 * kStages + 5);
  static_assert(kSharedBytes <= 227 * 1024, "more than a block may have");
  // Weights are one panel wide; each block of a cluster of two loads half of the classes of a tile.
  static_assert(kClasses <= 64 && kClasses % 16 == 0 && kHalfBytes % fcl::sm90::kPatternBytes == 0);

  FCL_HOST_DEVICE static constexpr uint32_t stage(int half, int s) {
    return kRowsBytes + (2 * s + half) * kHalfBytes;
  }
  FCL_HOST_DEVICE static constexpr uint32_t weights(int b) {
    return kWeightsAt + b * kWeightsBytes;
  }
  FCL_HOST_DEVICE static constexpr uint32_t keep(int b) { return kKeepAt + b * 4 * kRows; }
  FCL_HOST_DEVICE static constexpr uint32_t moved(int b) { return kMovedAt + b * 4 * 4; }
  FCL_HOST_DEVICE static constexpr uint32_t factors(int s) { return kFactorsAt + s * kClasses * 4; }
  FCL_HOST_DEVICE static constexpr uint32_t full_barrier(int half, int s) {
    return kBarriersAt + 8 * (2 * s + half);
  }
  FCL_HOST_DEVICE static constexpr uint32_t empty_barrier(int half, int s) {
    return kBarriersAt + 8 * (2 * kStages + 2 * s + half);
  }
  FCL_HOST_DEVICE static constexpr uint32_t weights_full_barrier(int b) {
    return kBarriersAt + 8 * (4 * kStages + b);
  }
  FCL_HOST_DEVICE static constexpr uint32_t weights_empty_barrier(int b) {
    return kBarriersAt + 8 * (4 * kStages + 2 + b);
  }
  FCL_HOST_DEVICE static constexpr uint32_t rows_barrier() {
    return kBarriersAt + 8 * (4 * kStages + 4);
  }
};

inline constexpr int64_t kSm90MostColumns = 512;

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
  } else if (dim <= 256) {
    f(Sm90Tile<S, 4, 80, 4, kMean>());
  } else if (dim <= 384) {
    f(Sm90WideTile<S, 3, 48, 5, kMean>());
  } else {
    f(Sm90WideTile<S, 4, 32, 5, kMean>());
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

// The number of splits, at most `most`, that takes least time: `at_once` blocks run at a time, each
// as long as its share of `tiles` and `overhead` tiles more; `blocks` are needed for every split.
inline int64_t split_in_waves(int64_t blocks, int64_t tiles, int64_t most, int64_t at_once,
                              int64_t overhead) {
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t best = 1;
  int64_t best_time = INT64_MAX;
  for (int64_t splits = 1; splits <= most; ++splits) {
    const int64_t time =
        divide_up(blocks * splits, at_once) * (divide_up(tiles, splits) + overhead);
    if (time < best_time) {
      best = splits;
      best_time = time;
    }
  }
  return best;
}

// Blocks that share the loads of right tiles, neighbours in row tiles. An odd tile's neighbour
// would idle: worth it where that is little.
inline int sm90_cluster(int64_t row_tiles) { return row_tiles % 2 == 0 || row_tiles > 15 ? 2 : 1; }

// How a launch is cut: clusters of row tiles x splits of the classes.
struct Sm90Split {
  int cluster;        // blocks that share the loads of a class tile
  int64_t row_tiles;  // a multiple of cluster; those past the last row only take part in loads
  int splits;
  int tiles_per_split;
};

// Splits fill whole waves of the multiprocessors. A block's overhead is to fill the ring and to
// write the sums.
inline Sm90Split split_sm90(int64_t num_rows, int64_t num_classes, int rows, int classes,
                            int multiprocessors) {
  constexpr int64_t kOverhead = 4;
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  int64_t row_tiles = std::max<int64_t>(divide_up(num_rows, rows), 1);
  const int cluster = sm90_cluster(row_tiles);
  row_tiles = divide_up(row_tiles, cluster) * cluster;
  const int64_t tiles = divide_up(num_classes, classes);
  const int64_t at_once = std::max(multiprocessors / cluster * cluster, cluster);
  const int64_t most = std::min({tiles, 4 * at_once / row_tiles + 1, int64_t{65535}});
  const int64_t per_split =
      divide_up(tiles, split_in_waves(row_tiles, tiles, most, at_once, kOverhead));
  // Rounding up may leave nothing for the last ones.
  return {cluster, row_tiles, static_cast<int>(divide_up(tiles, per_split)),
          static_cast<int>(per_split)};
}

}  // namespace fcl::ops::cuda
