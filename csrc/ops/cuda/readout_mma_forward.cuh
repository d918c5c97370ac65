// SPDX-License-Identifier: Apache-2.0
// Weights of softmax_readout and their sums, for the tile loop of readout_mma.cuh.
#pragma once

#include "ops/cuda/readout_mma.cuh"
#include "ops/cuda/readout_mma_softmax.cuh"
#include "ops/cuda/readout_mma_stored.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

// Partial readouts, indexed [split][row]: base of the exponents, sum of the weights, and the
// weighted sum of values, unnormalised.
struct ForwardPartials {
  double* sum;
  float* mean;
  float* max;
  float scale;  // to base-2 logits
  float headroom;
  bool resumes;  // sum and max are those of earlier classes
};

// What becomes of the weights: nothing but their sum, the weighted sum, or they are stored.
enum class MmaMean { kNone, kSummed, kStored };

template <class WorkShape, MmaMean kMean>
struct ForwardWork {
  using Shape = WorkShape;
  using S = typename Shape::S;
  static constexpr bool kSums = kMean == MmaMean::kSummed;
  static constexpr bool kSlopes = false;
  static constexpr int kTiles = Shape::kTiles;

  const ReadoutProblem& p;
  const ForwardPartials& out;
  const StoredWeights<S>& stored;
  OnlineSoftmax<S, kTiles> softmax;
  float carried[2];  // from the bases of the last flush to today's
  int64_t row;
  int classes;  // of the split

  __device__ __forceinline__ ForwardWork(const ReadoutProblem& p, const ForwardPartials& out,
                                         const StoredWeights<S>& stored)
      : p(p), out(out), stored(stored) {}

  __device__ __forceinline__ void start(int64_t first_row, int64_t begin, int count) {
    row = first_row;
    classes = count;
    softmax.start(p, row, begin, count);
    if (out.resumes) softmax.resume(row, p.num_rows, out.max + at(), out.sum + at());
    carried[0] = carried[1] = 1;
  }

  __device__ __forceinline__ bool has_terms() const { return p.inverse_norms != nullptr; }
  __device__ __forceinline__ void load_term(int64_t label, uint32_t (&term)[4]) const {
    const float* norms = static_cast<const float*>(p.inverse_norms);
    if (label < p.num_classes) term[0] = __float_as_uint(norms[label]);
  }

  template <int kSlopeTiles, int kSumTiles>
  __device__ __forceinline__ void weigh(float (&z)[kTiles][4], float (&)[kSlopeTiles][4],
                                        float (&sums)[kSumTiles][4], int first, uint32_t terms) {
    if (p.inverse_norms != nullptr) multiply_columns<S>(z, terms, false);
    softmax.mask(z, first, classes);
    const bool moved = softmax.step(z, out.scale, out.headroom);
    if constexpr (kSums) {
      if (moved) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          carried[h] *= softmax.keep[h];
#pragma unroll
          for (int n = 0; n < kSumTiles; ++n) {
            sums[n][2 * h] *= softmax.keep[h];
            sums[n][2 * h + 1] *= softmax.keep[h];
          }
        }
      }
    }
    if constexpr (kMean != MmaMean::kNone) {
      if (p.inverse_norms != nullptr && p.values == p.prototypes) {
        multiply_columns<S>(z, terms, true);
      }
    }
    if constexpr (kMean == MmaMean::kStored) {
      stored.store(z, first);
      stored.store_keep(softmax.keep, first / Shape::kRights);
    }
  }

  template <int kSumTiles>
  __device__ __forceinline__ void flush(float (&sums)[kSumTiles][4], bool is_first) {
    if constexpr (kSums) {
      const int64_t first_column = static_cast<int64_t>(blockIdx.z) * Shape::kWidth;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t i_row = row + accumulator_row(2 * h);
        float* to = out.mean + (at() + i_row) * p.value_dim;
        if (i_row < p.num_rows) {
#pragma unroll
          for (int n = 0; n < kSumTiles; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int64_t column = first_column + n * 8 + accumulator_column(i);
              if (column >= p.value_dim) continue;
              const float added = sums[n][2 * h + i];
              to[column] = is_first ? added : fmaf(to[column], carried[h], added);
            }
          }
        }
        carried[h] = 1;
      }
    }
  }

  __device__ __forceinline__ void finish() {
    if (blockIdx.z == 0) softmax.store(row, p.num_rows, out.max + at(), out.sum + at());
  }

  __device__ __forceinline__ int64_t at() const { return blockIdx.y * p.num_rows; }
};

}  // namespace
}  // namespace fcl::ops::cuda
