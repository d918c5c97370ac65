// SPDX-License-Identifier: Apache-2.0
// The two products of softmax_readout in bfloat16 by vectors of pairs (vdpbf16ps).
#pragma once

#include "ops/cpu/softmax_readout_bf16_workspace.h"

namespace fcl::ops::cpu {
namespace {

class Bf16Products {
 public:
  // Classes that a block holds a multiple of.
  static constexpr int64_t kGroup = kTileRows;

  Bf16Products(const Bf16Workspace& workspace, Arena&) : w(workspace) {}

  static void take_scratch(const Bf16Workspace&, Arena&) {}

  // Calls of Prefetch::step that logits() makes.
  int64_t steps(int64_t rows, int64_t count) const {
    return ceil_div(rows, kPairPanel) * ceil_div(count, kTileRows) * (w.dim / kPairPanel);
  }

  // w.logits[class][row] of packed classes and columns.
  void logits(int64_t rows, int64_t count, Prefetch& ahead) const {
    const TileA<Bf16Pair> classes{
        w.prototypes, w.dim / kPairPanel, kPairPanel / 2, w.block * kPairPanel / 2, 1, &ahead};
    for (int64_t i = 0; i < rows; i += kPairPanel) {
      tile_all_rows<Bf16Pair, kPairPanel / 2>(count, classes, w.columns + i * w.dim / 2,
                                              w.logits + i, kRows, false);
    }
  }

  // w.sum_rows[row][dim] (+)= packed weights times packed values.
  void mean(int64_t rows, int64_t count, bool accumulate) const {
    const TileA<Bf16Pair> weights{w.weights, 1, ceil_div(count, 2), 0, kRows};
    for (int64_t d = 0; d < w.dim; d += kPairPanel) {
      tile_all_rows<Bf16Pair, 1>(rows, weights, w.values + d * w.block / 2, w.sum_rows + d, w.dim,
                                 accumulate);
    }
  }

 private:
  const Bf16Workspace& w;
};

}  // namespace
}  // namespace fcl::ops::cpu
