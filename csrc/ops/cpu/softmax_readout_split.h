// SPDX-License-Identifier: Apache-2.0
// softmax_readout of float32 by tile products (AMX): every operand is split into three numbers of
// bfloat16 whose sum it is (common/split_bf16.h), and six of their nine products are summed in
// float. What is left out is below a float's own rounding, so results are as accurate as those of
// the vector units, at up to twice their speed. Everything but the products is the same code:
// bounds, 2^z, exact logits, sums.
//
// In each tile, pair j along k holds the numbers j and j + 16 of the 32 of a step: any order is
// right that both operands share, and this one needs no shuffles.
#pragma once

#include "common/split_bf16.h"
#include "common/tile_amx.h"
#include "ops/cpu/softmax_readout_backward.h"
#include "ops/cpu/softmax_readout_forward.h"

namespace fcl::ops::cpu {
namespace {

// Pairs of a tile, and of its three parts together.
constexpr int64_t kTile = kAmxRows * kAmxPairs;
constexpr int64_t kSplitTile = kSplitParts * kTile;
// What a block of classes and a block of rows may take of a processor's L2 cache: those with tile
// products have 2 MiB.
constexpr int64_t kSplitBytes = 1792 * 1024;
constexpr int64_t kFewestSplitClasses = 2 * kAmxBlock;
// Blocks of rows that share split classes: splitting them takes a fifth of the time of one.
constexpr int64_t kSplitRowBlocks = 2;
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
      Bf16Pair* row_tile = by_row + (group * 2 * steps + d / kAmxBlock) * kSplitTile;
      Bf16Pair* pair_tile = by_pair + (d / kAmxRows * groups + group) * kSplitTile;
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
          store_split(row_low, row_high, j, row_tile);
          store_split(other_low, other_high, j, row_tile + steps * kSplitTile);
        }
        if (by_pair != nullptr) {
          store_split(row_low, other_low, j, pair_tile);
          store_split(row_high, other_high, j, pair_tile + groups * kSplitTile);
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

// VectorProducts by tiles, for blocks of rows that share split classes. What cannot be split goes
// through vectors.
class SplitProducts {
 public:
  SplitProducts(const ReadoutProblem& problem, Arena& arena)
      : p(problem),
        first(problem, arena, false, block_of(problem)),
        groups(first.block / kAmxBlock),
        classes{arena.take<Bf16Pair>(first.block * first.dim * kSplitSize / 4),
                arena.take<Bf16Pair>(first.block * first.dim * kSplitSize / 4), first.dim, groups},
        weights(arena.take<Bf16Pair>(first.block * kRows * kSplitSize / 4)),
        rows{RowOperands(problem, first, arena, false), RowOperands(problem, first, arena, true)} {}

  static int64_t block_of(const ReadoutProblem& p) {
    const int64_t dim = round_up(p.dim, kAmxBlock);
    return split_block(2 * dim * kSplitSize + kRows * (4 + kSplitSize),
                       kRows * dim * (4 + kSplitSize));
  }

  // Of the block of rows that comes as number `k`.
  const Workspace<float>& workspace(int64_t k) const { return rows[k].w; }

  int64_t classes_per_block() const { return first.block; }

  void take_rows(RowBlock<float>& block) {
    RowOperands& operands = rows[index_of(block)];
    operands.vectors.take_rows(block);
    rows_fit = rows_fit && block.largest_norm <= kMostSplit;
    if (rows_fit) split_columns(operands.w.columns, block.rows, first.dim, operands.columns);
  }

  float take_classes(int64_t begin, int64_t count) {
    if (rows_fit) {
      const float norm = split_classes(p, begin, count, classes, first.prototypes, first.norms);
      by_tiles = can_be_split(norm);
      if (by_tiles) return norm;
    }
    rows[1].vectors.take_classes(begin, count);
    return rows[0].vectors.take_classes(begin, count);
  }

  // The smallest weight, 2^-(row_bound * class_bound), times a value of the largest norm has 30
  // bits above what tile products take for 0.
  bool weights_fit(float row_bound, float class_bound) const {
    return !by_tiles ||
           static_cast<double>(row_bound * class_bound) + bits_below_one(class_bound) < 96;
  }

  int64_t steps(const RowBlock<float>& block, int64_t count) const {
    if (!by_tiles) return rows[0].vectors.steps(block, count);
    return ceil_div(block.rows, kAmxBlock) * ceil_div(count, kAmxBlock) * (first.dim / kAmxBlock);
  }

  void logits(const RowBlock<float>& block, int64_t count, Prefetch& ahead) {
    RowOperands& operands = rows[index_of(block)];
    if (!by_tiles) return operands.vectors.logits(block, count, ahead);
    product_logits_split(classes.by_row, operands.columns, first.dim, block.rows, count,
                         block.w.logits, &ahead);
  }

  void mean(const RowBlock<float>& block, int64_t count, bool accumulate) {
    if (!by_tiles) return rows[index_of(block)].vectors.mean(block, count, accumulate);
    const Workspace<float>& w = block.w;
    split_weights_by_row(w.logits, block.rows, count, groups, weights);
    for (int64_t d = 0; d < w.dim; d += kAmxBlock) {
      for (int64_t i = 0; i < block.rows; i += kAmxBlock) {
        amx_product<kSplitParts>(
            split_operand(weights + i / kAmxRows * groups * kSplitTile, groups),
            split_operand(classes.by_pair + d / kAmxRows * groups * kSplitTile, groups),
            ceil_div(count, kAmxBlock), w.sum_rows + i * w.dim + d, w.dim, accumulate);
      }
    }
  }

 private:
  // What a block of rows has for itself; the rest of the workspace is the first one's.
  struct RowOperands {
    Workspace<float> w;
    VectorProducts<float> vectors;
    Bf16Pair* columns;  // [kRows/16][dim/32] tiles

    RowOperands(const ReadoutProblem& p, const Workspace<float>& first, Arena& arena,
                bool is_second)
        : w(first), vectors(p, w), columns(arena.take<Bf16Pair>(kRows * w.dim * kSplitSize / 4)) {
      if (!is_second) return;
      w.columns = arena.take<float>(kRows * w.dim);
      w.sum_rows = arena.take<float>(kRows * w.dim);
    }
    RowOperands(const RowOperands&) = delete;
    RowOperands& operator=(const RowOperands&) = delete;
  };

  int64_t index_of(const RowBlock<float>& block) const { return &block.w == &rows[0].w ? 0 : 1; }

  const ReadoutProblem& p;
  Workspace<float> first;
  AmxTiles tiles;
  int64_t groups;  // of classes in a block
  SplitLayouts classes;
  Bf16Pair* weights;  // [kRows/16][groups] tiles
  RowOperands rows[kSplitRowBlocks];
  bool rows_fit = true;
  bool by_tiles = false;
};

// Whether a forward pass over so many rows goes by tiles.
inline bool forward_splits(const ReadoutProblem& p, int64_t rows) {
  return p.dtype == Dtype::kFloat32 && p.values == nullptr && rows >= kFewestSplitRows;
}

inline size_t scratch_bytes_split(const ReadoutProblem& p) {
  Arena arena{nullptr};
  const SplitProducts products(p, arena);
  return arena.used;
}

inline void forward_split(const ReadoutProblem& p, int64_t row, int64_t rows, int64_t begin,
                          int64_t end, void* scratch, void* base, double* sum, void* mean) {
  Arena arena{static_cast<char*>(scratch)};
  SplitProducts products(p, arena);
  const auto block = [&](int64_t k) {
    const int64_t skipped = k * kRows;
    const int64_t left = rows > skipped ? rows - skipped : 0;
    float* means = static_cast<float*>(mean);
    return RowBlock<float>{products.workspace(k),
                           row + skipped,
                           left < kRows ? left : kRows,
                           static_cast<float*>(base) + skipped,
                           sum + skipped,
                           means == nullptr ? nullptr : means + skipped * p.value_dim};
  };
  RowBlock<float> blocks[kSplitRowBlocks] = {block(0), block(1)};
  forward_over<float>(p, products, blocks, ceil_div(rows, kRows), begin, end);
}

// Where pack_block_split leaves the parts of a block of rows and the norm, behind its floats.
struct SplitBlock {
  Bf16Pair* parts;
  float* norm;  // the largest of a row; of columns none

  SplitBlock(void* blocks, int64_t row, int64_t dim) {
    const int64_t elements = kRows * round_up(dim, kAmxBlock);
    float* floats = packed_block<float>(blocks, row, dim);
    parts = reinterpret_cast<Bf16Pair*>(floats + elements);
    norm = floats + elements + elements * kSplitSize / 4;
  }
};

// VectorClassProducts by tiles. Blocks that cannot be split go through vectors.
class SplitClassProducts {
 public:
  SplitClassProducts(const ReadoutProblem& problem, const ReadoutPackedRows& packed_rows,
                     const Workspace<float>& workspace, Arena& arena)
      : p(problem),
        packed(packed_rows),
        w(workspace),
        vectors(problem, packed_rows, workspace),
        classes{arena.take<Bf16Pair>(w.block * w.dim * kSplitSize / 4), nullptr, w.dim, 0},
        weights(arena.take<Bf16Pair>(w.block * kRows * kSplitSize / 4)) {}

  static int64_t block_of(const ReadoutProblem& p) {
    const int64_t dim = round_up(p.dim, kAmxBlock);
    return split_block(dim * (4 + kSplitSize) + kRows * (4 + kSplitSize),
                       2 * kRows * dim * kSplitSize);
  }

  void take_classes(int64_t begin, int64_t count) {
    classes_fit = can_be_split(split_classes(p, begin, count, classes, w.prototypes, w.norms));
    if (!classes_fit) vectors.take_classes(begin, count);
    first_class = begin;
    has_floats = !classes_fit;
  }

  void logits(int64_t row, int64_t rows, int64_t count) {
    const SplitBlock columns(packed.columns, row, p.dim);
    const float norm = *SplitBlock(packed.rows, row, p.dim).norm;
    if (!classes_fit || !(static_cast<double>(norm) * p.scale * kLog2E <= kMostSplit)) {
      if (!has_floats) vectors.take_classes(first_class, count);
      has_floats = true;
      return vectors.logits(row, rows, count);
    }
    product_logits_split(classes.by_row, columns.parts, w.dim, rows, count, w.logits, nullptr);
  }

  void gradient(const float* from, const float* coefficient, int64_t row, int64_t rows,
                int64_t count, bool accumulate) {
    const SplitBlock of_rows(packed.rows, row, p.dim);
    float largest = 0;
    for (int64_t i = 0; i < rows; ++i) {
      largest = larger_or_nan(__builtin_fabsf(coefficient[i]), largest);
    }
    if (!can_be_split(*of_rows.norm) || !(largest == 0 || can_be_split(largest))) {
      return vectors.gradient(from, coefficient, row, rows, count, accumulate);
    }
    constexpr int64_t kSteps = kRows / kAmxBlock;
    split_weights_by_class(from, rows, count, weights);
    for (int64_t d = 0; d < w.dim; d += kAmxBlock) {
      for (int64_t c = 0; c < count; c += kAmxBlock) {
        amx_product<kSplitParts>(
            split_operand(weights + c / kAmxRows * kSteps * kSplitTile, kSteps),
            split_operand(of_rows.parts + d / kAmxRows * kSteps * kSplitTile, kSteps),
            ceil_div(rows, kAmxBlock), w.sum_classes + c * w.dim + d, w.dim, accumulate);
      }
    }
  }

 private:
  const ReadoutProblem& p;
  const ReadoutPackedRows& packed;
  const Workspace<float>& w;
  VectorClassProducts<float> vectors;
  AmxTiles tiles;
  bool classes_fit = false;
  bool has_floats = false;  // of the block of classes
  int64_t first_class = 0;
  SplitLayouts classes;
  Bf16Pair* weights;  // [block/16][kRows/32] tiles
};

// Whether the gradient to classes goes by tiles. That through the mean, which few losses have, does
// not.
inline bool gradient_splits(const ReadoutProblem& p, const ReadoutBackward& b) {
  return p.dtype == Dtype::kFloat32 && p.num_rows >= kFewestSplitRows && b.grad_mean == nullptr;
}

inline void pack_block_split(const ReadoutProblem& p, const ReadoutBackward& b, int64_t row,
                             int64_t rows, const ReadoutPackedRows& packed) {
  pack_block_typed<float>(p, b, row, rows, packed);
  const int64_t dim = round_up(p.dim, kAmxBlock);
  if (stored_logits<float, float>(p, row, 0) == nullptr) {
    split_columns(packed_block<float>(packed.columns, row, p.dim), rows, dim,
                  SplitBlock(packed.columns, row, p.dim).parts);
  }
  const SplitBlock of_rows(packed.rows, row, p.dim);
  const float* floats = packed_block<float>(packed.rows, row, p.dim);
  const SplitLayouts to{nullptr, of_rows.parts, dim, kRows / kAmxBlock};
  for (int64_t i = 0; i < rows; i += kAmxBlock) {
    to.store_group(i / kAmxBlock, {floats + i * kPanel<float>, kRows}, rows - i);
  }
  float largest = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const float* embedding = static_cast<const float*>(p.embeddings) + (row + i) * p.dim;
    largest = larger_or_nan(
        squared_norm_of<float>(embedding, p.dim, [](int64_t, Vec<float>, Vec<float>) {}), largest);
  }
  *of_rows.norm = __builtin_sqrtf(largest);
}

inline size_t scratch_bytes_split_classes(const ReadoutProblem& p) {
  Arena arena{nullptr};
  const Workspace<float> w(p, arena, true, SplitClassProducts::block_of(p));
  const SplitClassProducts products(p, {}, w, arena);
  return arena.used;
}

inline void backward_classes_split(const ReadoutProblem& p, const ReadoutBackward& b,
                                   const ReadoutPackedRows& packed, int64_t begin, int64_t end,
                                   void* scratch, void* grad_prototypes, void* grad_values) {
  Arena arena{static_cast<char*>(scratch)};
  const Workspace<float> w(p, arena, true, SplitClassProducts::block_of(p));
  SplitClassProducts products(p, packed, w, arena);
  backward_classes_over<float>(p, b, packed, w, products, begin, end,
                               static_cast<float*>(grad_prototypes),
                               static_cast<float*>(grad_values));
}

}  // namespace
}  // namespace fcl::ops::cpu
