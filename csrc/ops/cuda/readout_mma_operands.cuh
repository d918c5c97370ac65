// SPDX-License-Identifier: Apache-2.0
// What the host code of the tensor core path shares: operands of a launch, dtypes.
#pragma once

#include "common/cuda_vector.cuh"
#include "ops/cuda/readout_mma.cuh"
#include "ops/cuda/readout_split.cuh"

namespace fcl::ops::cuda {
namespace {

template <typename S>
Matrix<S> matrix(const void* data, int64_t rows, int64_t columns) {
  return {static_cast<const S*>(data), rows, columns, rows_are_wide<S>(columns, {data})};
}

inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// How a launch with stored weights is cut: blocks of left rows, splits of the right rows, and of
// each split chunks whose weights fit kWeightBytes.
struct ChunkPlan {
  ReadoutSplit split;
  int64_t left_rows;  // of a block, a multiple of kMmaRows
  int chunk;          // right rows of a split at a time, a multiple of a tile
  int tiles;          // of a chunk

  ChunkPlan(int64_t left, int64_t right, int rights, int element_bytes, int64_t at_once) {
    const int64_t most = std::max<int64_t>(
        kWeightBytes / (kFewestStored * element_bytes) / kMmaRows * kMmaRows, kMmaRows);
    const int64_t wave = at_once * kMmaRows;
    const int64_t blocks = divide_up(left, most);
    left_rows = round_up(divide_up(left, blocks), kMmaRows);
    // Many blocks: whole waves.
    if (blocks >= 4 && most >= wave) left_rows = most / wave * wave;
    split = split_waves(std::min(left_rows, left), kMmaRows, right, rights, 1, at_once);
    const int64_t columns = kWeightBytes / (left_rows * split.splits * element_bytes);
    const int64_t bound = std::min({columns, kFlush, split.per_split});
    chunk = static_cast<int>(std::max<int64_t>(bound / rights, 1) * rights);
    tiles = chunk / rights;
  }

  int64_t weights() const { return split.splits * left_rows * chunk; }
  int64_t keeps() const { return split.splits * left_rows * tiles; }

  // Calls f(grid, first left row, first right row of each split) for all parts, in order.
  template <typename F>
  void run(int64_t left, const F& f) const {
    for (int64_t begin = 0; begin < left; begin += left_rows) {
      const int64_t rows = std::min(left_rows, left - begin);
      const Grid grid{divide_up(rows, kMmaRows), split.splits};
      for (int64_t at = 0; at < split.per_split; at += chunk) f(grid, begin, static_cast<int>(at));
    }
  }
};

// Indices within a split are 32-bit.
inline bool has_mma_kernels(const ReadoutProblem& p) {
  const int64_t most = INT32_MAX / 2;
  return p.dtype != Dtype::kFloat64 && p.num_rows < most && p.num_classes < most;
}

// Calls f with the Tag of a storage type that has tensor core products.
template <typename F>
void dispatch_mma(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(Tag<float>{});
    case Dtype::kBfloat16:
      return f(Tag<BFloat16>{});
    case Dtype::kFloat16:
      return f(Tag<Float16>{});
    case Dtype::kFloat64:
      return;
  }
}

}  // namespace
}  // namespace fcl::ops::cuda
