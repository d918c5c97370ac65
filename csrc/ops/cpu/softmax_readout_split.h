// SPDX-License-Identifier: Apache-2.0
// Operands of softmax_readout of float32 by tile products (AMX): each is split into three numbers
// of bfloat16 whose sum it is (common/split_bf16.h), and six of their nine products are summed in
// float. What is left out is below a float's own rounding, so results are as accurate as those of
// the vector units, at up to twice their speed. Everything but the products is the same code:
// bounds, 2^z, exact logits, sums.
//
// In each tile, pair j along k holds the numbers j and j + 16 of the 32 of a step: any order is
// right that both operands share, and this one needs no shuffles.
#pragma once

#include "common/split_bf16.h"
#include "common/tile_amx.h"
#include "ops/cpu/softmax_readout_blocks.h"

namespace fcl::ops::cpu {
namespace {

// Pairs of a tile, and of its three parts together.
constexpr int64_t kTile = kAmxRows * kAmxPairs;
constexpr int64_t kSplitTile = kSplitParts * kTile;
// What a block of classes and a block of rows may take of a processor's L2 cache: those with tile
// products have 2 MiB.
constexpr int64_t kSplitBytes = 1792 * 1024;
constexpr int64_t kFewestSplitClasses = 2 * kAmxBlock;
// Steps of a product that 32 columns in the first-level cache stay for.
constexpr int64_t kSplitDepth = 4;
// Fewer rows than this do not make up for splitting the classes.
constexpr int64_t kFewestSplitRows = 80;
// Norms within these bounds, and weights that are products of them, keep all three parts in range.
constexpr float kLeastSplit = 0x1p-60f;
constexpr float kMostSplit = 0x1p60f;

inline bool can_be_split(float norm) { return norm >= kLeastSplit && norm <= kMostSplit; }

// Operands of products as they lie one part after the other, tile rows without gaps.
inline AmxOperand split_operand(const Bf16Pair* data, int64_t steps) {
  return {data, kAmxPairs, steps * kSplitTile, kSplitTile, kTile};
}

// Row `row` of the tile at `to`: pairs of low[j] and high[j].
inline void store_split(SplitFloats low, SplitFloats high, int64_t row, Bf16Pair* to) {
  to += row * kAmxPairs;
  _mm512_storeu_si512(to, join_halves(low.first, high.first));
  _mm512_storeu_si512(to + kTile, join_halves(low.second, high.second));
  _mm512_storeu_si512(to + 2 * kTile, join_halves(low.third, high.third));
}

inline SplitFloats split_at(const float* from) { return split_floats(_mm512_loadu_ps(from)); }

// Packed columns (pack_columns) as tiles [rows/16][dim/32] of [16 pairs of dims][16 rows].
inline void split_columns(const float* columns, int64_t rows, int64_t dim, Bf16Pair* to) {
  for (int64_t begin = 0; begin < round_up(rows, kAmxBlock); begin += kAmxRows) {
    const float* panel = columns + begin / kPanel<float> * kPanel<float> * dim;
    const float* from = panel + begin % kPanel<float>;
    for (int64_t d = 0; d < dim; d += kAmxBlock, to += kSplitTile) {
      for (int64_t j = 0; j < kAmxRows; ++j) {
        store_split(split_at(from + (d + j) * kPanel<float>),
                    split_at(from + (d + kAmxRows + j) * kPanel<float>), j, to);
      }
    }
  }
}

// Packed rows in one of two layouts or both; null: not in it. As rows of tiles, [row/16][dim/32] of
// [16 rows][16 pairs of dims], and as pairs, [dim/16][groups] of [16 pairs of rows][16 dims].
struct SplitLayouts {
  Bf16Pair* by_row;
  Bf16Pair* by_pair;
  int64_t dim;     // padded
  int64_t groups;  // of 32 rows, in by_pair

