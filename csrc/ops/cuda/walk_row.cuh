// SPDX-License-Identifier: Apache-2.0
// How a step of the walk ends: sums are blended with the restart and stored, a few columns of a row
// at a time. Dtypes are looked at here, once per row, so that kernels need no copies for each.
#pragma once

#include "common/cuda_gather.cuh"
#include "common/cuda_mma.cuh"
#include "ops/cuda/walk_path.h"

namespace fcl::ops::cuda {
namespace {

template <typename S>
__device__ __forceinline__ S round_to(float x) {
  return S{static_cast<uint16_t>(fcl::cuda::pack_pair<S>(x, 0.0f))};
}
template <>
__device__ __forceinline__ float round_to<float>(float x) {
  return x;
}

// Whether vectors of kSize elements at multiples of kSize can be read in pieces of 16 bytes.
template <int kSize, typename R>
__device__ __forceinline__ bool has_aligned_vectors(const WalkRows& rows) {
  constexpr uint64_t kAlign = sizeof(R) * kSize < 16 ? sizeof(R) * kSize : 16;
  return (reinterpret_cast<uintptr_t>(rows.data) | rows.stride * sizeof(R)) % kAlign == 0;
}

template <typename T, int kSize, typename R>
__device__ __forceinline__ void load_part(const WalkRows& rows, int64_t row, int64_t d, int64_t dim,
                                          fcl::cuda::Vector<T, kSize>& to) {
  const R* from = static_cast<const R*>(rows.data) + row * rows.stride + d;
  if (d + kSize <= dim && has_aligned_vectors<kSize, R>(rows)) {
    const auto part = fcl::cuda::load_streaming<kSize>(from);
#pragma unroll
    for (int i = 0; i < kSize; ++i) to.at[i] = fcl::cuda::load_value<T>(&part.at[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    to.at[i] = d + i < dim ? fcl::cuda::load_value<T>(from + i) : T(0);
  }
}

template <typename R, typename T, int kSize>
__device__ __forceinline__ void store_part(const WalkRows& rows, int64_t row, int64_t d,
                                           const fcl::cuda::Vector<T, kSize>& from, bool streams) {
  R* to = static_cast<R*>(rows.data) + row * rows.stride + d;
  fcl::cuda::Vector<R, kSize> part;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    if constexpr (sizeof(T) == 8) {
      part.at[i] = from.at[i];
    } else {
      part.at[i] = round_to<R>(from.at[i]);
    }
  }
  if (d + kSize <= rows.columns && has_aligned_vectors<kSize, R>(rows)) {
    fcl::cuda::store_pieces<kSize>(to, part, streams);
    return;
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    if (d + i < rows.columns) to[i] = part.at[i];
  }
}

// Columns [d, d + kSize) of a row, of which those from dim on are zeros; `total` has their sums.
template <typename T, int kSize>
__device__ __forceinline__ void finish_columns(const WalkStep& p, int64_t row, int64_t d,
                                               fcl::cuda::Vector<T, kSize> total) {
  fcl::cuda::Vector<T, kSize> start = {};
  if constexpr (sizeof(T) == 8) {
    if (p.restart.data != nullptr) load_part<T, kSize, double>(p.restart, row, d, p.dim, start);
  } else if (p.restart.data != nullptr) {
    switch (p.restart.dtype) {
      case Dtype::kFloat32:
        load_part<T, kSize, float>(p.restart, row, d, p.dim, start);
        break;
      case Dtype::kBfloat16:
        load_part<T, kSize, BFloat16>(p.restart, row, d, p.dim, start);
        break;
      default:
        load_part<T, kSize, Float16>(p.restart, row, d, p.dim, start);
    }
  }
  const T damping = static_cast<T>(p.damping);
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const T value = fcl::cuda::multiply_add(damping, total.at[i], (T(1) - damping) * start.at[i]);
    total.at[i] = d + i < p.dim ? value : T(0);
  }
  if constexpr (sizeof(T) == 8) {
    store_part<double>(p.out, row, d, total, p.streams);
  } else {
    switch (p.out.dtype) {
      case Dtype::kFloat32:
        store_part<float>(p.out, row, d, total, p.streams);
        break;
      case Dtype::kBfloat16:
        store_part<BFloat16>(p.out, row, d, total, p.streams);
        break;
      default:
        store_part<Float16>(p.out, row, d, total, p.streams);
    }
  }
}

}  // namespace
}  // namespace fcl::ops::cuda
