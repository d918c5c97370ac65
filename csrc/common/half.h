// SPDX-License-Identifier: Apache-2.0
// The storage dtypes of the kernels and their conversion to the type they accumulate in: float for
// bfloat16, float16 and float32, double for float64. Torch-free; everything is internal to the
// including unit, because ISA files must not share inline functions (the linker keeps one copy, and
// it could be the AVX-512 one).
#pragma once

#include <cstdint>
#include <cstring>

namespace fcl {

enum class Dtype { kFloat32, kFloat64, kBfloat16, kFloat16 };

namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

template <typename T>
inline T load_as(const float* p) {
  return static_cast<T>(*p);
}
template <typename T>
inline T load_as(const double* p) {
  return static_cast<T>(*p);
}
template <typename T>
inline T load_as(const BFloat16* p) {
  return static_cast<T>(bits_to_float(static_cast<uint32_t>(p->bits) << 16));
}
template <typename T>
inline T load_as(const Float16* p) {
  // Shift exponent and mantissa into place; the multiplication rebiases the exponent and turns
  // subnormals into normals at once. Inf and NaN keep an all-ones exponent.
  const uint32_t magnitude = static_cast<uint32_t>(p->bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(p->bits & 0x8000u) << 16;
  const float rebased = bits_to_float(magnitude) * bits_to_float(0x77800000u);  // 2^112
  const uint32_t finite = float_to_bits(rebased);
  const uint32_t special = magnitude | 0x7f800000u;
  const bool is_special = (p->bits & 0x7c00u) == 0x7c00u;
  return static_cast<T>(bits_to_float((is_special ? special : finite) | sign));
}

// The type a storage type accumulates in.
template <typename S>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};

template <typename S>
struct Tag {
  using type = S;
};

// Calls f with the Tag of the storage type that dtype names.
template <typename F>
inline void dispatch_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(Tag<float>{});
    case Dtype::kFloat64:
      return f(Tag<double>{});
    case Dtype::kBfloat16:
      return f(Tag<BFloat16>{});
    case Dtype::kFloat16:
      return f(Tag<Float16>{});
  }
}

}  // namespace
}  // namespace fcl
