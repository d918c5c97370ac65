// SPDX-License-Identifier: Apache-2.0
// Forward pass of softmax_readout of float32 by tile products (softmax_readout_split.h).
#pragma once

#include "ops/cpu/softmax_readout_forward.h"
#include "ops/cpu/softmax_readout_split.h"

namespace fcl::ops::cpu {
namespace {

// Blocks of rows that share split classes: splitting them takes a fifth of the time of one.
constexpr int64_t kSplitRowBlocks = 2;

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

}  // namespace
}  // namespace fcl::ops::cpu
