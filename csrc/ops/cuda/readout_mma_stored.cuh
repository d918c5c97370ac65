// SPDX-License-Identifier: Apache-2.0
// Sums with more columns than a block can hold: one kernel stores the weights of a chunk of right
// rows, a second one sums rows by them, so that no product is computed twice. The chunk is small
// enough to stay in the second-level cache.
#pragma once

#include "common/mma_product.cuh"
#include "ops/cuda/readout_mma_feed.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

// Weights [split][rows][columns], as left operands of the second kernel. Where bases of exponents
// move, `keep` [split][tile][rows] has the factors that earlier sums are to be multiplied by.
template <typename S>
struct StoredWeights {
  S* at;
  float* keep;  // or null
  int rows, columns, tiles;

  // Row of the stored ones that accumulator i of this lane is in.
  __device__ __forceinline__ static int local_row(int i) {
    const int warp = static_cast<int>(threadIdx.x) / kWarp;
    return static_cast<int>(blockIdx.x) * kMmaRows + warp * 16 + accumulator_row(i);
  }

  template <int kTiles>
  __device__ __forceinline__ void store(const float (&w)[kTiles][4], int first) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      S* to = at + (static_cast<int64_t>(blockIdx.y) * rows + local_row(2 * h)) * columns + first +
              accumulator_column(0);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        if constexpr (sizeof(S) == 4) {
          to[8 * n] = w[n][2 * h];
          to[8 * n + 1] = w[n][2 * h + 1];
        } else {
          *reinterpret_cast<uint32_t*>(to + 8 * n) = pack_pair<S>(w[n][2 * h], w[n][2 * h + 1]);
        }
      }
    }
  }
  __device__ __forceinline__ float* keep_of(int tile, int h) const {
    return keep + (static_cast<int64_t>(blockIdx.y) * tiles + tile) * rows + local_row(2 * h);
  }
  __device__ __forceinline__ void store_keep(const float (&factors)[2], int tile) const {
    if (warp_lane() % 4 != 0) return;
    *keep_of(tile, 0) = factors[0];
    *keep_of(tile, 1) = factors[1];
  }
};

// out [split][left][width] (+)= factor * weights . rows of `summed`.
struct StoredSum {
  float* out;
  int64_t num_left, width;
  float factor;
  bool adds;
};

// A tile of weights is one panel, its right rows follow in panels of columns.
template <class Shape>
struct WeightFeed {
  using S = typename Shape::S;
  static_assert(Shape::kRights == kPanelColumns<S>);
  static constexpr int kStages = 4;
  static constexpr int kStageBytes = kMmaRowPanelBytes + Shape::kPanelBytes;
  static constexpr int kSharedBytes = kStages * kStageBytes;

  const MmaTask<S>& task;
  int count;   // right rows
  int panels;  // of columns
  int right = 0;
  int panel = 0;
  uint32_t load = 0;
  uint32_t taken = 0;

  __device__ __forceinline__ explicit WeightFeed(const MmaTask<S>& task)
      : task(task), count(task.count()), panels(task.template panels<Shape::kWidth>(2)) {
#pragma unroll 1
    for (int i = 0; i < kStages - 1; ++i) start();
  }

  __device__ __forceinline__ PanelPair next() {
    wait_copies<kStages - 2>();
    __syncthreads();  // all threads' copies are there, the panel before has been read
    start();
    const uint32_t at = shared_base() + taken;
    advance(taken);
    return {at, at + kMmaRowPanelBytes};
  }

 private:
  __device__ __forceinline__ static void advance(uint32_t& at) {
    at += kStageBytes;
    if (at == kStages * kStageBytes) at = 0;
  }

  __device__ __forceinline__ void start() {
    if (right < count) {
      const uint32_t to = shared_base() + load;
      if (panel == 0) {
        const int64_t row = blockIdx.y * (task.left[0].rows / gridDim.y) +
                            static_cast<int64_t>(blockIdx.x) * kMmaRows;
        copy_panel<kMmaRows, kMmaThreads>(to, task.left[0], row, right);
      }
      copy_panel<Shape::kRights, kMmaThreads>(
          to + kMmaRowPanelBytes, task.summed, task.first() + right,
          static_cast<int64_t>(blockIdx.z) * Shape::kWidth + panel * kPanelColumns<S>);
      if (++panel == panels) {
        panel = 0;
        right += Shape::kRights;
      }
      advance(load);
    }
    commit_copies();
  }
};

// task.left[0] are the weights, all splits below one another.
template <class Shape>
__global__ void __launch_bounds__(kMmaThreads, 1)
    mma_stored_sum_kernel(MmaTask<typename Shape::S> task, StoredWeights<typename Shape::S> stored,
                          StoredSum sum) {
  using S = typename Shape::S;
  using Product = PanelProduct<S>;
  const int warp = threadIdx.x / kWarp;
  WeightFeed<Shape> feed(task);
  float sums[Shape::kWidth / 8][4];
  clear(sums);
  float carried[2] = {1, 1};
  float keep[2] = {1, 1};  // of the next tile
  const auto load_keep = [&](int tile) {
    if (stored.keep == nullptr || tile * Shape::kRights >= feed.count) return;
    keep[0] = *stored.keep_of(tile, 0);
    keep[1] = *stored.keep_of(tile, 1);
  };
  load_keep(0);
  for (int right = 0; right < feed.count; right += Shape::kRights) {
    if (keep[0] != 1.0f || keep[1] != 1.0f) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        carried[h] *= keep[h];
#pragma unroll
        for (int n = 0; n < Shape::kWidth / 8; ++n) {
          sums[n][2 * h] *= keep[h];
          sums[n][2 * h + 1] *= keep[h];
        }
      }
    }
    load_keep(right / Shape::kRights + 1);
    typename Product::template Weights<Shape::kTiles> weights;
#pragma unroll
    for (int i = 0; i < Shape::kWidth / kPanelColumns<S>; ++i) {
      if (i >= feed.panels) break;
      const PanelPair at = feed.next();
      if (i == 0) weights.load(at.left + warp * 16 * kPanelBytes);
      Product::columns(sums, i * kPanelColumns<S> / 8, weights, at.right);
    }
  }
  if (feed.count <= 0) return;
  const int64_t first_column = static_cast<int64_t>(blockIdx.z) * Shape::kWidth;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t at = task.left_row() + warp * 16 + accumulator_row(2 * h);
    if (at >= sum.num_left) continue;
    float* to = sum.out + (blockIdx.y * sum.num_left + at) * sum.width;
#pragma unroll
    for (int n = 0; n < Shape::kWidth / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int64_t column = first_column + n * 8 + accumulator_column(i);
        if (column >= sum.width) continue;
        const float before = sum.adds ? to[column] * carried[h] : 0.0f;
        to[column] = fmaf(sums[n][2 * h + i], sum.factor, before);
      }
    }
  }
}

}  // namespace
}  // namespace fcl::ops::cuda
