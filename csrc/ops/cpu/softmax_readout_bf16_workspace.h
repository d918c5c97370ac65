// SPDX-License-Identifier: Apache-2.0
// Scratch memory of softmax_readout's forward pass in bfloat16.
#pragma once

#include "common/tile_bf16.h"
#include "ops/cpu/softmax_readout_forward.h"

namespace fcl::ops::cpu {
namespace {

// Block sizes and scratch of one task. Classes are packed twice: pairs along the dims for the
// logits, pairs of classes for the mean. Blocks hold whole groups of what the products compute at
// once.
struct Bf16Workspace {
  int64_t dim;           // padded to whole panels
  int64_t block;         // classes per block, a multiple of `group`
  Bf16Pair* columns;     // [kRows/kPairPanel][dim/2][kPairPanel], embeddings
  Bf16Pair* prototypes;  // [dim/kPairPanel][block][kPairPanel/2], pairs of dims
  Bf16Pair* values;      // [dim/kPairPanel][block/2][kPairPanel], pairs of classes
  Bf16Pair* weights;     // [block/2][kRows], pairs of classes
  float* logits;         // [block][kRows]
  float* logit_factor;   // [block]
  float* norms;          // [block], 1 / |w_c| where prototypes are normalised, else 1
  float* sum_rows;       // [kRows][dim]

  Bf16Workspace(const ReadoutProblem& p, Arena& arena, int64_t group)
      : dim(round_up(p.dim, kPairPanel)),
        block(block_classes(4 * dim + 6 * kRows, 6 * kRows * dim) / group * group) {
    columns = arena.take<Bf16Pair>(kRows * dim / 2);
    prototypes = arena.take<Bf16Pair>(block * dim / 2);
    values = arena.take<Bf16Pair>(block * dim / 2);
    weights = arena.take<Bf16Pair>(block / 2 * kRows);
    logits = arena.take<float>(block * kRows);
    logit_factor = arena.take<float>(block);
    norms = arena.take<float>(block);
    sum_rows = arena.take<float>(kRows * dim);
  }
};

}  // namespace
}  // namespace fcl::ops::cpu
