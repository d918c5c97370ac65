// SPDX-License-Identifier: Apache-2.0
// Online softmax on a warp's accumulators: tiles of products become weights 2^(logit - base) of the
// classes. A lane has two rows of each 16, which it shares with the three others of its quad.
#pragma once

#include <type_traits>

#include "ops/cuda/readout_mma.cuh"
#include "ops/cuda/softmax_readout_kernels.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

// The base follows the running maximum: at once for half types, whose weight of a class that
// outweighs all others is then 1 and free of rounding; lazily for float, sums being rescaled only
// once a logit exceeds the base by kSlack (in powers of two). float16 weights get headroom above
// its subnormals; not where classes have factors, which may be large.
template <typename S>
struct WeightRange {
  static constexpr bool kNarrow = std::is_same_v<S, Float16>;
  static constexpr float kSlack = sizeof(S) == 4 ? 8 : 0;
  static constexpr float kHeadroom = kNarrow ? 11 : 0;
  static constexpr float kLargest = 65504;  // float16's
};

template <typename S, int kTiles>
struct OnlineSoftmax {
  using Tile = float[kTiles][4];

  float base[2];    // -inf before the first class
  double sum[2];    // of this lane's columns
  float keep[2];    // what the last step multiplied earlier sums by
  int excluded[2];  // class, from the split's first one; -1: none

  // `row` is the warp's first; the classes are `count` from `begin`.
  __device__ __forceinline__ void start(const ReadoutProblem& p, int64_t row, int64_t begin,
                                        int count) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      base[h] = -infinity<float>();
      sum[h] = 0;
      keep[h] = 1;
      excluded[h] = -1;
      const int64_t at = row + accumulator_row(2 * h);
      if (p.exclude == nullptr || at >= p.num_rows) continue;
      const int64_t hole = p.exclude[at];
      assert(hole < p.num_classes && "softmax_readout: exclude is not below C");
      if (hole >= begin && hole < begin + count) excluded[h] = static_cast<int>(hole - begin);
    }
  }

  // Classes that do not count get -inf: those past `classes` and the excluded ones. `first` is the
  // tile's, both from the split's first.
  __device__ __forceinline__ void mask(Tile& z, int first, int classes) const {
    constexpr unsigned kWidth = 8 * kTiles;
    const bool ends = first + static_cast<int>(kWidth) > classes;
    const bool holes = static_cast<unsigned>(excluded[0] - first) < kWidth ||
                       static_cast<unsigned>(excluded[1] - first) < kWidth;
    if (!ends && !holes) return;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = first + n * 8 + accumulator_column(i);
        if (c >= classes || c == excluded[i / 2]) z[n][i] = -infinity<float>();
      }
    }
  }

  // Products with the tile's classes -> weights; `scale` is to base-2 logits. True if a row of this
  // warp moved its base.
  __device__ __forceinline__ bool step(Tile& z, float scale, float headroom) {
    bool moved = false;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = -infinity<float>();
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        top = fmaxf(top, fmaxf(z[n][2 * h], z[n][2 * h + 1]));  // a NaN reaches the sum
      }
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      const float wanted = top * scale - headroom;
      const bool moves = wanted > base[h] + WeightRange<S>::kSlack;
      keep[h] = moves ? exp2_approximate(base[h] - wanted) : 1.0f;
      base[h] = moves ? wanted : base[h];
      moved |= moves;
      const float minus = -finite_base(base[h]);
      float added = 0;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 2 * h; i < 2 * h + 2; ++i) {
          z[n][i] = exp2_approximate(fmaf(z[n][i], scale, minus));
          added += z[n][i];
        }
      }
      sum[h] = sum[h] * static_cast<double>(keep[h]) + static_cast<double>(added);
    }
    return __any_sync(kAllLanes, moved);
  }

  // Goes on where store() left off.
  __device__ __forceinline__ void resume(int64_t row, int64_t num_rows, const float* max_in,
                                         const double* sum_in) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t at = row + accumulator_row(2 * h);
      if (at >= num_rows) continue;
      base[h] = max_in[at];
      sum[h] = warp_lane() % 4 == 0 ? sum_in[at] : 0;
    }
  }

  // Partial maximum and sum of the rows, indexed [row] of this split.
  __device__ __forceinline__ void store(int64_t row, int64_t num_rows, float* max_out,
                                        double* sum_out) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      double total = sum[h];
      total += __shfl_xor_sync(kAllLanes, total, 1);
      total += __shfl_xor_sync(kAllLanes, total, 2);
      const int64_t at = row + accumulator_row(2 * h);
      if (warp_lane() % 4 != 0 || at >= num_rows) continue;
      max_out[at] = base[h];
      sum_out[at] = total;
    }
  }
};

// z *= factors of the tile's classes, the first words of their terms in shared memory.
template <typename S, int kTiles>
__device__ __forceinline__ void multiply_columns(float (&z)[kTiles][4], uint32_t terms,
                                                 bool are_weights) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t at = terms + static_cast<uint32_t>(16 * (n * 8 + accumulator_column(i)));
      float factor = __uint_as_float(load_shared(at));
      if (are_weights) factor = factor_in_sum<S>(factor);
#pragma unroll
      for (int j = i; j < 4; j += 2) {
        z[n][j] *= factor;
        // Tiny rows have huge factors: a weight must stay finite.
        if (are_weights && WeightRange<S>::kNarrow && z[n][j] > WeightRange<S>::kLargest) {
          z[n][j] = WeightRange<S>::kLargest;
        }
      }
    }
  }
}

}  // namespace
}  // namespace fcl::ops::cuda
