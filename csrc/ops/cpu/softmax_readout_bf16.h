// SPDX-License-Identifier: Apache-2.0
// Forward pass of softmax_readout in bfloat16 with the processor's own products of pairs, by
// vectors (softmax_readout_pairs.h) or by tiles (softmax_readout_amx.h). Products are exact and
// sums float, as for bfloat16 anywhere; only the weights 2^(z - m) are rounded to bfloat16 before
// they meet the values, never their sum.
#pragma once

#ifdef __AMX_BF16__
#include "ops/cpu/softmax_readout_amx.h"
#else
#include "ops/cpu/softmax_readout_pairs.h"
#endif

namespace fcl::ops::cpu {
namespace {

// Values [begin, begin + 32) of a row; zeros past its end.
inline __m512i load_row_part(const BFloat16* row, int64_t begin, int64_t dim) {
  const int64_t left = dim - begin;
  const __mmask32 mask = left >= kPairPanel ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
  return _mm512_maskz_loadu_epi16(mask, row + begin);
}

inline float squared_norm(const BFloat16* row, int64_t dim) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t d = 0; d < dim; d += kPairPanel) {
    const __m512bh part = (__m512bh)load_row_part(row, d, dim);
    sum = _mm512_dpbf16_ps(sum, part, part);
  }
  return _mm512_reduce_add_ps(sum);
}

// Packs the rows and returns their largest norm.
inline float pack_columns_bf16(const BFloat16* embeddings, int64_t rows, int64_t dim,
                               const Bf16Workspace& w) {
  float largest = 0;
  for (int64_t begin = 0; begin < round_up(rows, kPairPanel); begin += kLanes<float>) {
    Bf16Pair* to = w.columns + begin / kPairPanel * kPairPanel * w.dim / 2 + begin % kPairPanel;
    for (int64_t d = 0; d < w.dim; d += kPairPanel) {
      Vec<uint32_t> square[kLanes<float>];
      for (int64_t i = 0; i < kLanes<float>; ++i) {
        square[i] = begin + i < rows
                        ? (Vec<uint32_t>)load_row_part(embeddings + (begin + i) * dim, d, dim)
                        : Vec<uint32_t>{};
      }
      transpose<uint32_t>(square);
      for (int64_t j = 0; j < kLanes<float>; ++j) {
        _mm512_storeu_si512(to + (d / 2 + j) * kPairPanel, (__m512i)square[j]);
      }
    }
  }
  for (int64_t i = 0; i < rows; ++i) {
    const float squared = squared_norm(embeddings + i * dim, dim);
    largest = squared > largest || squared != squared ? squared : largest;
  }
  return __builtin_sqrtf(largest);
}

// Packs a block of classes and sets their factors; returns the largest norm a logit sees.
inline float pack_classes_bf16(const ReadoutProblem& p, const Bf16Workspace& w, int64_t begin,
                               int64_t count) {
  const BFloat16* first = static_cast<const BFloat16*>(p.prototypes) + begin * p.dim;
  const float factor = static_cast<float>(p.scale * kLog2E);
  float largest = 0;
  for (int64_t c = 0; c < count; c += 2) {
    const BFloat16* low_row = first + c * p.dim;
    const bool has_high = c + 1 < count;
    const BFloat16* high_row = has_high ? low_row + p.dim : low_row;
    __m512 squares_low = _mm512_setzero_ps();
    __m512 squares_high = _mm512_setzero_ps();
    for (int64_t d = 0; d < w.dim; d += kPairPanel) {
      const __m512i low = load_row_part(low_row, d, p.dim);
      const __m512i high = load_row_part(high_row, d, p.dim);
      Bf16Pair* by_dim = w.prototypes + (d * w.block + c * kPairPanel) / 2;
      _mm512_storeu_si512(by_dim, low);
      _mm512_storeu_si512(by_dim + kPairPanel / 2, high);
      interleave_pairs(low, has_high ? high : _mm512_setzero_si512(),
                       w.values + (d * w.block + c * kPairPanel) / 2);
      squares_low = _mm512_dpbf16_ps(squares_low, (__m512bh)low, (__m512bh)low);
      squares_high = _mm512_dpbf16_ps(squares_high, (__m512bh)high, (__m512bh)high);
    }
    const float squared[2] = {_mm512_reduce_add_ps(squares_low),
                              _mm512_reduce_add_ps(squares_high)};
    for (int64_t i = 0; i < 2; ++i) {
      w.norms[c + i] = p.normalize ? inverse_norm(squared[i]) : 1.0f;
      w.logit_factor[c + i] = factor * w.norms[c + i];
      largest = squared[i] > largest || squared[i] != squared[i] ? squared[i] : largest;
    }
  }
  if (p.normalize) return largest != largest ? largest : 1.0001f;  // a little above 1: rounding
  return __builtin_sqrtf(largest);
}

// Whether m = 0 keeps weights 2^z |w_c|^-1 and their products with values in range, for |z| <=
// row_bound * class_bound: |w_c|^-1 lies in [2^-64, 2^40], or its square would not be a number, and
// the processor's products of pairs take what is below 2^-126 for 0. All blocks of normalised
// classes answer alike: beside a block with m = 0, another's maximum could not be lower.
inline bool weights_fit(float row_bound, float class_bound) { return row_bound * class_bound < 60; }

