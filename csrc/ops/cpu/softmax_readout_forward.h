// SPDX-License-Identifier: Apache-2.0
// Forward pass of softmax_readout over a range of rows and classes. Logits are in base 2: the
// factor scale * log2(e) is folded into the packed embeddings.
//
// Sums are relative to a base m, 2^(z - m). Where norms prove that no sum of 2^z can leave the
// range of a float, m = 0 and no maximum is looked for (static shift); other blocks track the
// running maximum, so any scale is safe.
#pragma once

#include "ops/cpu/softmax_readout_blocks.h"

namespace fcl::ops::cpu {
namespace {

// Whether sums over all classes of 2^z and of 2^z w stay in range with m = 0, for |z| <= row_bound
// * class_bound. Also false for NaN.
template <typename T>
bool is_bounded(const ReadoutProblem& p, T row_bound, T class_bound) {
  const double exponent = static_cast<double>(row_bound) * static_cast<double>(class_bound);
  if (!(exponent < 120) || p.values != nullptr) return false;
  const double largest = static_cast<double>(class_bound > T(1) ? class_bound : T(1));
  return exp2_scalar<double>(exponent) * static_cast<double>(p.num_classes) * largest < 0x1p120;
}

// The largest norm of the packed rows.
template <typename T>
T largest_column_norm(const T* columns, int64_t rows, int64_t padded_dim) {
  T largest = 0;
  for (int64_t begin = 0; begin < rows; begin += kPanel<T>) {
    Vec<T> squares[2] = {};
    for (int64_t d = 0; d < padded_dim; ++d) {
      const T* from = columns + begin * padded_dim + d * kPanel<T>;
      squares[0] += load(from) * load(from);
      squares[1] += load(from + kLanes<T>) * load(from + kLanes<T>);
    }
    for (int lane = 0; lane < kPanel<T>; ++lane) {
      const T squared = squares[lane / kLanes<T>][lane % kLanes<T>];
      largest = squared > largest || squared != squared ? squared : largest;
    }
  }
  return __builtin_sqrt(largest);
}

// Running base m and sum of 2^(z - m) of each row since the last flush.
template <typename T>
struct RunningSums {
  alignas(64) T base[kRows];
  alignas(64) T shrink[kRows];  // what sums made before the last block must be multiplied by
  double sum[kRows];

  void reset() {
    for (int64_t i = 0; i < kRows; ++i) {
      base[i] = minus_infinity<T>();
      sum[i] = 0;
    }
  }
};

// logits -> 2^(logits - base) in place; updates the running sums. A class_factor [classes]
// multiplies the logits first. Returns whether an earlier base grew.
template <bool kFactor, typename T>
bool exponentiate(T* logits, int64_t rows, int64_t count, bool bounded, const T* class_factor,
                  RunningSums<T>& running) {
  constexpr int L = kLanes<T>;
  const Vec<T> infinite = broadcast(-minus_infinity<T>());
  bool any_shrinks = false;
  for (int64_t begin = 0; begin < rows; begin += L) {
    const Vec<T> old_base = load(running.base + begin);
    Vec<T> new_base = old_base;
    if (bounded) {
      new_base = new_base > Vec<T>{} ? new_base : Vec<T>{};
    } else {
      for (int64_t c = 0; c < count; ++c) {
        Vec<T> z = load(logits + c * kRows + begin);
        if constexpr (kFactor) z *= class_factor[c];
        new_base = z > new_base ? z : new_base;
      }
    }
    // An infinite base (all classes excluded so far, or a +inf logit) must not meet inf - inf.
    const auto is_infinite = (new_base == infinite) | (new_base == -infinite);
    const Vec<T> base = is_infinite ? Vec<T>{} : new_base;
    Vec<T> sum{};
    for (int64_t c = 0; c < count; ++c) {
      T* at = logits + c * kRows + begin;
      Vec<T> z = load(at);
      if constexpr (kFactor) z *= class_factor[c];
      const Vec<T> e = exp2(z - base);
      store(at, e);
      sum += e;
    }
    const Vec<T> shrink = exp2(old_base - base);
    store(running.base + begin, new_base);
    store(running.shrink + begin, shrink);
    for (int lane = 0; lane < L; ++lane) {
      running.sum[begin + lane] = running.sum[begin + lane] * static_cast<double>(shrink[lane]) +
                                  static_cast<double>(sum[lane]);
      any_shrinks |= new_base[lane] > old_base[lane] && old_base[lane] != minus_infinity<T>();
    }
  }
  return any_shrinks;
}

// sum_rows [row][padded_dim] times the running shrink factors.
template <typename T>
void shrink_rows(const RunningSums<T>& running, int64_t rows, int64_t padded_dim, T* sum_rows) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < padded_dim; ++d) sum_rows[i * padded_dim + d] *= running.shrink[i];
  }
}

