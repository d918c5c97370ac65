// SPDX-License-Identifier: Apache-2.0
// The two products of softmax_readout in bfloat16 by tiles (AMX). Packed classes are the tiles of
// both as they lie; of the weights, [class][row], the second product needs rows of classes, so they
// are turned around 16 x 16 pairs at a time: fewer than the prototypes' would be where D > 128.
#pragma once

#include "common/tile_amx.h"
#include "ops/cpu/softmax_readout_bf16_workspace.h"

namespace fcl::ops::cpu {
namespace {

class Bf16Products {
 public:
  // Classes that a block holds a multiple of.
  static constexpr int64_t kGroup = kAmxBlock;

  Bf16Products(const Bf16Workspace& workspace, Arena& arena)
      : w(workspace), turned(take_scratch(workspace, arena)) {}

  static Bf16Pair* take_scratch(const Bf16Workspace& workspace, Arena& arena) {
    return arena.take<Bf16Pair>(kRows * workspace.block / 2);
  }

  // Calls of Prefetch::step that logits() makes.
  int64_t steps(int64_t rows, int64_t count) const {
    return ceil_div(rows, kAmxBlock) * ceil_div(count, kAmxBlock) * (w.dim / kPairPanel);
  }

  // w.logits[class][row] of packed classes and columns. Up to the next whole group there are
  // others, which nobody reads.
  void logits(int64_t rows, int64_t count, Prefetch& ahead) const {
    for (int64_t i = 0; i < rows; i += kAmxBlock) {
      const AmxOperand columns{w.columns + i * w.dim / 2, kPairPanel, kAmxRows,
                               kAmxPairs * kPairPanel};
      for (int64_t c = 0; c < count; c += kAmxBlock) {
        const AmxOperand classes{w.prototypes + c * kAmxPairs, kAmxPairs, kAmxRows * kAmxPairs,
                                 w.block * kAmxPairs};
        amx_product(classes, columns, w.dim / kPairPanel, w.logits + c * kRows + i, kRows, false,
                    &ahead);
      }
    }
  }

  // w.sum_rows[row][dim] (+)= packed weights times packed values.
  void mean(int64_t rows, int64_t count, bool accumulate) const {
    clear_rest(count);
    const int64_t steps = ceil_div(count, kAmxBlock);
    const int64_t row_tiles = w.block / 2 * kAmxRows;
    for (int64_t i = 0; i < rows; i += kAmxRows) {
      for (int64_t k = 0; k < steps; ++k) {
        turn(w.weights + k * kAmxPairs * kRows + i,
             turned + i / kAmxRows * row_tiles + k * kAmxRows * kAmxPairs);
      }
    }
    for (int64_t d = 0; d < w.dim; d += kPairPanel) {
      const AmxOperand values{w.values + d * w.block / 2, kPairPanel, kAmxRows,
                              kAmxPairs * kPairPanel};
      for (int64_t i = 0; i < rows; i += kAmxBlock) {
        const AmxOperand weights{turned + i / kAmxRows * row_tiles, kAmxPairs, row_tiles,
                                 kAmxRows * kAmxPairs};
        amx_product(weights, values, steps, w.sum_rows + i * w.dim + d, w.dim, accumulate);
      }
    }
  }

 private:
  // The last step of a product over classes may go beyond them: zeros, as anything times a NaN is
  // one.
  void clear_rest(int64_t count) const {
    const int64_t first = ceil_div(count, 2);
    const int64_t pairs = round_up(count, kAmxBlock) / 2 - first;
    if (pairs == 0) return;
    clear(w.weights + first * kRows, pairs * kRows);
    for (int64_t d = 0; d < w.dim; d += kPairPanel) {
      clear(w.values + d * w.block / 2 + first * kPairPanel, pairs * kPairPanel);
    }
  }

  // [16 pairs of classes][16 rows] -> a tile, [16 rows][16 pairs].
  static void turn(const Bf16Pair* from, Bf16Pair* to) {
    Vec<uint32_t> square[kAmxRows];
#pragma GCC unroll 16
    for (int64_t j = 0; j < kAmxRows; ++j) {
      square[j] = (Vec<uint32_t>)_mm512_loadu_si512(from + j * kRows);
    }
    transpose<uint32_t>(square);
#pragma GCC unroll 16
    for (int64_t j = 0; j < kAmxRows; ++j) {
      _mm512_storeu_si512(to + j * kAmxPairs, (__m512i)square[j]);
    }
  }

  const Bf16Workspace& w;
  AmxTiles tiles;
  Bf16Pair* turned;  // [kRows/16][block/32] tiles of weights
};

}  // namespace
}  // namespace fcl::ops::cpu
