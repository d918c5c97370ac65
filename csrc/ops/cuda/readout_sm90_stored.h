// SPDX-License-Identifier: Apache-2.0
// Shapes of the Hopper path for sums with more columns than a block holds: one kernel stores the
// weights of a block of left rows and a chunk of right rows, a second one sums right rows by them.
// The readout has embeddings on the left and classes on the right, the gradient to prototypes the
// other way round. Free of torch and CUDA, so that the tests read the same numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "common/cuda_limits.h"
#include "ops/cuda/readout_sm90.h"

namespace fcl::ops::cuda {

// A block of either kernel: products of 128 x 256, their sums over 64 at a time, which come through
// a ring of stages. Terms are what weights need of each right row, up to three words.
template <typename Storage>
struct Sm90StoredTile {
  using S = Storage;
  static constexpr int kConsumers = 2;
  static constexpr int kRows = kConsumers * fcl::sm90::kProductRows;
  static constexpr int kColumns = 256;
  static constexpr int kDepth = fcl::sm90::kPanelColumns;
  static constexpr int kStages = 4;
  static constexpr int kThreads = (kConsumers + 1) * fcl::sm90::kWarpgroup;
  // One more than the ring has stages: tiles of a single step may all be under way.
  static constexpr int kTermBuffers = kStages + 1;
  static constexpr int kTermWords = 3;

  static constexpr uint32_t kLeftBytes = kRows * fcl::sm90::kRowBytes;
  static constexpr uint32_t kRightBytes = kColumns * fcl::sm90::kRowBytes;
  static constexpr uint32_t kStageBytes = kLeftBytes + kRightBytes;
  static constexpr uint32_t kTermsAt = kStages * kStageBytes;
  static constexpr uint32_t kTermBytes = kTermWords * kColumns * 4;
  static constexpr uint32_t kBarriersAt = kTermsAt + kTermBuffers * kTermBytes;
  static constexpr uint32_t kSharedBytes = kBarriersAt + 8 * 2 * kStages;
  static_assert(kSharedBytes <= 227 * 1024, "more than a block may have");

  FCL_HOST_DEVICE static constexpr uint32_t left(int s) { return s * kStageBytes; }
  FCL_HOST_DEVICE static constexpr uint32_t right(int s) { return left(s) + kLeftBytes; }
  FCL_HOST_DEVICE static constexpr uint32_t terms(int b) { return kTermsAt + b * kTermBytes; }
  FCL_HOST_DEVICE static constexpr uint32_t full_barrier(int s) { return kBarriersAt + 8 * s; }
  FCL_HOST_DEVICE static constexpr uint32_t empty_barrier(int s) {
    return kBarriersAt + 8 * (kStages + s);
  }
};

inline constexpr int kSm90StoredRows = Sm90StoredTile<void>::kRows;
inline constexpr int kSm90StoredColumns = Sm90StoredTile<void>::kColumns;

// Where a pair of launches works. Weights are [left_rows][columns], those past the last right row
// zero.
struct Sm90Chunk {
  int64_t left_begin, right_begin;
  int64_t left_rows;  // stored, from left_begin
  int64_t columns;
  int tiles;  // of right rows in this chunk
};

// First launch.
struct Sm90Weights {
  Sm90Chunk chunk;
  int64_t num_right;
  int steps;  // of 64 columns of left and right rows
  int tiles_per_split;
  uint16_t* weights;  // null: only sums of weights are wanted
};

// Second launch: mean [split][row][dim] (+)= factor * weights . right rows. Where weights are
// relative to references, `bases` has those of every [tile][left row], and `top` [split][row] what
// the sums are relative to.
struct Sm90StoredSums {
  Sm90Chunk chunk;
  int tiles_per_split;
  int panels;  // of 256 columns
  int64_t num_rows;
  int64_t dim;
  float factor;
  bool adds;
  const float* bases;       // or null
  const float* top_before;  // where it adds
  float* top_after;
  float* mean;
};

struct Sm90StoredLimits {
  int64_t weight_bytes = fcl::cuda::kSm90WeightBytes;
  int64_t cached_bytes = fcl::cuda::kSm90CachedBytes;
  int64_t flush = 2 * fcl::cuda::kFlush;  // terms of one float accumulator
};

struct Sm90StoredPlan {
  int cluster;
  int row_tiles;  // of a block of left rows, a multiple of cluster
  int chunk_tiles;
  int weight_splits, weight_tiles;  // of the chunk, tiles of each
  int sum_splits, sum_tiles;
  int panels;

  int64_t left_rows() const { return static_cast<int64_t>(row_tiles) * kSm90StoredRows; }
  int64_t columns() const { return static_cast<int64_t>(chunk_tiles) * kSm90StoredColumns; }
  int64_t weight_bytes() const { return left_rows() * columns() * 2; }