// Merges the sums since the last flush into the totals, under the larger of the two bases.
template <typename T>
void merge_running(const RunningSums<T>& running, const T* sum_rows, int64_t rows,
                   int64_t value_dim, int64_t padded_dim, T* base_total, double* sum_total,
                   T* mean) {
  for (int64_t i = 0; i < rows; ++i) {
    const T larger = running.base[i] > base_total[i] ? running.base[i] : base_total[i];
    const bool is_infinite = larger == minus_infinity<T>() || larger == -minus_infinity<T>();
    const T base = is_infinite ? T(0) : larger;
    const T keep = exp2_scalar(base_total[i] - base);
    const T add = exp2_scalar(running.base[i] - base);
    base_total[i] = larger;
    sum_total[i] =
        sum_total[i] * static_cast<double>(keep) + running.sum[i] * static_cast<double>(add);
    if (mean == nullptr) continue;
    T* to = mean + i * value_dim;
    const T* from = sum_rows + i * padded_dim;
    for (int64_t d = 0; d < value_dim; ++d) to[d] = to[d] * keep + from[d] * add;
  }
}

template <typename T>
void start_totals(const ReadoutProblem& p, int64_t rows, T* base_total, double* sum_total,
                  T* mean) {
  for (int64_t i = 0; i < rows; ++i) {
    base_total[i] = minus_infinity<T>();
    sum_total[i] = 0;
  }
  if (mean != nullptr) clear(mean, rows * p.value_dim);
}

template <typename S>
void forward_typed(const ReadoutProblem& p, int64_t row, int64_t rows, int64_t begin, int64_t end,
                   void* scratch, void* base_out, double* sum_out, void* mean_out) {
  using T = AccumulateOf<S>;
  Arena arena{static_cast<char*>(scratch)};
  const Workspace<T> w(p, arena, false);
  T* base_total = static_cast<T*>(base_out);
  T* mean = static_cast<T*>(mean_out);
  pack_columns<T>(static_cast<const S*>(p.embeddings) + row * p.dim, rows, p.dim, w.dim,
                  static_cast<T>(p.scale * kLog2E), w.columns);
  const T row_bound = largest_column_norm(w.columns, rows, w.dim);
  start_totals(p, rows, base_total, sum_out, mean);
  RunningSums<T> running;
  for (int64_t flush = begin; flush < end; flush += kReadoutFlush) {
    const int64_t flush_end = flush + kReadoutFlush < end ? flush + kReadoutFlush : end;
    running.reset();
    for (int64_t c = flush; c < flush_end; c += w.block) {
      const int64_t count = c + w.block < flush_end ? w.block : flush_end - c;
      const T class_bound = pack_classes<S>(p, w, c, count, mean != nullptr);
      product_logits(w, w.prototypes, w.dim, w.columns, rows, count, w.logits);
      mask_excluded(p, row, rows, c, count, w.logits);
      const bool shrinks = exponentiate<false, T>(
          w.logits, rows, count, is_bounded(p, row_bound, class_bound), nullptr, running);
      if (mean == nullptr) continue;
      if (shrinks) shrink_rows(running, rows, w.value_dim, w.sum_rows);
      product_rows(w, w.logits, w.values, w.value_dim, rows, count, w.sum_rows, c != flush);
    }
    merge_running(running, w.sum_rows, rows, p.value_dim, w.value_dim, base_total, sum_out, mean);
  }
}

}  // namespace
}  // namespace fcl::ops::cpu