  // Splits group `group` of 32 rows, of which there are `rows`; zeros take the place of others.
  // Tile after tile, as a processor writes faster what lies together.
  void store_group(int64_t group, PackedClasses<float> from, int64_t rows) const {
    const int64_t steps = dim / kAmxBlock;
    for (int64_t d = 0; d < dim; d += kAmxBlock) {
      const int64_t row_tile = (group * 2 * steps + d / kAmxBlock) * kSplitTile;
      const int64_t pair_tile = (d / kAmxRows * groups + group) * kSplitTile;
      const float* panel = from.data + d * from.panel_rows;
      for (int64_t j = 0; j < kAmxRows; ++j) {
        const float* row = panel + j * kPanel<float>;
        const float* other = row + kAmxRows * kPanel<float>;
        SplitFloats row_low{}, row_high{}, other_low{}, other_high{};
        if (j < rows) {
          row_low = split_at(row);
          row_high = split_at(row + kAmxRows);
        }
        if (j + kAmxRows < rows) {
          other_low = split_at(other);
          other_high = split_at(other + kAmxRows);
        }
        if (by_row != nullptr) {
          store_split(row_low, row_high, j, by_row + row_tile);
          store_split(other_low, other_high, j, by_row + row_tile + steps * kSplitTile);
        }
        if (by_pair != nullptr) {
          store_split(row_low, other_low, j, by_pair + pair_tile);
          store_split(row_high, other_high, j, by_pair + pair_tile + groups * kSplitTile);
        }
      }
    }
  }
};

// Splits a block of classes. Returns the largest norm of one, as pack_classes does, with 1 / |w_c|
// in `norms` where prototypes are normalised and did not come packed; `group_memory` holds the
// packed rows of a group.
inline float split_classes(const ReadoutProblem& p, int64_t begin, int64_t count,
                           const SplitLayouts& to, float* group_memory, float* norms) {
  float largest = 0;
  for (int64_t first = 0; first < count; first += kAmxBlock) {
    const int64_t rows = first + kAmxBlock < count ? kAmxBlock : count - first;
    PackedClasses<float> group{group_memory, kAmxBlock};
    if (p.packed != nullptr) {
      group = classes_packed_before<float>(p, begin + first);
    } else {
      for (int64_t c = 0; c < rows; ++c) {
        const float squared =
            pack_class<float>(p, begin + first + c, to.dim, kAmxBlock,
                              group_memory + c * kPanel<float>, norms + first + c);
        largest = larger_or_nan(squared, largest);
      }
    }
    to.store_group(first / kAmxBlock, group, rows);
  }
  if (p.packed != nullptr) return largest_norm_packed_before<float>(p, begin, count);
  return largest_packed_norm(p, largest);
}

// Weights [class][row] as rows of tiles, [row/16][groups] of [16 rows][16 pairs of classes].
// Classes from `count` on weigh nothing.
inline void split_weights_by_row(const float* weights, int64_t rows, int64_t count, int64_t groups,
                                 Bf16Pair* to) {
  for (int64_t i = 0; i < rows; i += kAmxRows) {
    for (int64_t group = 0; group < ceil_div(count, kAmxBlock); ++group) {
      Vec<float> halves[2][kAmxRows];
      for (int64_t half = 0; half < 2; ++half) {
        for (int64_t j = 0; j < kAmxRows; ++j) {
          const int64_t c = group * kAmxBlock + half * kAmxRows + j;
          halves[half][j] = c < count ? load(weights + c * kRows + i) : Vec<float>{};
        }
        transpose<float>(halves[half]);
      }
      Bf16Pair* tile = to + (i / kAmxRows * groups + group) * kSplitTile;
      for (int64_t j = 0; j < kAmxRows; ++j) {
        store_split(split_floats((__m512)halves[0][j]), split_floats((__m512)halves[1][j]), j,
                    tile);
      }
    }
  }
}

// Weights [class][row] as rows of tiles, [class/16][kRows/32] of [16 classes][16 pairs of rows].
// Rows from `rows` on and classes from `count` on weigh nothing.
inline void split_weights_by_class(const float* weights, int64_t rows, int64_t count,
                                   Bf16Pair* to) {
  constexpr int64_t kSteps = kRows / kAmxBlock;
  for (int64_t c = 0; c < round_up(count, kAmxBlock); ++c) {
    Bf16Pair* tile = to + c / kAmxRows * kSteps * kSplitTile;
    for (int64_t i = 0; i < rows; i += kAmxBlock, tile += kSplitTile) {
      const auto half = [&](int64_t begin) {
        const int64_t left = c < count ? rows - begin : 0;
        const __mmask16 mask =
            left >= kAmxRows ? 0xFFFF : static_cast<__mmask16>((1u << (left > 0 ? left : 0)) - 1);
        return split_floats(_mm512_maskz_loadu_ps(mask, weights + c * kRows + begin));
      };
      store_split(half(i), half(i + kAmxRows), c % kAmxRows, tile);
    }
  }
}

// Classes per block, whole groups: as many as the cache holds beside what does not depend on them.
inline int64_t split_block(int64_t bytes_per_class, int64_t fixed_bytes) {
  const int64_t fit = (kSplitBytes - fixed_bytes) / bytes_per_class / kAmxBlock * kAmxBlock;
  return fit > kSplitDepth * kAmxBlock ? kSplitDepth * kAmxBlock
         : fit < kFewestSplitClasses   ? kFewestSplitClasses
                                       : fit;
}

// Bytes of a number in three parts.
constexpr int64_t kSplitSize = kSplitParts * 2;

// product_logits by tiles.
inline void product_logits_split(const Bf16Pair* classes, const Bf16Pair* columns, int64_t dim,
                                 int64_t rows, int64_t count, float* out, Prefetch* ahead) {
  const int64_t steps = dim / kAmxBlock;
  for (int64_t first = 0; first < steps; first += kSplitDepth) {
    const int64_t depth = first + kSplitDepth < steps ? kSplitDepth : steps - first;
    for (int64_t i = 0; i < rows; i += kAmxBlock) {
      const Bf16Pair* of_rows = columns + (i / kAmxRows * steps + first) * kSplitTile;
      for (int64_t c = 0; c < count; c += kAmxBlock) {
        const Bf16Pair* of_classes = classes + (c / kAmxRows * steps + first) * kSplitTile;
        amx_product<kSplitParts>(split_operand(of_classes, steps), split_operand(of_rows, steps),
                                 depth, out + c * kRows + i, kRows, first > 0, ahead);
      }
    }
  }
}

}  // namespace
}  // namespace fcl::ops::cpu
