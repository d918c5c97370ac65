// SPDX-License-Identifier: Apache-2.0
// Weights of the gradients of softmax_readout (formulas: ops/softmax_readout.h), for the tile loop
// of readout_mma.cuh. Embeddings are on the left for their own gradient, else on the right.
#pragma once

#include <type_traits>

#include "ops/cuda/readout_mma.cuh"
#include "ops/cuda/readout_mma_stored.cuh"
#include "ops/cuda/softmax_readout_kernels.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

struct MmaGradient {
  const float* logsumexp;      // [N]
  const float* coefficient;    // [N]
  const float* mean_scale;     // [N] or null: grad_mean is mean_scale times its operand
  const int64_t* exclude;      // [N] or null
  const float* inverse_norms;  // [C] or null
  int64_t num_rows, num_classes;
  bool shared_values;
  bool accumulate;
  float scale;       // to base-2 logits
  float out_factor;  // of the sums
  float* out;        // [split][left][width]
  int64_t width;
};

// Weights of any size as float16: a row's are held times a power of two, which follows the largest.
// Other types need no such care.
template <typename S>
struct WeightScale {
  template <int kTiles, int kSumTiles>
  __device__ __forceinline__ void fit(float (&)[kTiles][4], float (&)[kSumTiles][4]) {}
  __device__ __forceinline__ float undo(int) const { return 1; }
};

template <>
struct WeightScale<Float16> {
  static constexpr int kMostExponent = 120;
  static constexpr int kTopExponent = 11;  // of the largest weight when the scale is chosen
  int exponent[2] = {kMostExponent, kMostExponent};

  __device__ __forceinline__ static float power(int exponent) {
    return __uint_as_float(static_cast<uint32_t>(exponent + 127) << 23);
  }

  template <int kTiles, int kSumTiles>
  __device__ __forceinline__ void fit(float (&w)[kTiles][4], float (&sums)[kSumTiles][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float top = 0;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        top = fmaxf(top, fmaxf(fabsf(w[n][2 * h]), fabsf(w[n][2 * h + 1])));
      }
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      if (top * power(exponent[h]) > 32768.0f && top < infinity<float>()) {
        const int top_exponent = static_cast<int>(__float_as_uint(top) >> 23) - 127;
        const int fitting = min(kTopExponent - top_exponent, kMostExponent);
        // What a factor below the smallest float would leave is nothing in any case.
        const int change = max(fitting - exponent[h], -126);
        exponent[h] = fitting;
#pragma unroll
        for (int n = 0; n < kSumTiles; ++n) {
          sums[n][2 * h] *= power(change);
          sums[n][2 * h + 1] *= power(change);
        }
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        w[n][2 * h] *= power(exponent[h]);
        w[n][2 * h + 1] *= power(exponent[h]);
      }
    }
  }
  __device__ __forceinline__ float undo(int h) const { return power(-exponent[h]); }
};

// Weights are summed with rows at once, or stored.
template <class WorkShape, ReadoutGradient kWhich, bool kThroughMean, bool kStored>
struct GradientWork {
  using Shape = WorkShape;
  using S = typename Shape::S;
  static constexpr bool kByRow = kWhich == ReadoutGradient::kEmbeddings;
  static constexpr bool kValues = kWhich == ReadoutGradient::kValues;
  static constexpr bool kSums = !kStored;
  static constexpr bool kSlopes = kThroughMean;
  static constexpr int kTiles = Shape::kTiles;
  static_assert(!(kStored && std::is_same_v<S, Float16>), "their scale is not stored");

  // What the weights of an embedding need.
  struct Terms {
    float base;  // of the exponents
    float coefficient;
    float mean_scale;
    int excluded;  // class, from the first of the block; -1: none
  };

  const MmaGradient& g;
  const StoredWeights<S>& stored;
  WeightScale<S> range;
  Terms own[2];    // of this lane's rows, where they are embeddings
  float norms[2];  // else of its classes
  int64_t row;     // the warp's first
  int count;       // of right rows

  __device__ __forceinline__ GradientWork(const MmaGradient& g, const StoredWeights<S>& stored)
      : g(g), stored(stored) {}

