// SPDX-License-Identifier: Apache-2.0
// A warp's 64 x 64 sums of a tile of the filter of knn_graph: what they start from, the product on
// tensor cores, and which of them came out positive.
#pragma once

#include "common/mma_product.cuh"
#include "ops/cuda/knn_bound.cuh"
#include "ops/cuda/knn_filter_feed.cuh"

namespace fcl::ops::cuda {
namespace {

inline constexpr int kWarpRows = 64;
inline constexpr int kWarpColumns = 64;
inline constexpr int kTilesDown = kWarpRows / 16;
inline constexpr int kTilesAcross = kWarpColumns / 8;

__device__ __forceinline__ int warp_first_row() {
  return static_cast<int>(threadIdx.x) / kWarp / 2 * kWarpRows;
}
__device__ __forceinline__ int warp_first_column() {
  return static_cast<int>(threadIdx.x) / kWarp % 2 * kWarpColumns;
}

// Of the block's rows: what the filter knows of them, and the ends of their lists.
struct FilterRows {
  KnnTerm terms[kFilterRows];
  float squares[kFilterRows];
  float bounds[kFilterRows];
};

struct FilterSums {
  float at[kTilesDown][kTilesAcross][4];

  // `terms`: address of those of the tile's columns. `count`: rows there are.
  template <bool kIsL2>
  __device__ __forceinline__ void start(const FilterRows& rows, int count, uint32_t terms,
                                        float kappa) {
    KnnTerm row_terms[kTilesDown][2];
    float row_parts[kTilesDown][2];
#pragma unroll
    for (int m = 0; m < kTilesDown; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = warp_first_row() + m * 16 + accumulator_row(2 * half);
        row_terms[m][half] = rows.terms[r];
        row_parts[m][half] =
            r < count ? row_start<kIsL2>(rows.bounds[r], rows.terms[r], rows.squares[r], kappa)
                      : -1.0f;
      }
    }
#pragma unroll
    for (int n = 0; n < kTilesAcross; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = warp_first_column() + n * 8 + accumulator_column(i);
        uint32_t words[4];
        load_shared(words, terms + static_cast<uint32_t>(c * static_cast<int>(sizeof(KnnTerm))));
        const KnnTerm column = {__uint_as_float(words[0]), __uint_as_float(words[1]),
                                __uint_as_float(words[2]), 0};
#pragma unroll
        for (int m = 0; m < kTilesDown; ++m) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            at[m][n][2 * half + i] =
                pair_start<kIsL2>(row_parts[m][half], row_terms[m][half], column);
          }
        }
      }
    }
  }

  // += the products of two panels.
  template <typename S>
  __device__ __forceinline__ void multiply(uint32_t left, uint32_t right) {
    const int lane = opaque(warp_lane());
    left += chunk_offset(warp_first_row() + lane % 16, lane / 16);
    right += chunk_offset(warp_first_column() + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < kPanelChunks / 2; ++k) {
      uint32_t b[kTilesAcross / 2][4];
#pragma unroll
      for (int n = 0; n < kTilesAcross / 2; ++n) {
        load_matrices(b[n], (right ^ (k * 2 * kChunkBytes)) + n * 16 * kPanelBytes);
      }
#pragma unroll
      for (int m = 0; m < kTilesDown; ++m) {
        uint32_t a[4];
        load_matrices(a, (left ^ (k * 2 * kChunkBytes)) + m * 16 * kPanelBytes);
#pragma unroll
        for (int n = 0; n < kTilesAcross; ++n) {
          multiply_matrices<S>(at[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
        }
      }
    }
  }
};

// Which of a thread's sums are positive, a bit each.
struct Survivors {
  static constexpr int kWords = kTilesAcross / 2;
  static constexpr int kBitsAcross = kTilesDown * 4;
  uint32_t bits[kWords];

  __device__ __forceinline__ explicit Survivors(const FilterSums& sums) {
#pragma unroll
    for (int n = 0; n < kTilesAcross; ++n) {
      if (n % 2 == 0) bits[n / 2] = 0;
      // Mostly all are negative, which the sign bits of 16 sums say in 8 instructions.
      uint32_t signs = ~0u;
#pragma unroll
      for (int m = 0; m < kTilesDown; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) signs &= __float_as_uint(sums.at[m][n][i]);
      }
      if (signs >> 31 != 0) continue;
#pragma unroll
      for (int m = 0; m < kTilesDown; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t is_positive = ~__float_as_uint(sums.at[m][n][i]) >> 31;
          bits[n / 2] |= is_positive << (n % 2 * kBitsAcross + m * 4 + i);
        }
      }
    }
  }

  // In the block's tile, of a bit of a word.
  static __device__ __forceinline__ int row(int bit) {
    return warp_first_row() + bit % kBitsAcross / 4 * 16 + accumulator_row(bit % 4);
  }
  static __device__ __forceinline__ int column(int word, int bit) {
    return warp_first_column() + (2 * word + bit / kBitsAcross) * 8 + accumulator_column(bit % 4);
  }
};

}  // namespace
}  // namespace fcl::ops::cuda
