// SPDX-License-Identifier: Apache-2.0
// Takes the place of csrc/common/cuda_gather.cuh: plain loads and stores, whose alignment is checked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/cuda_vector.cuh"

namespace fcl::cuda {
namespace {

template <int kSize, typename T>
void check_alignment(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % std::min<size_t>(16, kSize * sizeof(T)) != 0) {
    fcl_emulation::fail("a load or store that is not aligned");
  }
}

template <int kSize, typename T>
Vector<T, kSize> load_streaming(const T* p) {
  check_alignment<kSize>(p);
  Vector<T, kSize> to;
  std::memcpy(&to, p, kSize * sizeof(T));
  return to;
}

template <int kSize, typename T>
Vector<T, kSize> gather_vector(const T* p, bool counts) {
  if (counts) return load_streaming<kSize>(p);
  Vector<T, kSize> zeros;
  std::memset(&zeros, 0, sizeof(zeros));
  return zeros;
}

template <int kSize, typename T>
void store_pieces(T* p, const Vector<T, kSize>& v, bool) {
  check_alignment<kSize>(p);
  std::memcpy(p, &v, kSize * sizeof(T));
}

}  // namespace
}  // namespace fcl::cuda
