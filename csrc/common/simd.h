// SPDX-License-Identifier: Apache-2.0
// Vectors as wide as the including file's ISA, through the compiler's vector extensions: one kernel
// source, compiled once per ISA. Internal to each unit (see half.h for why), so include it only
// from ops/cpu/*_impl.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/half.h"

namespace fcl {
namespace {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
inline constexpr int kTileRows = 14;  // 14 x 2 accumulators + 2 operands of 32 registers
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
inline constexpr int kTileRows = 6;  // 6 x 2 accumulators + 2 operands + 1 broadcast of 16
#else
inline constexpr int kVectorBytes = 16;
inline constexpr int kTileRows = 6;
#endif

template <typename T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
struct VecOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  // The same vector at an address aligned to its element only.
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
};
template <typename T>
using Vec = typename VecOf<T>::type;

template <typename T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}
template <typename T>
inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
}
template <typename T>
inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};  // x - 0 keeps signed zeros and NaN
}
// v with its lanes moved around the end.
template <typename T, int... kLane>
inline Vec<T> rotate(Vec<T> v, int lanes, std::integer_sequence<int, kLane...>) {
  using Index = Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>>;
  return __builtin_shuffle(v, Index{((kLane + lanes) % kLanes<T>)...});
}
// By halves: one lane after the other would wait for its own last addition.
template <typename T>
inline T reduce_add(Vec<T> v) {
#pragma GCC unroll 4
  for (int half = kLanes<T> / 2; half > 0; half /= 2) {
    v += rotate<T>(v, half, std::make_integer_sequence<int, kLanes<T>>{});
  }
  return v[0];
}

// Whether any lane of a comparison's result is true.
template <typename Mask>
inline bool any(Mask mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256((__m256i)mask, (__m256i)mask) == 0;
#else
  typedef int64_t Words __attribute__((vector_size(kVectorBytes)));
  const Words words = (Words)mask;
  return (words[0] | words[1]) != 0;
#endif
}

// Transposes a square of lanes: v[i][j] <-> v[j][i]. Each stage swaps the off-diagonal halves of
// blocks twice as large as the stage before.
template <typename T, int... kLane>
inline void transpose_stage(Vec<T>* v, int half, std::integer_sequence<int, kLane...>) {
  constexpr int L = kLanes<T>;
  using Index = Vec<std::conditional_t<sizeof(T) == 8, int64_t, int32_t>>;
  const Index first = {((kLane & half) == 0 ? kLane : L + kLane - half)...};
  const Index second = {((kLane & half) == 0 ? kLane + half : L + kLane)...};
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if ((i & half) != 0) continue;
    const Vec<T> a = v[i];
    const Vec<T> b = v[i + half];
    v[i] = __builtin_shuffle(a, b, first);
    v[i + half] = __builtin_shuffle(a, b, second);
  }
}
template <typename T>
inline void transpose(Vec<T>* v) {
#pragma GCC unroll 4
  for (int half = 1; half < kLanes<T>; half *= 2) {
    transpose_stage<T>(v, half, std::make_integer_sequence<int, kLanes<T>>{});
  }
}

// The polynomial of exp2 below: 2^f for |f| <= 1/2.
inline Vec<float> exp2_fraction(Vec<float> f) {
  Vec<float> p = broadcast(0.00015345811614642102f);
  p = p * f + 0.0013399931216668722f;
  p = p * f + 0.009618488958570523f;
  p = p * f + 0.05550328776973399f;
  p = p * f + 0.2402264689062048f;
  p = p * f + 0.6931472057372625f;
  return p * f + 1.0f;
}

// 2^x. Relative error 4e-9 + rounding (float), 1e-16 + rounding (double). Results below the
// smallest normal number lose digits or flush to zero; NaN stays NaN; +-inf give inf and 0.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
inline Vec<float> exp2(Vec<float> x) {
  // Both see an infinite x as a fraction of 0, so that scalef alone decides the result.
  const __m512 whole = _mm512_roundscale_ps((__m512)x, 0);
  const __m512 fraction = _mm512_reduce_ps((__m512)x, 0);
  return (Vec<float>)_mm512_scalef_ps((__m512)exp2_fraction((Vec<float>)fraction), whole);
}
#else
inline Vec<float> exp2(Vec<float> x) {
  const Vec<float> lowest = broadcast(-126.0f);
  const auto underflows = x < lowest;
  const Vec<float> highest = broadcast(128.0f);
  Vec<float> clamped = underflows ? lowest : x;
  clamped = clamped > highest ? highest : clamped;
  // Adding 1.5 * 2^23 rounds to an integer, which then sits in the low mantissa bits.
  const Vec<float> magic = broadcast(12582912.0f);
  const Vec<float> shifted = clamped + magic;
  const Vec<float> fraction = clamped - (shifted - magic);
  const Vec<float> p = exp2_fraction(fraction);
  using Bits = Vec<int32_t>;
  // 2^n through the exponent field; n = 128 gives +inf there.
  const Bits exponent = ((Bits)shifted - (Bits)magic + 127) << 23;
  const Vec<float> result = p * (Vec<float>)exponent;
  return underflows ? Vec<float>{} : result;
}
#endif
inline Vec<double> exp2(Vec<double> x) {
  const Vec<double> lowest = broadcast(-1022.0);
  const auto underflows = x < lowest;
  const Vec<double> highest = broadcast(1024.0);
  Vec<double> clamped = underflows ? lowest : x;
  clamped = clamped > highest ? highest : clamped;
  const Vec<double> magic = broadcast(6755399441055744.0);  // 1.5 * 2^52
  const Vec<double> shifted = clamped + magic;
  const Vec<double> y = (clamped - (shifted - magic)) * 0.6931471805599453;
  // exp(y), |y| <= 0.347: the Taylor remainder after y^13 is below 5e-18.
  Vec<double> p = broadcast(1.0 / 6227020800.0);
  p = p * y + 1.0 / 479001600.0;
  p = p * y + 1.0 / 39916800.0;
  p = p * y + 1.0 / 3628800.0;
  p = p * y + 1.0 / 362880.0;
  p = p * y + 1.0 / 40320.0;
  p = p * y + 1.0 / 5040.0;
  p = p * y + 1.0 / 720.0;
  p = p * y + 1.0 / 120.0;
  p = p * y + 1.0 / 24.0;
  p = p * y + 1.0 / 6.0;
  p = p * y + 0.5;
  p = p * y + 1.0;
  p = p * y + 1.0;
  using Bits = Vec<int64_t>;
  const Bits exponent = ((Bits)shifted - (Bits)magic + 1023) << 52;
  const Vec<double> result = p * (Vec<double>)exponent;
  return underflows ? Vec<double>{} : result;
}

// The same functions on one number, so that scalar tails round as the vectors do.
template <typename T>
inline T exp2_scalar(T x) {
  return exp2(broadcast(x))[0];
}

}  // namespace
}  // namespace fcl
