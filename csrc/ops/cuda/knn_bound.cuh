// SPDX-License-Identifier: Apache-2.0
// Which pairs the filter of knn_graph may drop. Tensor cores sum rows rounded to 16 bits, on top of
// a start that is chosen so that the sum is positive wherever the similarity, as it would be
// computed exactly as `simt` does, can reach the end of the row's list. docs/knn.md has the proof.
//
// With x~ for x rounded, and |.| for the 2-norm, by Cauchy and Schwarz
//   |x.y - x~.y~| <= |x - x~| |y| + |x~| |y - y~|,
// where the norms of what rounding took are measured, row by row, not bounded: they are some 0.4 of
// the bound, and 0 for features that have 16 bits already. All that is summed in float, by tensor
// cores or not, is off by less than kappa |x||y| for each of the two rows.
#pragma once

#include "ops/cuda/row_norm.cuh"

namespace fcl::ops::cuda {

// 2^-22 for each term: tensor cores may cut off 32 times 2^-23 of the largest partial sum whenever
// they add 16 products. Ordinary sums, off by 2^-24 a term, are paid for by the other row's kappa.
inline float knn_kappa(int64_t dim) {
  return static_cast<float>((dim + 15) / 16 * 16 + 16) / (1 << 22);
}
// Where kappa is at most 2^-6.
inline constexpr int64_t kKnnMostDims = 65'000;

// What the filter knows of a row; all 0 for a zero row.
struct alignas(16) KnnTerm {
  float size;         // at least |x| and |x~|
  float error;        // at least |x - x~| + kappa size
  float half_square;  // at most |x|^2 / 2; l2 only
  float unused;
};

namespace {

// A float that is not below x >= 0.
__device__ __forceinline__ float rounded_up(double x) {
  return static_cast<float>(x * (1 + 0x1p-20)) + 0x1p-126f;
}

__device__ __forceinline__ KnnTerm knn_term(double norm, double rounded_norm, double error,
                                            float square, float kappa) {
  if (norm == 0) return {};
  const double size = norm < rounded_norm ? rounded_norm : norm;
  // (1 + 4 kappa): the error is part of the start, which tensor cores cut off like what they add.
  return {rounded_up(size), rounded_up((error + kappa * size) * (1 + 4 * kappa)),
          0.5f * square * (1 - 3 * kappa), 0};
}

// The row's part of the start: minus what x~.y~ must reach, less what computing it may be off by.
// `square`: |x|^2 as in l2_similarity.
template <bool kIsL2>
__device__ __forceinline__ float row_start(float bound, const KnnTerm& row, float square,
                                           float kappa) {
  const float smallest = kappa * 0x1p-100f;  // for what underflows
  if constexpr (kIsL2) {
    return 3 * kappa * (0.5f * (fabsf(bound) + square)) + smallest - 0.5f * (bound + square);
  }
  // Products with a zero row are exact, and a later column must then be better, not equal.
  if (row.size == 0) return bound < 0 ? 1.0f : -1.0f;
  return 2 * kappa * fabsf(bound) + smallest - bound;
}

template <bool kIsL2>
__device__ __forceinline__ float pair_start(float row_part, const KnnTerm& row,
                                            const KnnTerm& column) {
  const float start = fmaf(row.error, column.size, fmaf(row.size, column.error, row_part));
  return kIsL2 ? start - column.half_square : start;
}

}  // namespace
}  // namespace fcl::ops::cuda
