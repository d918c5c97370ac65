// SPDX-License-Identifier: Apache-2.0
// Device maths shared by the kernels. assert() stays on in release builds: it is how a bad index is
// reported without waiting for the device (as "device-side assert triggered", and like any device
// assertion it ends the CUDA context).
#pragma once

#undef NDEBUG
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cassert>
#include <cstdint>

#include "common/half.h"

namespace fcl::cuda {

inline constexpr double kLog2E = 1.4426950408889634;
inline constexpr double kLn2 = 0.6931471805599453;
inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

namespace {

template <typename T>
__device__ __forceinline__ T load_value(const float* p) {
  return static_cast<T>(*p);
}
template <typename T>
__device__ __forceinline__ T load_value(const double* p) {
  return static_cast<T>(*p);
}
template <typename T>
__device__ __forceinline__ T load_value(const BFloat16* p) {
  return static_cast<T>(__uint_as_float(static_cast<unsigned>(p->bits) << 16));
}
template <typename T>
__device__ __forceinline__ T load_value(const Float16* p) {
  return static_cast<T>(__half2float(__ushort_as_half(p->bits)));
}

template <typename T>
__device__ __forceinline__ T infinity() {
  return static_cast<T>(__longlong_as_double(0x7ff0000000000000LL));
}

__device__ __forceinline__ float exp2_of(float x) { return exp2f(x); }
__device__ __forceinline__ double exp2_of(double x) { return exp2(x); }
__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) {
  return fma(a, b, c);
}

// The exponent's reference: an infinite maximum (no term so far, or a +inf logit) must not meet
// inf - inf.
template <typename T>
__device__ __forceinline__ T finite_base(T max) {
  return max == infinity<T>() || max == -infinity<T>() ? T(0) : max;
}

// Sum over the warp, in every lane, in one order.
template <typename T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t grid_threads() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

}  // namespace
}  // namespace fcl::cuda