  // Calls f(chunk, number of the chunk, row tiles) for all pairs of launches, in order.
  template <typename F>
  void run(int64_t num_left, int64_t num_right, const F& f) const {
    const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
    for (int64_t left = 0; left < num_left; left += left_rows()) {
      const int64_t rows = std::min(left_rows(), num_left - left);
      const int64_t clusters = divide_up(rows, kSm90StoredRows * cluster);
      int number = 0;
      for (int64_t right = 0; right < num_right; right += columns()) {
        const int64_t tiles = divide_up(std::min(columns(), num_right - right), kSm90StoredColumns);
        f(Sm90Chunk{left, right, left_rows(), columns(), static_cast<int>(tiles)}, number++,
          static_cast<int>(clusters) * cluster);
      }
    }
  }
};

// `depth` columns of left and right rows, `width` of the sums; stores: there is a second launch.
struct Sm90StoredShape {
  int64_t num_left, num_right, depth, width;
  bool stores;
};

// The best plan for blocks of so many row tiles, and its time: clocks of both launches, for all of
// the work, in units that do not matter. Blocks, chunk and splits are to fill one to four waves. A
// block's overhead, in tiles, is to fill the ring, and with sums their way to memory and back.
inline std::pair<Sm90StoredPlan, double> plan_sm90_blocks(const Sm90StoredShape& shape,
                                                          int64_t row_tiles, int multiprocessors,
                                                          const Sm90StoredLimits& limits) {
  constexpr int64_t kMostWaves = 4;
  constexpr int64_t kWeightsOverhead = 1;
  constexpr int64_t kSumsOverhead = 2;
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int cluster = sm90_cluster(row_tiles);
  row_tiles = divide_up(row_tiles, cluster) * cluster;
  const int64_t at_once = std::max(multiprocessors / cluster * cluster, cluster);
  const int64_t right_tiles = std::max<int64_t>(divide_up(shape.num_right, kSm90StoredColumns), 1);
  const int64_t panels = divide_up(std::max<int64_t>(shape.width, 1), kSm90StoredColumns);
  int64_t most_tiles = right_tiles;
  if (shape.stores) {
    const int64_t row_bytes = row_tiles * kSm90StoredRows * kSm90StoredColumns * 2;
    const int64_t stored = limits.weight_bytes / row_bytes;
    const int64_t cached = limits.cached_bytes / (row_bytes + shape.depth * kSm90StoredColumns * 2);
    // Of few left rows it takes many right ones to keep all multiprocessors busy.
    const int64_t wave = divide_up(at_once, row_tiles);
    most_tiles = std::clamp<int64_t>(std::min(stored, std::max(cached, wave)), 1, right_tiles);
  }
  const auto time_of = [&](int64_t blocks, int64_t splits, int64_t tiles, int64_t overhead) {
    return divide_up(blocks * splits, at_once) * (divide_up(tiles, splits) + overhead);
  };
  Sm90StoredPlan best{};
  double best_time = std::numeric_limits<double>::infinity();
  for (int64_t waves = 1; waves <= kMostWaves; ++waves) {
    const int64_t weight_splits = std::clamp<int64_t>(at_once * waves / row_tiles, 1, most_tiles);
    // The same number of tiles for each, in all chunks but the last.
    const int64_t tiles =
        most_tiles < right_tiles ? most_tiles / weight_splits * weight_splits : most_tiles;
    for (int64_t sum_waves = 1; sum_waves <= kMostWaves; ++sum_waves) {
      const int64_t sum_splits =
          std::clamp<int64_t>(at_once * sum_waves / (row_tiles * panels), 1, tiles);
      int64_t clocks = shape.depth * time_of(row_tiles, weight_splits, tiles, kWeightsOverhead);
      if (shape.stores) {
        clocks +=
            kSm90StoredColumns * time_of(row_tiles * panels, sum_splits, tiles, kSumsOverhead);
      }
      const int64_t blocks = divide_up(shape.num_left, row_tiles * kSm90StoredRows);
      const double time = static_cast<double>(clocks) * static_cast<double>(blocks) *
                          static_cast<double>(right_tiles) / static_cast<double>(tiles);
      if (time >= best_time) continue;
      best_time = time;
      // Rounding up may leave nothing for the last splits.
      const int64_t weight_tiles = divide_up(tiles, weight_splits);
      const int64_t sum_tiles = std::min(divide_up(tiles, sum_splits),
                                         std::max<int64_t>(limits.flush / kSm90StoredColumns, 1));
      best = {cluster,
              static_cast<int>(row_tiles),
              static_cast<int>(tiles),
              static_cast<int>(divide_up(tiles, weight_tiles)),
              static_cast<int>(weight_tiles),
              static_cast<int>(divide_up(tiles, sum_tiles)),
              static_cast<int>(sum_tiles),
              static_cast<int>(panels)};
    }
  }
  return {best, best_time};
}

inline Sm90StoredPlan plan_sm90_stored(const Sm90StoredShape& shape, int multiprocessors,
                                       const Sm90StoredLimits& limits = {}) {
  const auto divide_up = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  constexpr int64_t kTileBytes = kSm90StoredRows * kSm90StoredColumns * 2;
  // Sums come from memory and go back once a chunk: worth it from so many tiles.
  constexpr int64_t kFewestTiles = 12;
  const int64_t all = std::max<int64_t>(divide_up(shape.num_left, kSm90StoredRows), 1);
  if (!shape.stores) return plan_sm90_blocks(shape, all, multiprocessors, limits).first;
  const int64_t right_tiles = std::max<int64_t>(divide_up(shape.num_right, kSm90StoredColumns), 1);
  const int64_t fitting = limits.weight_bytes / (std::min(right_tiles, kFewestTiles) * kTileBytes);
  const int64_t most = std::max<int64_t>(fitting / 2 * 2, 1);
  auto best =
      plan_sm90_blocks(shape, divide_up(all, divide_up(all, most)), multiprocessors, limits);
  // Or as many rows as fill a wave with their panels of columns.
  const int64_t panels = divide_up(std::max<int64_t>(shape.width, 1), kSm90StoredColumns);
  const int64_t wave = multiprocessors / panels / 2 * 2;
  if (wave > 0 && wave < all && 2 * wave * kTileBytes <= limits.weight_bytes) {
    const auto other = plan_sm90_blocks(shape, wave, multiprocessors, limits);
    if (other.second < best.second) best = other;
  }
  return best.first;
}

}  // namespace fcl::ops::cuda
