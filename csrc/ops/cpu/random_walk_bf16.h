// SPDX-License-Identifier: Apache-2.0
// The step of random_walk from a state stored as bfloat16: half the bytes to gather. Sums are
// float32; the result is bfloat16 again, or float32. Included by random_walk_impl.h alone.
//
// A word holds two neighbouring values. A shift and a mask make floats of its low and high half,
// without moving anything across lanes, so sums are kept apart for even and odd columns.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "common/simd.h"
#include "ops/cpu/random_walk_kernels.h"
#include "ops/cpu/random_walk_tuning.h"

namespace fcl::ops::cpu {
namespace {

using Words = Vec<uint32_t>;

inline Vec<float> even_values(Words pairs) { return (Vec<float>)(pairs << 16); }
inline Vec<float> odd_values(Words pairs) { return (Vec<float>)(pairs & 0xffff0000u); }

// To nearest, ties to even, in the upper half of each word. A NaN stays one: rounded up, its
// mantissa could run over into the sign.
inline Words round_bf16(Vec<float> x) {
  const Words bits = (Words)x;
  const Words rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Words quiet = bits | 0x400000u;
  return x != x ? quiet : rounded;
}
inline uint16_t round_bf16(float x) {
  return static_cast<uint16_t>(round_bf16(broadcast(x))[0] >> 16);
}

// Alternate lanes of two vectors (first: 0 the even, 1 the odd ones), and its inverse.
template <int kFirst, int... kLane>
inline Vec<float> alternate(Vec<float> low, Vec<float> high, std::integer_sequence<int, kLane...>) {
  return __builtin_shuffle(low, high, Vec<int32_t>{(2 * kLane + kFirst)...});
}
template <int kFirst, int... kLane>
inline Vec<float> zip(Vec<float> even, Vec<float> odd, std::integer_sequence<int, kLane...>) {
  constexpr int L = kLanes<float>;
  return __builtin_shuffle(even, odd, Vec<int32_t>{(kLane % 2 * L + (kLane + kFirst) / 2)...});
}

template <typename Index, typename Out>
struct Bf16Step {
  const int64_t* crow;
  const Index* col;
  const float* values;
  const BFloat16* state;
  const float* restart;
  Out* out;
  int64_t dim;
  float damping, restart_weight;
  int64_t last_edge, ahead;
};

// Blends in the restart and stores two vectors' worth of values.
template <typename Out>
inline void finish_pairs(const float* restart, float damping, float restart_weight, Vec<float> even,
                         Vec<float> odd, Out* out) {
  constexpr int L = kLanes<float>;
  constexpr auto kLane = std::make_integer_sequence<int, L>{};
  const Vec<float> low = load(restart);
  const Vec<float> high = load(restart + L);
  if constexpr (std::is_same_v<Out, float>) {
    store(out, damping * zip<0>(even, odd, kLane) + restart_weight * low);
    store(out + L, damping * zip<L>(even, odd, kLane) + restart_weight * high);
  } else {
    const Words lower =
        round_bf16(damping * even + restart_weight * alternate<0>(low, high, kLane)) >> 16;
    const Words upper =
        round_bf16(damping * odd + restart_weight * alternate<1>(low, high, kLane)) & 0xffff0000u;
    // Where rows have an odd number of columns, pairs of values are not aligned as pairs.
    const Words pairs = lower | upper;
    std::memcpy(out, &pairs, sizeof(pairs));
  }
}

// As row_panel of random_walk_impl.h, with kPairs vectors of pairs.
template <typename Index, typename Out, int kPairs>
inline void row_pairs(const Bf16Step<Index, Out>& s, int64_t row, int64_t offset,
                      int64_t last_offset) {
  constexpr int kWidth = 2 * kLanes<float>;
  int64_t at[kPairs];
  for (int v = 0; v + 1 < kPairs; ++v) at[v] = v * kWidth;
  at[kPairs - 1] = last_offset - offset;
  const BFloat16* state = s.state + offset;
  Vec<float> even_total[kPairs] = {};
  Vec<float> odd_total[kPairs] = {};
  const int64_t row_end = s.crow[row + 1];
  for (int64_t begin = s.crow[row]; begin < row_end; begin += kFlush) {
    const int64_t end = begin + kFlush < row_end ? begin + kFlush : row_end;
    Vec<float> even[kPairs] = {};
    Vec<float> odd[kPairs] = {};
    for (int64_t e = begin; e < end; ++e) {
      if (e + s.ahead < s.last_edge) {
        const char* next = reinterpret_cast<const char*>(state + s.col[e + s.ahead] * s.dim);
#pragma GCC unroll 4
        for (int v = 0; v < kPairs; ++v) {
          if (v * kVectorBytes % 64 == 0) __builtin_prefetch(next + v * kVectorBytes);
        }
        __builtin_prefetch(next + 2 * (at[kPairs - 1] + kWidth - 1));
      }
      const int64_t col = s.col[e];
      if (col < 0) continue;
      const BFloat16* from = state + col * s.dim;
      const Vec<float> weight = broadcast(s.values[e]);
#pragma GCC unroll 4
      for (int v = 0; v < kPairs; ++v) {
        Words pairs;
        std::memcpy(&pairs, from + at[v], sizeof(pairs));
        even[v] += weight * even_values(pairs);
        odd[v] += weight * odd_values(pairs);
      }
    }
    if (begin == s.crow[row] && end == row_end) {
      for (int v = 0; v < kPairs; ++v) {
        even_total[v] = even[v];
        odd_total[v] = odd[v];
      }
    } else {
      for (int v = 0; v < kPairs; ++v) {
        even_total[v] += even[v];
        odd_total[v] += odd[v];
      }
    }
  }
  const int64_t first = row * s.dim + offset;
  for (int v = 0; v < kPairs; ++v) {
    finish_pairs(s.restart + first + at[v], s.damping, s.restart_weight, even_total[v],
                 odd_total[v], s.out + first + at[v]);
  }
}

template <typename Index, typename Out, int kPairs = kPanelVectors / 2>
inline void row_pair_vectors(const Bf16Step<Index, Out>& s, int64_t row, int64_t offset,
                             int64_t last_offset, int64_t vectors) {
  if (vectors == kPairs) return row_pairs<Index, Out, kPairs>(s, row, offset, last_offset);
  if constexpr (kPairs > 1) {
    row_pair_vectors<Index, Out, kPairs - 1>(s, row, offset, last_offset, vectors);
  }
}

// Rows shorter than a vector of pairs: one column at a time.
template <typename Index, typename Out>
void short_row_bf16(const Bf16Step<Index, Out>& s, int64_t row) {
  for (int64_t d = 0; d < s.dim; ++d) {
    float total = 0;
    for (int64_t begin = s.crow[row]; begin < s.crow[row + 1]; begin += kFlush) {
      const int64_t end = begin + kFlush < s.crow[row + 1] ? begin + kFlush : s.crow[row + 1];
      float sum = 0;
      for (int64_t e = begin; e < end; ++e) {
        if (s.col[e] < 0) continue;
        sum += s.values[e] * load_as<float>(s.state + s.col[e] * s.dim + d);
      }
      total += sum;
    }
    const int64_t at = row * s.dim + d;
    const float result = s.damping * total + s.restart_weight * s.restart[at];
    if constexpr (std::is_same_v<Out, float>) {
      s.out[at] = result;
    } else {
      s.out[at].bits = round_bf16(result);
    }
  }
}

template <typename Index, typename Out>
void step_bf16_typed(const WalkStep& p, int64_t begin, int64_t end) {
  constexpr int kWidth = 2 * kLanes<float>;
  constexpr int kPairs = kPanelVectors / 2;
  const int64_t panel = p.dim < kPairs * kWidth ? p.dim : kPairs * kWidth;
  const int64_t ahead = kBytesAhead / (2 * panel + 1) + 1;
  const Bf16Step<Index, Out> s{p.crow,
                               static_cast<const Index*>(p.col),
                               static_cast<const float*>(p.values),
                               static_cast<const BFloat16*>(p.state),
                               static_cast<const float*>(p.restart),
                               static_cast<Out*>(p.out),
                               p.dim,
                               static_cast<float>(p.damping),
                               static_cast<float>(1 - p.damping),
                               p.crow[end],
                               ahead < 64 ? ahead : 64};
  for (int64_t row = begin; row < end; ++row) {
    if (p.dim < kWidth) {
      short_row_bf16(s, row);
      continue;
    }
    for (int64_t offset = 0; offset < p.dim; offset += kPairs * kWidth) {
      const int64_t left = p.dim - offset;
      if (left >= kPairs * kWidth) {
        row_pairs<Index, Out, kPairs>(s, row, offset, offset + (kPairs - 1) * kWidth);
      } else {
        row_pair_vectors(s, row, offset, p.dim - kWidth, (left + kWidth - 1) / kWidth);
      }
    }
  }
}

void step_bf16(const WalkStep& p, bool float_out, int64_t begin, int64_t end) {
  if (float_out) {
    p.wide ? step_bf16_typed<int64_t, float>(p, begin, end)
           : step_bf16_typed<int32_t, float>(p, begin, end);
  } else {
    p.wide ? step_bf16_typed<int64_t, BFloat16>(p, begin, end)
           : step_bf16_typed<int32_t, BFloat16>(p, begin, end);
  }
}

}  // namespace
}  // namespace fcl::ops::cpu
