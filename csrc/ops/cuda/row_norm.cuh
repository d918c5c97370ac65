// SPDX-License-Identifier: Apache-2.0
// Products and norms of rows by one warp, in double: neither tiny nor huge rows of float lose their
// norm, and beside the product with all classes it costs nothing.
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

}  // namespace
}  // namespace fcl::ops::cuda
