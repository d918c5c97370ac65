// SPDX-License-Identifier: Apache-2.0
// Products of panels (mma_panel.cuh) on tensor cores. A warp holds [16 rows x 8 columns] of a
// product as four floats per lane; accumulator_row and accumulator_column say which.
#pragma once

#include <cstdint>

#include "common/mma_panel.cuh"

namespace fcl::cuda {
namespace {

__device__ __forceinline__ int warp_lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int accumulator_row(int i) { return warp_lane() / 4 + i / 2 * 8; }
__device__ __forceinline__ int accumulator_column(int i) { return warp_lane() % 4 * 2 + i % 2; }

template <int kTiles>
__device__ __forceinline__ void clear(float (&sums)[kTiles][4]) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[n][i] = 0;
  }
}

// Products of panels in S = BFloat16 or Float16.
template <typename S>
struct PanelProduct {
  // Weights [16 rows][kTiles x 8] as left operands.
  template <int kTiles>
  struct Weights {
    uint32_t at[kTiles / 2][4];

    __device__ __forceinline__ void set(const float (&w)[kTiles][4]) {
#pragma unroll
      for (int k = 0; k < kTiles / 2; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float (&from)[4] = w[2 * k + i / 2];
          at[k][i] = pack_pair<S>(from[i % 2 * 2], from[i % 2 * 2 + 1]);
        }
      }
    }

    // From a panel, whose columns they are.
    __device__ __forceinline__ void load(uint32_t panel) {
      const int lane = opaque(warp_lane());
      panel += chunk_offset(lane % 16, lane / 16);
#pragma unroll
      for (int k = 0; k < kTiles / 2; ++k) load_matrices(at[k], panel ^ (k * 2 * kChunkBytes));
    }
  };

  // d += left . right^T over the columns of two panels; `left` is where this warp's rows start.
  template <int kTiles>
  __device__ __forceinline__ static void rows(float (&d)[kTiles][4], uint32_t left,
                                              uint32_t right) {
    const int lane = opaque(warp_lane());
    left += chunk_offset(lane % 16, lane / 16);
    right += chunk_offset(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int k = 0; k < kPanelChunks / 2; ++k) {
      uint32_t a[4];
      load_matrices(a, left ^ (k * 2 * kChunkBytes));
#pragma unroll
      for (int n = 0; n < kTiles; n += 2) {
        uint32_t b[4];
        load_matrices(b, (right ^ (k * 2 * kChunkBytes)) + n * 8 * kPanelBytes);
        multiply_matrices<S>(d[n], a, b[0], b[1]);
        multiply_matrices<S>(d[n + 1], a, b[2], b[3]);
      }
    }
  }

  // d += weights . panel, for the 64 columns of a panel from accumulator `first` on.
  template <int kTiles, int kSums>
  __device__ __forceinline__ static void columns(float (&d)[kSums][4], int first,
                                                 const Weights<kTiles>& weights, uint32_t panel) {
    const int lane = opaque(warp_lane());
    panel += chunk_offset(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < kTiles / 2; ++k) {
#pragma unroll
      for (int n = 0; n < kPanelChunks; n += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, (panel ^ (n * kChunkBytes)) + k * 16 * kPanelBytes);
        multiply_matrices<S>(d[first + n], weights.at[k], b[0], b[1]);
        multiply_matrices<S>(d[first + n + 1], weights.at[k], b[2], b[3]);
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
  template <int kTiles>
  struct Weights {
    float at[kTiles][4];

    __device__ __forceinline__ void set(const float (&w)[kTiles][4]) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) at[n][i] = w[n][i];
      }
    }

    __device__ __forceinline__ void load(uint32_t panel) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int column = n * 8 + accumulator_column(i);
          at[n][i] =
              __uint_as_float(load_shared(panel + chunk_offset(accumulator_row(i), column / 4) +
                                          static_cast<uint32_t>(column % 4 * 4)));
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

  template <int kTiles>
  __device__ __forceinline__ static void rows(float (&d)[kTiles][4], uint32_t left,
                                              uint32_t right) {
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
      sums[0].move_to(d[n]);
      sums[1].move_to(d[n + 1]);
    }
  }

  // The order of the summed index is free: taking a lane's accumulators 2 i and 2 i + 1 for the
  // operand's columns i and i + 4, no value has to change lanes.
  template <int kTiles, int kSums>
  __device__ __forceinline__ static void columns(float (&d)[kSums][4], int first,
                                                 const Weights<kTiles>& weights, uint32_t panel) {
    constexpr int kColumnTiles = kPanelColumns<float> / 8;
    const int lane = opaque(warp_lane());
    // A few columns at a time: registers are short.
    constexpr int kAtOnce = 2;
#pragma unroll
    for (int begin = 0; begin < kColumnTiles; begin += kAtOnce) {
      Sum sums[kAtOnce];
#pragma unroll
      for (int k = 0; k < kTiles; ++k) {
        const float (&w)[4] = weights.at[k];
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
      for (int n = 0; n < kAtOnce; ++n) sums[n].move_to(d[first + begin + n]);
    }
  }
};

}  // namespace
}  // namespace fcl::cuda
