// SPDX-License-Identifier: Apache-2.0
// The exponentials of the Hopper readout: accumulators of a tile of logits -> weights of the
// classes, with the reference exponent and the sum of each row. A thread has two rows, which it
// shares with the three others of its quad.
#pragma once

#include <type_traits>

#include "common/half.h"
#include "common/sm90_layout.h"
#include "ops/cuda/readout_sm90.h"

namespace fcl::ops::cuda {

struct alignas(8) FloatPair {
  float x, y;
};

// The running reference follows the maximum lazily: sums are rescaled only once a logit exceeds it
// by kSlack (in powers of two). kHeadroom lifts float16 weights above its subnormals; class factors
// may be large, so they get none. Products stay below 2^16 either way.
template <typename S, bool kFactors>
struct SoftmaxRange {
  static constexpr bool kNarrow = std::is_same_v<S, Float16>;
  static constexpr float kSlack = kNarrow ? 4 : 8;
  static constexpr float kHeadroom = kNarrow && !kFactors ? 11 : 0;
};

// A weight times its class's factor. Tiny rows have huge factors: float16 must stay finite.
template <typename S>
FCL_DEVICE float scaled_weight(float weight, float factor) {
  constexpr float kLargest = 65504;
  const float scaled = weight * factor;
  return std::is_same_v<S, Float16> && scaled > kLargest ? kLargest : scaled;
}

template <class Hw>
struct RowSoftmax {
  float base[2];    // weights are 2^(logit - base); -inf before the first class
  double sum[2];    // of this thread's columns
  float keep[2];    // what the last step multiplied earlier sums by
  int excluded[2];  // class, from the split's first one; -1: none

  FCL_DEVICE void start(const Sm90Readout& p, int64_t row, int64_t first_class, int64_t classes) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      base[r] = p.fixed_shift ? p.shift : -Hw::infinity();
      sum[r] = 0;
      keep[r] = 1;
      excluded[r] = -1;
      const int64_t at = row + 8 * r;
      if (p.exclude == nullptr || at >= p.num_rows) continue;
      const int64_t from_first = p.exclude[at] - first_class;
      if (from_first >= 0 && from_first < classes) excluded[r] = static_cast<int>(from_first);
    }
  }

  // Goes on from the partial maxima [splits][N] and sums of an earlier launch. All splits take the
  // largest reference, so that weights of the next classes are comparable.
  FCL_DEVICE void resume(const Sm90Readout& p, const float* before, int64_t row, int splits,
                         int64_t split) {
    const int lane = Hw::thread() % 4;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t at = row + 8 * r;
      const bool inside = at < p.num_rows;
      float top = -Hw::infinity();
#pragma unroll 4
      for (int s = lane; inside && s < splits; s += 4) {
        top = Hw::max(top, before[s * p.num_rows + at]);
      }
      top = Hw::max(top, Hw::shuffle_xor(top, 1));
      top = Hw::max(top, Hw::shuffle_xor(top, 2));
      if (!inside) continue;
      const float own = before[split * p.num_rows + at];
      const float factor = own == top ? 1.0f : Hw::exp2(own - top);
      base[r] = top;
      sum[r] = lane == 0 ? p.sum[split * p.num_rows + at] * static_cast<double>(factor) : 0.0;
    }
  }

  // An infinite reference (no class so far, or a +inf logit) must not meet inf - inf.
  FCL_DEVICE static float finite(float x) {
    return x == Hw::infinity() || x == -Hw::infinity() ? 0.0f : x;
  }

  // Products of tile classes [first, first + 2 kCount) -> weights; `classes` are valid, `factors`
  // is where the tile's are in shared memory. True if some row of the warp moved its reference: at
  // once where the maximum rises (kFollows), or lazily.
  template <typename S, bool kFactors, bool kFollows = false, int kCount>
  FCL_DEVICE bool step(const Sm90Readout& p, float (&s)[kCount], int first, int classes,
                       uint32_t factors) {
    using Range = SoftmaxRange<S, kFactors>;
    constexpr float kSlack = kFollows ? 0 : Range::kSlack;
    const int column = fcl::sm90::accumulator_column(Hw::thread() % fcl::sm90::kWarpgroup, 0);
    if constexpr (kFactors) {
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        const FloatPair f = Hw::template load<FloatPair>(factors + 4 * (column + i * 2));
        s[i] *= f.x;
        s[i + 1] *= f.y;
        s[i + 2] *= f.x;
        s[i + 3] *= f.y;
      }
    }
    const uint32_t hole0 = static_cast<uint32_t>(excluded[0] - first);
    const uint32_t hole1 = static_cast<uint32_t>(excluded[1] - first);
    if (first + 2 * kCount > classes || hole0 < 2 * kCount || hole1 < 2 * kCount) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int at = column + i / 4 * 8 + i % 2;
        const uint32_t hole = i % 4 < 2 ? hole0 : hole1;
        if (first + at >= classes || static_cast<uint32_t>(at) == hole) s[i] = -Hw::infinity();
      }
    }
    bool moved = false;
    if (!p.fixed_shift) {
      float top[2] = {-Hw::infinity(), -Hw::infinity()};
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        top[i % 4 / 2] = Hw::max(top[i % 4 / 2], s[i]);  // never takes a NaN: the sum will have it
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        top[r] = Hw::max(top[r], Hw::shuffle_xor(top[r], 1));
        top[r] = Hw::max(top[r], Hw::shuffle_xor(top[r], 2));
        const float wanted = top[r] * p.scale - Range::kHeadroom;
        const bool moves = wanted > base[r] + kSlack;
        keep[r] = moves ? Hw::exp2(base[r] - wanted) : 1.0f;
        base[r] = moves ? wanted : base[r];
        moved = moved || moves;
      }
      moved = Hw::any(moved);
    }
    const float minus[2] = {-finite(base[0]), -finite(base[1])};
    float added[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      s[i] = Hw::exp2(Hw::multiply_add(s[i], p.scale, minus[i % 4 / 2]));
      added[i % 4 / 2] += s[i];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] = sum[r] * static_cast<double>(keep[r]) + static_cast<double>(added[r]);
    }
    return moved;
  }

  // Weights of the classes' rows, as the left operand of the next product.
  template <typename S, bool kFactors, int kCount>
  FCL_DEVICE void pack(float (&s)[kCount], uint32_t factors, uint32_t (&weights)[kCount / 2]) {
    const int column = fcl::sm90::accumulator_column(Hw::thread() % fcl::sm90::kWarpgroup, 0);
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      if constexpr (kFactors) {
        const FloatPair f = Hw::template load<FloatPair>(factors + 4 * (column + i * 2));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          s[i + j] = scaled_weight<S>(s[i + j], j % 2 == 0 ? f.x : f.y);
        }
      }
      weights[i / 2] = Hw::template pack<S>(s[i], s[i + 1]);
      weights[i / 2 + 1] = Hw::template pack<S>(s[i + 2], s[i + 3]);
    }
  }

  // Partial maximum and sum of the two rows.
  FCL_DEVICE void store(const Sm90Readout& p, int64_t row, int64_t split) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += Hw::shuffle_xor(sum[r], 1);
      sum[r] += Hw::shuffle_xor(sum[r], 2);
      const int64_t at = row + 8 * r;
      if (Hw::thread() % 4 != 0 || at >= p.num_rows) continue;
      p.max[split * p.num_rows + at] = base[r];
      p.sum[split * p.num_rows + at] = sum[r];
    }
  }
};

}  // namespace fcl::ops::cuda
