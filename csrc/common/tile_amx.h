// SPDX-License-Identifier: Apache-2.0
// The processor's own matrix product of bfloat16 tiles (AMX): 16 x 16 sums of 32 products each in
// 16 cycles, sixteen times the multiply-adds of a vector unit. Internal to AMX units.
#pragma once

#include <immintrin.h>

#include "common/tile_bf16.h"

namespace fcl {
namespace {

// A tile: 16 rows of 64 bytes, so 16 sums or 16 pairs along k.
inline constexpr int64_t kAmxRows = 16;
// A product computes 2 x 2 tiles at a time: each operand loaded serves two of them.
inline constexpr int64_t kAmxBlock = 2 * kAmxRows;
// Pairs along k that one step multiplies.
inline constexpr int64_t kAmxPairs = 16;

// The tile registers of this thread, all of them whole tiles, until it goes out of scope: they are
// part of what the system saves for a thread, so they are given back.
class AmxTiles {
 public:
  AmxTiles() {
    // In memory for good: the compiler does not know how much of it the instruction reads.
    alignas(64) static constexpr Config kWholeTiles;
    _tile_loadconfig(&kWholeTiles);
  }
  ~AmxTiles() { _tile_release(); }
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;

 private:
  struct Config {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
};

// Where the two tiles of an operand lie at each step along k; distances in pairs.
struct AmxOperand {
  const Bf16Pair* data;
  int64_t stride;    // between rows of a tile
  int64_t second;    // from the first tile to the second
  int64_t step;      // from one step to the next
  int64_t part = 0;  // from one part to the next (see amx_product)
};

// One tile of four sums (+)= part kA of A times part kB of B, after loading those not loaded yet.
template <int kA, int kB, int kLoadedA, int kLoadedB>
__attribute__((always_inline)) inline void amx_step(const AmxOperand& a, const AmxOperand& b) {
  const int64_t pair = static_cast<int64_t>(sizeof(Bf16Pair));
  if constexpr (kA != kLoadedA) _tile_loadd(4, a.data + kA * a.part, a.stride * pair);
  if constexpr (kB != kLoadedB) {
    _tile_loadd(6, b.data + kB * b.part, b.stride * pair);
    _tile_loadd(7, b.data + kB * b.part + b.second, b.stride * pair);
  }
  if constexpr (kA != kLoadedA) _tile_loadd(5, a.data + kA * a.part + a.second, a.stride * pair);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// C[32][32] (+)= sum_k A[32][k] B[k][32]: rows of A hold pairs along k, and so does B, [k/2][32].
// With three parts, a number is the sum of three of bfloat16, largest first: of the nine products
// of two such numbers the six largest are computed, and what is left out is at most 2^-24 of the
// whole, half a unit in the last place of a float.
template <int kParts = 1>
inline void amx_product(AmxOperand a, AmxOperand b, int64_t steps, float* c, int64_t c_stride,
                        bool accumulate, Prefetch* ahead = nullptr) {
  static_assert(kParts == 1 || kParts == 3);
  const int64_t c_bytes = c_stride * static_cast<int64_t>(sizeof(float));
  float* low = c + kAmxRows * c_stride;
  // The compiler does not know what memory tiles are loaded from: what was stored there must be.
  asm volatile("" ::: "memory");
  if (accumulate) {
    _tile_loadd(0, c, c_bytes);
    _tile_loadd(1, c + kAmxRows, c_bytes);
    _tile_loadd(2, low, c_bytes);
    _tile_loadd(3, low + kAmxRows, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < steps; ++k) {
    if (ahead != nullptr) ahead->step();
    if constexpr (kParts == 1) {
      amx_step<0, 0, -1, -1>(a, b);
    } else {
      // In an order that loads a part anew only twice.
      amx_step<2, 0, -1, -1>(a, b);
      amx_step<1, 0, 2, 0>(a, b);
      amx_step<0, 0, 1, 0>(a, b);
      amx_step<0, 1, 0, 0>(a, b);
      amx_step<1, 1, 0, 1>(a, b);
      amx_step<0, 2, 1, 1>(a, b);
    }
    a.data += a.step;
    b.data += b.step;
  }
  _tile_stored(0, c, c_bytes);
  _tile_stored(1, c + kAmxRows, c_bytes);
  _tile_stored(2, low, c_bytes);
  _tile_stored(3, low + kAmxRows, c_bytes);
}

}  // namespace
}  // namespace fcl
