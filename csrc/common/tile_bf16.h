// SPDX-License-Identifier: Apache-2.0
// The micro-kernel of tile.h on pairs of bfloat16 (vdpbf16ps): k counts pairs, sums are float.
// Internal to AVX-512-BF16 units.
#pragma once

#include <immintrin.h>

#include "common/tile.h"

namespace fcl {
namespace {

// Two consecutive values along k; the first sits in the low half.
struct Bf16Pair {
  uint32_t bits;
};

template <>
struct Multiply<Bf16Pair> {
  using Sum = float;
  using Operand = __m512bh;
  static Operand load_b(const Bf16Pair* b) { return (__m512bh)_mm512_loadu_si512(b); }
  static void add(Vec<float>& sum, Bf16Pair a, Operand b) {
    const __m512bh pairs = (__m512bh)_mm512_set1_epi32(static_cast<int>(a.bits));
    sum = (Vec<float>)_mm512_dpbf16_ps((__m512)sum, pairs, b);
  }
};

// Columns of a packed panel of pairs: two vectors, as for float.
inline constexpr int kPairPanel = kPanel<float>;

// Interleaves 32 values of two rows: to[j] = (low[j], high[j]).
inline void interleave_pairs(__m512i low, __m512i high, Bf16Pair* to) {
  alignas(64) static constexpr uint16_t kFirst[32] = {0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,
                                                      37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
                                                      11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i first = _mm512_load_si512(kFirst);
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  _mm512_storeu_si512(to, _mm512_permutex2var_epi16(low, first, high));
  _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(low, second, high));
}

}  // namespace
}  // namespace fcl