// What rounding does to the sum of each row's weights since the last flush. Dividing it out of the
// mean takes away most of the error: all of it where one class has all the weight.
struct RoundingSums {
  double exact[kRows];
  double rounded[kRows];

  void reset() {
    for (int64_t i = 0; i < kRows; ++i) exact[i] = rounded[i] = 0;
  }
  void shrink(const float* factors, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      exact[i] *= static_cast<double>(factors[i]);
      rounded[i] *= static_cast<double>(factors[i]);
    }
  }
  void correct(int64_t rows, int64_t padded_dim, float* sum_rows) const {
    for (int64_t i = 0; i < rows; ++i) {
      if (rounded[i] == 0) continue;
      const float factor = static_cast<float>(exact[i] / rounded[i]);
      for (int64_t d = 0; d < padded_dim; ++d) sum_rows[i * padded_dim + d] *= factor;
    }
  }
};

// weights[c/2][row] = logits (by now 2^(z - m)) times the class's norm, rounded to nearest even.
inline void round_weights(const Bf16Workspace& w, int64_t rows, int64_t count, bool normalize,
                          RoundingSums& sums) {
  for (int64_t i = 0; i < rows; i += kLanes<float>) {
    Vec<float> exact{};
    Vec<float> rounded{};
    for (int64_t c = 0; c < count; c += 2) {
      Vec<float> low = load(w.logits + c * kRows + i);
      Vec<float> high = c + 1 < count ? load(w.logits + (c + 1) * kRows + i) : Vec<float>{};
      if (normalize) {
        low *= w.norms[c];
        high *= w.norms[c + 1];
      }
      const __m512i low_bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)low));
      const __m512i high_bits =
          _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)high)), 16);
      _mm512_storeu_si512(w.weights + c / 2 * kRows + i, _mm512_or_si512(low_bits, high_bits));
      exact += low + high;
      rounded += (Vec<float>)_mm512_slli_epi32(low_bits, 16) + (Vec<float>)high_bits;
    }
    for (int lane = 0; lane < kLanes<float>; ++lane) {
      sums.exact[i + lane] += static_cast<double>(exact[lane]);
      sums.rounded[i + lane] += static_cast<double>(rounded[lane]);
    }
  }
}

// Scratch bytes of forward_bf16.
inline size_t scratch_bytes_bf16(const ReadoutProblem& p) {
  Arena arena{nullptr};
  const Bf16Workspace w(p, arena, Bf16Products::kGroup);
  Bf16Products::take_scratch(w, arena);
  return arena.used;
}

// As forward_typed, for bfloat16 without separate values.
inline void forward_bf16(const ReadoutProblem& p, int64_t row, int64_t rows, int64_t begin,
                         int64_t end, void* scratch, void* base_out, double* sum_out,
                         void* mean_out) {
  Arena arena{static_cast<char*>(scratch)};
  const Bf16Workspace w(p, arena, Bf16Products::kGroup);
  const Bf16Products products(w, arena);
  float* base_total = static_cast<float*>(base_out);
  float* mean = static_cast<float*>(mean_out);
  const float row_bound =
      pack_columns_bf16(static_cast<const BFloat16*>(p.embeddings) + row * p.dim, rows, p.dim, w) *
      static_cast<float>(p.scale * kLog2E);
  start_totals(p, rows, begin < end, base_total, sum_out, mean);
  RunningSums<float> running;
  RoundingSums rounding;
  for (int64_t flush = begin; flush < end; flush += kReadoutFlush) {
    const int64_t flush_end = flush + kReadoutFlush < end ? flush + kReadoutFlush : end;
    running.reset();
    rounding.reset();
    for (int64_t c = flush; c < flush_end; c += w.block) {
      const int64_t count = c + w.block < flush_end ? w.block : flush_end - c;
      const float class_bound = pack_classes_bf16(p, w, c, count);
      Prefetch ahead =
          prefetch_block<BFloat16>(p, c + count, w.block, end, products.steps(rows, count));
      products.logits(rows, count, ahead);
      mask_excluded(p, row, rows, c, count, w.logits);
      const bool bounded =
          is_bounded(p, row_bound, class_bound) && weights_fit(row_bound, class_bound);
      const bool shrinks =
          exponentiate<true, float>(w.logits, rows, count, bounded, w.logit_factor, running);
      if (mean == nullptr) continue;
      if (shrinks) {
        shrink_rows(running, rows, w.dim, w.sum_rows);
        rounding.shrink(running.shrink, rows);
      }
      round_weights(w, rows, count, p.normalize, rounding);
      products.mean(rows, count, c != flush);
    }
    if (mean != nullptr) rounding.correct(rows, w.dim, w.sum_rows);
    merge_running(running, w.sum_rows, flush == begin, rows, p.value_dim, w.dim, base_total,
                  sum_out, mean);
  }
}

}  // namespace
}  // namespace fcl::ops::cpu
