// SPDX-License-Identifier: Apache-2.0
// Gradient to classes of softmax_readout of float32 by tile products (softmax_readout_split.h).
#pragma once

#include "ops/cpu/softmax_readout_backward.h"
#include "ops/cpu/softmax_readout_split.h"

namespace fcl::ops::cpu {
namespace {

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
