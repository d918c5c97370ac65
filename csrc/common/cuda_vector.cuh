// SPDX-License-Identifier: Apache-2.0
// 16-byte loads and stores, where the row length and the addresses allow them.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/cuda_device.cuh"

namespace fcl::cuda {

template <typename T>
inline constexpr int kWide = 16 / sizeof(T);

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Vector {
  T at[kSize];
};

namespace {

template <int kSize, typename T>
__device__ __forceinline__ Vector<T, kSize> load_vector(const T* p) {
  return *reinterpret_cast<const Vector<T, kSize>*>(p);
}
template <int kSize, typename T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T, kSize>& v) {
  *reinterpret_cast<Vector<T, kSize>*>(p) = v;
}

}  // namespace

template <typename T>
bool rows_are_wide(int64_t dim, std::initializer_list<const void*> pointers) {
  bool wide = dim % kWide<T> == 0;
  for (const void* p : pointers) wide = wide && reinterpret_cast<uintptr_t>(p) % 16 == 0;
  return wide;
}

}  // namespace fcl::cuda
