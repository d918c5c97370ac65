// SPDX-License-Identifier: Apache-2.0
// Takes the place of csrc/common/cuda_mma.cuh: the same functions in scalar code, with the
// fragments of the PTX ISA (chapter "Warp Level Matrix Instructions"; the product itself is in
// fibers.cpp). Products are summed exactly
// and added to the accumulator with truncation, which is no better than what tensor cores do.
// Shared memory is checked: addresses that leave it, or are not aligned, end the launch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/cuda_device.cuh"

namespace fcl::cuda {
namespace {

// Not zero, so that offsets taken for addresses show.
inline uint32_t shared_base() { return 4096; }
inline unsigned char* shared_at(uint32_t at, uint32_t bytes) {
  return fcl_emulation::shared_memory(at - shared_base(), bytes);
}

inline uint32_t load_shared(uint32_t at) {
  uint32_t value;
  std::memcpy(&value, shared_at(at, 4), 4);
  return value;
}
inline void load_shared(uint32_t (&to)[4], uint32_t at) { std::memcpy(to, shared_at(at, 16), 16); }
inline void store_shared(uint32_t at, uint32_t value) { std::memcpy(shared_at(at, 4), &value, 4); }
inline void store_shared(uint32_t at, const uint32_t (&value)[4]) {
  std::memcpy(shared_at(at, 16), value, 16);
}

inline void copy_async(uint32_t to, const void* from, bool inside) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) fcl_emulation::fail("copy_async: not aligned");
  fcl_emulation::copy_async(shared_at(to, 16), inside ? from : nullptr, 16);
}
inline void commit_copies() { fcl_emulation::commit_copies(); }
template <int kPending>
void wait_copies() {
  fcl_emulation::wait_copies(kPending);
}

template <bool kTransposed>
void load_matrices_as(uint32_t (&to)[4], uint32_t row) {
  fcl_emulation::exchange_words(&row, 1);
  const int lane = fcl_emulation::lane();
  for (int i = 0; i < 4; ++i) {
    const auto half = [&](int r, int c) -> uint32_t {
      uint16_t value;
      std::memcpy(&value, shared_at(*fcl_emulation::words_of(8 * i + r), 16) + 2 * c, 2);
      return value;
    };
    const int a = lane / 4;
    const int b = lane % 4 * 2;
    to[i] = kTransposed ? half(b, a) | half(b + 1, a) << 16 : half(a, b) | half(a, b + 1) << 16;
  }
}
inline void load_matrices(uint32_t (&to)[4], uint32_t row) { load_matrices_as<false>(to, row); }
inline void load_matrices_transposed(uint32_t (&to)[4], uint32_t row) {
  load_matrices_as<true>(to, row);
}

// Toward zero. Bits of a float grow with its magnitude.
inline float truncate(double x) {
  const float nearest = static_cast<float>(x);
  const bool is_beyond = std::fabs(static_cast<double>(nearest)) > std::fabs(x);
  return is_beyond ? bits_to_float(float_to_bits(nearest) - 1) : nearest;
}

template <int kDepth>
void add_product(float (&d)[4], const float (&mine)[kDepth * 3 / 4]) {
  double sums[4];
  fcl_emulation::multiply_fragments<kDepth>(mine, sums);
  for (int i = 0; i < 4; ++i) d[i] = truncate(static_cast<double>(d[i]) + sums[i]);
}

template <typename S>
void multiply_matrices(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  float values[12];
  for (int i = 0; i < 12; ++i) {
    const S half{static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16))};
    values[i] = load_as<float>(&half);
  }
  add_product<16>(d, values);
}

inline void multiply_matrices_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                   uint32_t b1) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b0, b1};
  float values[6];
  for (int i = 0; i < 6; ++i) {
    values[i] = bits_to_float(words[i] & 0xffffe000u);  // the bits that tf32 lacks are ignored
  }
  add_product<8>(d, values);
}

inline uint16_t round_half(float x, BFloat16) {
  const uint32_t bits = float_to_bits(x);
  if (std::isnan(x)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline uint16_t round_half(float x, Float16) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7fff;
  const float magnitude = std::fabs(x);
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  int exponent = magnitude == 0.0f ? -24 : std::max(std::ilogb(magnitude) - 10, -24);
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -exponent)));
  return sign | static_cast<uint16_t>(((exponent + 24) << 10) + mantissa);
}
template <typename S>
uint32_t pack_pair(float low, float high) {
  return round_half(low, S{}) | static_cast<uint32_t>(round_half(high, S{})) << 16;
}

inline int opaque(int value) { return value; }

inline float exp2_approximate(float x) { return std::exp2(x); }

}  // namespace
}  // namespace fcl::cuda
