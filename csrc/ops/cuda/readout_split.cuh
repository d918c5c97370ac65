// SPDX-License-Identifier: Apache-2.0
// How the readout kernels cut their work into blocks: tiles of left rows x splits of right rows x
// panels of output columns. Depends on shapes alone.
#pragma once

#include <algorithm>

#include "common/cuda_launch.cuh"
#include "common/cuda_limits.h"
#include "common/cuda_tile.cuh"
#include "ops/cuda/softmax_readout_kernels.h"

namespace fcl::ops::cuda {

struct ReadoutSplit {
  int64_t tiles, splits, per_split, panels;

  fcl::cuda::Grid grid() const { return {tiles, splits, panels}; }
};

// `columns` right rows make a tile, `panels` blocks share one (left, right) pair.
inline ReadoutSplit split_work(int64_t left, int64_t right, int64_t columns, int64_t panels) {
  using namespace fcl::cuda;
  const int64_t tiles = divide_up(left, kTileRows);
  const int64_t blocks = std::max<int64_t>(tiles * panels, 1);
  const int64_t wanted = divide_up(kBlocks, blocks);
  const int64_t possible = divide_up(right, kFewestPerSplit);
  const int64_t splits = std::max<int64_t>(std::min(wanted, possible), 1);
  const int64_t per_split = divide_up(divide_up(right, splits), columns) * columns;
  // Rounding up may leave nothing for the last ones.
  return {tiles, std::max<int64_t>(divide_up(right, std::max<int64_t>(per_split, 1)), 1), per_split,
          panels};
}

// As many splits as keep `at_once` blocks busy in whole waves: a block takes as long as its tiles
// of right rows, and some more to begin and end.
inline ReadoutSplit split_waves(int64_t left, int64_t rows, int64_t right, int64_t columns,
                                int64_t panels, int64_t at_once) {
  using namespace fcl::cuda;
  constexpr int64_t kOverhead = 8;
  const int64_t tiles = divide_up(left, rows);
  const int64_t right_tiles = divide_up(right, columns);
  const int64_t blocks = std::max<int64_t>(tiles * panels, 1);
  const int64_t possible = divide_up(right, std::max(kFewestPerSplit, columns));
  const int64_t most = std::max<int64_t>(std::min(divide_up(4 * at_once, blocks), possible), 1);
  int64_t best = right_tiles;
  int64_t best_time = INT64_MAX;
  for (int64_t splits = 1; splits <= most; ++splits) {
    const int64_t per_split = divide_up(right_tiles, splits);
    const int64_t time = divide_up(blocks * splits, at_once) * (per_split + kOverhead);
    if (time >= best_time) continue;
    best = per_split;
    best_time = time;
  }
  best = std::max<int64_t>(best, 1);
  return {tiles, std::max<int64_t>(divide_up(right_tiles, best), 1), best * columns, panels};
}

template <typename T>
ReadoutSplit split_forward(const ReadoutProblem& p, bool need_mean) {
  using namespace fcl::cuda;
  return split_work(p.num_rows, p.num_classes, kTileColumns<T>,
                    need_mean ? divide_up(p.value_dim, kTileWidth<T>) : 1);
}

template <typename T>
ReadoutSplit split_backward(const ReadoutProblem& p, ReadoutGradient which) {
  using namespace fcl::cuda;
  const bool by_row = which == ReadoutGradient::kEmbeddings;
  const int64_t width = which == ReadoutGradient::kValues ? p.value_dim : p.dim;
  return split_work(by_row ? p.num_rows : p.num_classes, by_row ? p.num_classes : p.num_rows,
                    kTileColumns<T>, divide_up(width, kTileWidth<T>));
}

}  // namespace fcl::ops::cuda