  // The block's classes are `classes` from `first`.
  __device__ __forceinline__ Terms load(int64_t i, int64_t first, int classes) const {
    Terms t = {infinity<float>(), 0, 0, -1};  // past the end: weights are zero
    if (i >= g.num_rows) return t;
    const float logsumexp = g.logsumexp[i];
    // An empty set of classes has no probabilities to recompute: all its logits are -inf.
    t.base = logsumexp == -infinity<float>()
                 ? 0
                 : static_cast<float>(static_cast<double>(logsumexp) * kLog2E);
    t.coefficient = g.coefficient[i];
    t.mean_scale = g.mean_scale == nullptr ? 1.0f : g.mean_scale[i];
    if (g.exclude != nullptr) {
      const int64_t hole = g.exclude[i];
      assert(hole < g.num_classes && "softmax_readout: exclude is not below C");
      if (hole >= first && hole < first + classes) t.excluded = static_cast<int>(hole - first);
    }
    return t;
  }

  __device__ __forceinline__ float norm(int64_t c) const {
    return g.inverse_norms != nullptr && c < g.num_classes ? g.inverse_norms[c] : 1.0f;
  }

  __device__ __forceinline__ bool has_terms() const {
    return !kByRow || g.inverse_norms != nullptr;
  }
  __device__ __forceinline__ void load_term(int64_t right, uint32_t (&term)[4]) const {
    if constexpr (kByRow) {
      term[0] = __float_as_uint(norm(right));
    } else {
      const int in_block = static_cast<int>(threadIdx.x) / kWarp * 16;
      const Terms t = load(right, row - in_block, kMmaRows);
      term[0] = __float_as_uint(t.base);
      term[1] = __float_as_uint(t.coefficient);
      term[2] = __float_as_uint(t.mean_scale);
      term[3] = static_cast<uint32_t>(t.excluded);
    }
  }

  __device__ __forceinline__ void start(int64_t first_row, int64_t begin, int right_count) {
    row = first_row;
    count = right_count;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t at = row + accumulator_row(2 * h);
      if constexpr (kByRow) {
        own[h] = load(at, begin, count);
      } else {
        norms[h] = norm(at);
      }
    }
  }

  template <int kSlopeTiles, int kSumTiles>
  __device__ __forceinline__ void weigh(float (&z)[kTiles][4], float (&slopes)[kSlopeTiles][4],
                                        float (&sums)[kSumTiles][4], int first, uint32_t terms) {
    const int in_block = static_cast<int>(threadIdx.x) / kWarp * 16;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = n * 8 + accumulator_column(i);
        uint32_t words[4] = {__float_as_uint(1.0f)};
        if (has_terms()) load_shared(words, terms + 16 * column);
        const Terms of_column = {__uint_as_float(words[0]), __uint_as_float(words[1]),
                                 __uint_as_float(words[2]), static_cast<int>(words[3])};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int j = i + 2 * h;
          const Terms& x = kByRow ? own[h] : of_column;
          const float factor = kByRow ? __uint_as_float(words[0]) : norms[h];
          const int label = kByRow ? first + column : in_block + accumulator_row(j);
          float weight = exp2_approximate(fmaf(z[n][j] * factor, g.scale, -x.base));
          if constexpr (kValues) {
            weight *= x.mean_scale;
          } else {
            float slope = x.coefficient;
            if constexpr (kThroughMean) {
              const float readout = slopes[n][j] * x.mean_scale;
              slope = fmaf(readout, g.shared_values ? factor : 1.0f, slope);
            }
            weight *= slope;
          }
          if constexpr (kByRow) weight *= factor_in_sum<S>(factor);
          const bool counts = label != x.excluded && (!kByRow || label < count);
          z[n][j] = counts ? weight : 0.0f;
        }
      }
    }
    if constexpr (kStored) {
      stored.store(z, first);
    } else {
      range.fit(z, sums);
    }
  }

  template <int kSumTiles>
  __device__ __forceinline__ void flush(float (&sums)[kSumTiles][4], bool is_first) {
    if constexpr (kStored) return;
    const bool adds = !is_first || g.accumulate;
    const int64_t num_left = kByRow ? g.num_rows : g.num_classes;
    const int64_t first_column = static_cast<int64_t>(blockIdx.z) * Shape::kWidth;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t at = row + accumulator_row(2 * h);
      if (at >= num_left) continue;
      float* to = g.out + (blockIdx.y * num_left + at) * g.width;
      const float factor = g.out_factor * range.undo(h);
#pragma unroll
      for (int n = 0; n < kSumTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int64_t column = first_column + n * 8 + accumulator_column(i);
          if (column >= g.width) continue;
          to[column] = fmaf(sums[n][2 * h + i], factor, adds ? to[column] : 0.0f);
        }
      }
    }
  }

  __device__ __forceinline__ void finish() {}
};

}  // namespace
}  // namespace fcl::ops::cuda
