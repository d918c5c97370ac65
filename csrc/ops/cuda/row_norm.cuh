// SPDX-License-Identifier: Apache-2.0
// Products and norms of rows by one warp, in double: neither tiny nor huge rows of float lose their
// norm, and beside the product with all classes it costs nothing. Unit rows are rounded once.
#pragma once

#include "common/cuda_vector.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

// a . b, in every lane.
template <typename A, typename B>
__device__ __forceinline__ double warp_dot(const A* a, const B* b, int64_t dim) {
  double sum = 0;
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) {
    sum = fma(load_value<double>(a + d), load_value<double>(b + d), sum);
  }
  return warp_sum(sum);
}

// 1 / |row| of the squared norm; F.normalize's eps.
__device__ __forceinline__ double inverse_root(double squared) {
  const double norm = sqrt(squared);
  // Not max(): a NaN must stay one.
  return 1 / (norm < 1e-12 ? 1e-12 : norm);
}

__device__ __forceinline__ void store_rounded(double* to, double value) { *to = value; }
__device__ __forceinline__ void store_rounded(float* to, double value) {
  *to = static_cast<float>(value);
}
__device__ __forceinline__ void store_rounded(BFloat16* to, double value) {
  const unsigned bits = __float_as_uint(static_cast<float>(value));
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = static_cast<uint16_t>(is_nan ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
__device__ __forceinline__ void store_rounded(Float16* to, double value) {
  to->bits = __half_as_ushort(__double2half(value));
}

}  // namespace
}  // namespace fcl::ops::cuda
