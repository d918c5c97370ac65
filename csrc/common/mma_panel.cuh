// SPDX-License-Identifier: Apache-2.0
// Panels: up to 128 bytes of each of some consecutive rows of a matrix, in shared memory, and their
// products on tensor cores. The eight 16-byte chunks of a panel's row are permuted by its number,
// so that eight rows' chunks of one column, which the loads below take at once, lie in different
// banks. Panels start at multiples of 1024 bytes.
//
// A warp holds accumulators [16 rows x 8 columns] as four floats per lane; accumulator_row and
// accumulator_column say which.
#pragma once

#include <cstdint>

#include "common/cuda_mma.cuh"

namespace fcl::cuda {

inline constexpr int kPanelBytes = 128;  // of a row
inline constexpr int kChunkBytes = 16;
inline constexpr int kPanelChunks = kPanelBytes / kChunkBytes;
template <typename S>
inline constexpr int kPanelColumns = kPanelBytes / static_cast<int>(sizeof(S));

namespace {

__device__ __forceinline__ int warp_lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int accumulator_row(int i) { return warp_lane() / 4 + i / 2 * 8; }
__device__ __forceinline__ int accumulator_column(int i) { return warp_lane() % 4 * 2 + i % 2; }

__device__ __forceinline__ uint32_t chunk_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * kPanelBytes + ((chunk ^ (row & 7)) * kChunkBytes));
}

// A row-major matrix in global memory.
template <typename S>
struct Matrix {
  const S* data;
  int64_t rows, columns;
  bool wide;  // rows are multiples of 16 bytes, as is the address
};

// Starts the copy of a panel: kRows rows from `row`, columns from `column`; zeros past the matrix.
template <int kRows, int kThreads, typename S>
__device__ __forceinline__ void copy_panel(uint32_t to, const Matrix<S>& from, int64_t row,
                                           int64_t column) {
  const int thread = opaque(threadIdx.x);
  const int64_t rows_left = from.rows - row;
  const int64_t columns_left = from.columns - column;
  const S* data = from.data + row * from.columns + column;
  if (from.wide) {
    constexpr int kAtOnce = kThreads / kPanelChunks;
    static_assert(kRows % kAtOnce == 0 && kAtOnce % 8 == 0);
    const int chunk = thread % kPanelChunks;
    const int first = thread / kPanelChunks;
    const int skip = chunk * (kChunkBytes / static_cast<int>(sizeof(S)));
    const S* p = data + first * from.columns + skip;
    to += chunk_offset(first, chunk);
#pragma unroll
    for (int r = 0; r < kRows; r += kAtOnce) {
      const bool inside = skip < columns_left && first + r < rows_left;
      copy_async(to + r * kPanelBytes, inside ? p : from.data, inside);
      p += kAtOnce * from.columns;
    }
  } else {
    constexpr int kWords = kPanelBytes / 4;
#pragma unroll 1
    for (int i = thread; i < kRows * kWords; i += kThreads) {
      const int r = i / kWords;
      const int column = i % kWords * (4 / static_cast<int>(sizeof(S)));
      const S* p = data + r * from.columns + column;
      uint32_t word = 0;
      if constexpr (sizeof(S) == 4) {
        if (r < rows_left && column < columns_left) word = __float_as_uint(*p);
      } else if (r < rows_left) {
        if (column < columns_left) word = p[0].bits;
        if (column + 1 < columns_left) word |= static_cast<uint32_t>(p[1].bits) << 16;
      }
      const int chunk = i % kWords / 4;
      store_shared(to + chunk_offset(r, chunk) + static_cast<uint32_t>(i % 4 * 4), word);
    }
  }
}

// Products of panels in S = BFloat16 or Float16.
template <typename S>
struct PanelProduct {
  // Weights [kRowTiles x 16 rows][kTiles x 8] as left operands.
  template <int kRowTiles, int kTiles>
  struct Weights {
    uint32_t at[kRowTiles][kTiles / 2][4];

    __device__ __forceinline__ void set(const float (&w)[kRowTiles][kTiles][4]) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int k = 0; k < kTiles / 2; ++k) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float (&from)[4] = w[r][2 * k + i / 2];
            at[r][k][i] = pack_pair<S>(from[i % 2 * 2], from[i % 2 * 2 + 1]);
          }
        }
      }
    }
  };

  // d += left . right^T over the columns of two panels; `left` is where this warp's rows start.
  template <int kRowTiles, int kTiles>
  __device__ __forceinline__ static void rows(float (&d)[kRowTiles][kTiles][4], uint32_t left,
                                              uint32_t right) {
    const int lane = opaque(warp_lane());
    left += chunk_offset(lane % 16, lane / 16);
    right += chunk_offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < kPanelChunks / 2; ++k) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
        load_matrices(a[r], (left ^ (k * 2 * kChunkBytes)) + r * 16 * kPanelBytes);
      }
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t b[4];
        load_matrices(b, (right ^ (k * 2 * kChunkBytes)) + n * 8 * kPanelBytes);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          multiply_matrices<S>(d[r][n], a[r], b[0], b[1]);
          multiply_matrices<S>(d[r][n + 1], a[r], b[2], b[3]);
        }
      }
    }
  }

  // d += weights . panel, for the 64 columns of a panel from accumulator `first` on.
  template <int kRowTiles, int kTiles, int kSums>
  __device__ __forceinline__ static void columns(float (&d)[kRowTiles][kSums][4], int first,
                                                 const Weights<kRowTiles, kTiles>& weights,
                                                 uint32_t panel) {
    const int lane = opaque(warp_lane());
    panel += chunk_offset(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < kTiles / 2; ++k) {
#pragma unroll
      for (int n = 0; n < kPanelChunks; n += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, (panel ^ (n * kChunkBytes)) + k * 16 * kPanelBytes);
#pragma unroll
        for (int r = 0; r < kRowTiles; ++r) {
          multiply_matrices<S>(d[r][first + n], weights.at[r][k], b[0], b[1]);
          multiply_matrices<S>(d[r][first + n + 1], weights.at[r][k], b[2], b[3]);
        }
      }
    }
  }
};

