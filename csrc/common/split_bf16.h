// SPDX-License-Identifier: Apache-2.0
// A float as the sum of three numbers of bfloat16: 24 bits are three times 8, so nothing is lost,
// and products of bfloat16 can stand for those of floats (tile_amx.h). Holds for 0 and for absolute
// values from 2^-100 to 2^100; smaller ones lose what is below 2^-126. Internal to AVX-512 units.
#pragma once

#include <immintrin.h>

namespace fcl {
namespace {

inline constexpr int kSplitParts = 3;

// Largest first. Each is the nearest to what the parts before it leave, and sits in the high half
// of its lane; what rounding leaves in the low half of the last one is not part of it.
struct SplitFloats {
  __m512 first, second, third;
};

// The nearest number of 8 bits, by Veltkamp's splitting: x (2^16 + 1) loses the low bits of x to
// rounding before x 2^16 is taken off again.
inline __m512 round_to_8_bits(__m512 x) {
  return _mm512_fnmadd_ps(x, _mm512_set1_ps(0x1p16f),
                          _mm512_mul_ps(x, _mm512_set1_ps(0x1.0001p16f)));
}

inline SplitFloats split_floats(__m512 x) {
  const __m512 first = round_to_8_bits(x);
  const __m512 rest = _mm512_sub_ps(x, first);
  const __m512 second = round_to_8_bits(rest);
  return {first, second, _mm512_sub_ps(rest, second)};
}

// Lanes of pairs of bfloat16: the high halves of `low`, then those of `high`.
inline __m512i join_halves(__m512 low, __m512 high) {
  return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32((__m512i)low, 16), (__m512i)high);
}

}  // namespace
}  // namespace fcl