// A float as the sum of two tf32 numbers, to 2^-22 of it. Tensor cores ignore the 13 bits that
// float has more than tf32.
struct SplitFloat {
  uint32_t big, small;

  __device__ __forceinline__ SplitFloat() {}
  __device__ __forceinline__ explicit SplitFloat(float x) {
    big = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;  // to nearest
    small = __float_as_uint(x - __uint_as_float(big));
  }
};

// Products of float panels, each as three of tf32: what is missing is below 2^-21 of |a| |b|.
// Tensor cores add with truncation, so long sums are made of short ones by ordinary additions.
template <>
struct PanelProduct<float> {
  template <int kRowTiles, int kTiles>
  struct Weights {
    float at[kRowTiles][kTiles][4];

    __device__ __forceinline__ void set(const float (&w)[kRowTiles][kTiles][4]) {
#pragma unroll
      for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) at[r][n][i] = w[r][n][i];
        }
      }
    }
  };

  // A short sum: products of the big parts, and those with one small part, which are NaN where a
  // factor is infinite.
  struct Sum {
    float big[4] = {};
    float small[4] = {};

    __device__ __forceinline__ void add(const SplitFloat (&a)[4], const SplitFloat& b0,
                                        const SplitFloat& b1) {
      const uint32_t a_big[4] = {a[0].big, a[1].big, a[2].big, a[3].big};
      const uint32_t a_small[4] = {a[0].small, a[1].small, a[2].small, a[3].small};
      multiply_matrices_tf32(small, a_small, b0.big, b1.big);
      multiply_matrices_tf32(big, a_big, b0.big, b1.big);
      multiply_matrices_tf32(small, a_big, b0.small, b1.small);
    }
    __device__ __forceinline__ void move_to(float (&d)[4]) const {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        d[i] += fabsf(big[i]) < infinity<float>() ? big[i] + small[i] : big[i];
      }
    }
  };

  template <int kRowTiles, int kTiles>
  __device__ __forceinline__ static void rows(float (&d)[kRowTiles][kTiles][4], uint32_t left,
                                              uint32_t right) {
    static_assert(kRowTiles == 1);
    constexpr int kSteps = kPanelChunks / 2;
    const int lane = opaque(warp_lane());
    left += chunk_offset(lane % 16, lane / 16);
    right += chunk_offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    SplitFloat a[kSteps][4];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t words[4];
      load_matrices(words, left ^ (k * 2 * kChunkBytes));
#pragma unroll
      for (int i = 0; i < 4; ++i) a[k][i] = SplitFloat(__uint_as_float(words[i]));
    }
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      Sum sums[2];
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        uint32_t words[4];
        load_matrices(words, (right ^ (k * 2 * kChunkBytes)) + n * 8 * kPanelBytes);
        SplitFloat b[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) b[i] = SplitFloat(__uint_as_float(words[i]));
        sums[0].add(a[k], b[0], b[1]);
        sums[1].add(a[k], b[2], b[3]);
      }
      sums[0].move_to(d[0][n]);
      sums[1].move_to(d[0][n + 1]);
    }
  }

  // The order of the summed index is free: taking a lane's accumulators 2 i and 2 i + 1 for the
  // operand's columns i and i + 4, no value has to change lanes.
  template <int kRowTiles, int kTiles, int kSums>
  __device__ __forceinline__ static void columns(float (&d)[kRowTiles][kSums][4], int first,
                                                 const Weights<kRowTiles, kTiles>& weights,
                                                 uint32_t panel) {
    static_assert(kRowTiles == 1);
    constexpr int kColumnTiles = kPanelColumns<float> / 8;
    const int lane = opaque(warp_lane());
    // A few columns at a time: registers are short.
    constexpr int kAtOnce = 2;
#pragma unroll
    for (int begin = 0; begin < kColumnTiles; begin += kAtOnce) {
      Sum sums[kAtOnce];
#pragma unroll
      for (int k = 0; k < kTiles; ++k) {
        const float (&w)[4] = weights.at[0][k];
        const SplitFloat a[4] = {SplitFloat(w[0]), SplitFloat(w[2]), SplitFloat(w[1]),
                                 SplitFloat(w[3])};
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          SplitFloat b[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int row = k * 8 + lane % 4 * 2 + i;
            const int column = (begin + n) * 8 + lane / 4;
            b[i] = SplitFloat(__uint_as_float(load_shared(panel + chunk_offset(row, column / 4) +
                                                          static_cast<uint32_t>(column % 4 * 4))));
          }
          sums[n].add(a, b[0], b[1]);
        }
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) sums[n].move_to(d[0][first + begin + n]);
    }
  }
};

}  // namespace
}  // namespace fcl::cuda
