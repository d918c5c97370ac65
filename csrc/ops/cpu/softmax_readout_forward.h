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

// Bits that values of norms up to class_bound lie below 1.
template <typename T>
double bits_below_one(T class_bound) {
  return class_bound < T(1) ? -__builtin_log2(static_cast<double>(class_bound)) : 0;
}

// Whether sums over all classes of 2^z and of 2^z w stay in range with m = 0, for |z| <= row_bound
// * class_bound. Also false for NaN.
template <typename T>
bool is_bounded(const ReadoutProblem& p, T row_bound, T class_bound) {
  const double exponent = static_cast<double>(row_bound) * static_cast<double>(class_bound);
  if (!(exponent + bits_below_one(class_bound) < 120) || p.values != nullptr) return false;
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

// Classes whose weights are added in one go.
constexpr int64_t kSumDepth = 16;

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

struct NoRefinement {};

// Largest base that logits are computed again beside.
constexpr double kMostRefined = 0x1p22;

// A float logit of 40 bits is off by up to 2e-6, and so is its weight. Where one of few classes
// makes up the sum (a trained model at a large scale), that is the error of loss and gradient: such
// weights are computed again from logits in double. Others average out.
template <typename T>
struct Refinement {
  const ReadoutProblem& p;
  int64_t row, rows, first_class;
  const T* base_total;  // of the earlier flushes
  const double* sum_total;
  const RunningSums<T>& running;

  // Weights above the threshold are worth it: at least 1/32 of the sum so far, from a logit of at
  // least 20 bits.
  void threshold(int64_t begin, Vec<T> base, Vec<T>* above) const {
    const Vec<T> old_base = load(running.base + begin);
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      const int64_t i = begin + lane;
      T known = 0;
      // What follows the last row are the totals of the next split, which another thread writes.
      if (i < rows) {
        known = static_cast<T>(running.sum[i]) * exp2_scalar(old_base[lane] - base[lane]) +
                static_cast<T>(sum_total[i]) * exp2_scalar(base_total[i] - base[lane]);
      }
      const T large = exp2_scalar(static_cast<T>(20) - base[lane]);
      (*above)[lane] = known * T(1.0 / 32) > large ? known * T(1.0 / 32) : large;
      // The base itself is off by more than a bit: exact logits less it may have any exponent.
      if (!(base[lane] < T(kMostRefined))) (*above)[lane] = -minus_infinity<T>();
    }
  }

  void refine(int64_t begin, int64_t c, Vec<T> base, Vec<T> above, T* weights) const {
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      if (!(weights[lane] > above[lane])) continue;
      const double exponent = exact_logit(begin + lane, c) - static_cast<double>(base[lane]);
      weights[lane] = static_cast<T>(exp2_scalar<double>(exponent));
    }
  }

  double exact_logit(int64_t i, int64_t c) const {
    const float* x = static_cast<const float*>(p.embeddings) + (row + i) * p.dim;
    const float* w = static_cast<const float*>(p.prototypes) + (first_class + c) * p.dim;
    // Eight sums: one alone would wait for its own last addition.
    double dots[8] = {};
    double squares[8] = {};
    for (int64_t d = 0; d < p.dim; ++d) {
      dots[d % 8] += static_cast<double>(x[d]) * static_cast<double>(w[d]);
      squares[d % 8] += static_cast<double>(w[d]) * static_cast<double>(w[d]);
    }
    double dot = 0;
    double squared = 0;
    for (int j = 0; j < 8; ++j) {
      dot += dots[j];
      squared += squares[j];
    }
    return p.scale * kLog2E * dot * (p.normalize ? inverse_norm(squared) : 1.0);
  }
};

// logits -> 2^(logits - base) in place; updates the running sums. A class_factor [classes]
// multiplies the logits first. Returns whether an earlier base grew.
template <bool kFactor, typename T, typename Refine = NoRefinement>
bool exponentiate(T* logits, int64_t rows, int64_t count, bool bounded, const T* class_factor,
                  RunningSums<T>& running, const Refine& refinement = {}) {
  constexpr bool kRefines = __is_same(Refine, NoRefinement) == false;
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
    [[maybe_unused]] Vec<T> above;
    if constexpr (kRefines) refinement.threshold(begin, base, &above);
    // Sums of a few classes, added up with the rounding error of each addition carried along.
    Vec<T> sum{};
    Vec<T> carry{};
    for (int64_t first = 0; first < count; first += kSumDepth) {
      const int64_t last = first + kSumDepth < count ? first + kSumDepth : count;
      Vec<T> part{};
      for (int64_t c = first; c < last; ++c) {
        T* at = logits + c * kRows + begin;
        Vec<T> z = load(at);
        if constexpr (kFactor) z *= class_factor[c];
        Vec<T> e = exp2(z - base);
        store(at, e);
        if constexpr (kRefines) {
          if (any(e > above)) {
            refinement.refine(begin, c, base, above, at);
            e = load(at);
          }
        }
        part += e;
      }
      const Vec<T> corrected = part - carry;
      const Vec<T> total = sum + corrected;
      // Of an infinite sum nothing is carried: it would be a NaN.
      carry = total - total == Vec<T>{} ? (total - sum) - corrected : Vec<T>{};
      sum = total;
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

// Merges the sums since the last flush into the totals, under the larger of the two bases. The
// first time, `mean` holds nothing yet.
template <typename T>
void merge_running(const RunningSums<T>& running, const T* sum_rows, bool is_first, int64_t rows,
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
    if (is_first) {
      for (int64_t d = 0; d < value_dim; ++d) to[d] = from[d] * add;
    } else {
      for (int64_t d = 0; d < value_dim; ++d) to[d] = to[d] * keep + from[d] * add;
    }
  }
}

// Totals of no classes; the mean is written by the first flush, where there is one.
template <typename T>
void start_totals(const ReadoutProblem& p, int64_t rows, bool has_classes, T* base_total,
                  double* sum_total, T* mean) {
  for (int64_t i = 0; i < rows; ++i) {
    base_total[i] = minus_infinity<T>();
    sum_total[i] = 0;
  }
  if (mean != nullptr && !has_classes) clear(mean, rows * p.value_dim);
}

// Up to kRows rows, and where their totals go.
template <typename T>
struct RowBlock {
  const Workspace<T>& w;  // of which products fill logits and sum_rows
  int64_t row, rows;
  T* base_total;
  double* sum_total;
  T* mean;             // or null
  T largest_norm = 0;  // of its packed rows
  RunningSums<T> running{};
};

// The two products of the forward pass in the type that sums are in.
template <typename S>
class VectorProducts {
 public:
  using T = AccumulateOf<S>;

  VectorProducts(const ReadoutProblem& problem, const Workspace<T>& workspace)
      : p(problem), w(workspace) {}

  int64_t classes_per_block() const { return w.block; }

  // Packs rows and sets the largest norm of one.
  void take_rows(RowBlock<T>& block) {
    pack_columns<T>(static_cast<const S*>(p.embeddings) + block.row * p.dim, block.rows, p.dim,
                    w.dim, p.scale * kLog2E, w.columns);
    block.largest_norm = largest_column_norm(w.columns, block.rows, w.dim);
  }

  // Packs a block of classes, unless they came packed, and returns the largest norm of one.
  T take_classes(int64_t begin, int64_t count) {
    first_class = begin;
    if (p.packed != nullptr) {
      classes = classes_packed_before<T>(p, begin);
      return largest_norm_packed_before<T>(p, begin, count);
    }
    classes = {w.prototypes, w.block};
    return pack_classes<S>(p, w, begin, count);
  }

  // Whether the second product is exact for weights 2^z, |z| <= row_bound * class_bound.
  bool weights_fit(T, T) const { return true; }

  // Calls of Prefetch::step that logits() makes.
  int64_t steps(const RowBlock<T>& block, int64_t count) const {
    return logit_steps<T>(block.rows, count, w.dim);
  }

  // w.logits[class][row] of the block's classes.
  void logits(const RowBlock<T>& block, int64_t count, Prefetch& ahead) {
    product_logits(classes, w.dim, w.columns, block.rows, count, w.logits, &ahead);
  }

  // w.sum_rows[row][dim] (+)= weights in w.logits times values.
  void mean(const RowBlock<T>& block, int64_t count, bool accumulate) {
    if (w.separate_values) pack_values<S>(p, w, first_class, count);
    product_rows(w.logits, w.separate_values ? PackedClasses<T>{w.values, w.block} : classes,
                 w.value_dim, block.rows, count, w.sum_rows, accumulate);
  }

 private:
  const ReadoutProblem& p;
  const Workspace<T>& w;
  int64_t first_class = 0;
  PackedClasses<T> classes{};
};

// One block of rows over one block of classes: logits, weights, and their product with the values.
template <typename S, typename Products, typename T>
void forward_block(const ReadoutProblem& p, Products& products, RowBlock<T>& block, int64_t c,
                   int64_t count, T class_bound, bool is_first, Prefetch& ahead) {
  const Workspace<T>& w = block.w;
  products.logits(block, count, ahead);
  mask_excluded(p, block.row, block.rows, c, count, w.logits);
  if constexpr (kIsFloat<S>) {
    if (p.logits != nullptr) {
      __builtin_memcpy(p.logits + (block.row / kRows * p.num_classes + c) * kRows, w.logits,
                       sizeof(float) * static_cast<size_t>(count * kRows));
    }
  }
  const bool bounded = is_bounded(p, block.largest_norm, class_bound) &&
                       products.weights_fit(block.largest_norm, class_bound);
  bool shrinks;
  if constexpr (kIsFloat<S>) {
    const Refinement<T> refinement{
        p, block.row, block.rows, c, block.base_total, block.sum_total, block.running};
    shrinks = exponentiate<false, T>(w.logits, block.rows, count, bounded, nullptr, block.running,
                                     refinement);
  } else {
    shrinks = exponentiate<false, T>(w.logits, block.rows, count, bounded, nullptr, block.running);
  }
  if (block.mean == nullptr) return;
  if (shrinks) shrink_rows(block.running, block.rows, w.value_dim, w.sum_rows);
  products.mean(block, count, !is_first);
}

// Over products of any kind, and blocks of rows that see each block of classes one after the other.
template <typename S, typename Products, typename T = AccumulateOf<S>>
void forward_over(const ReadoutProblem& p, Products& products, RowBlock<T>* blocks,
                  int64_t num_blocks, int64_t begin, int64_t end) {
  for (int64_t k = 0; k < num_blocks; ++k) {
    RowBlock<T>& block = blocks[k];
    products.take_rows(block);
    start_totals(p, block.rows, begin < end, block.base_total, block.sum_total, block.mean);
  }
  const int64_t size = products.classes_per_block();
  for (int64_t flush = begin; flush < end; flush += kReadoutFlush) {
    const int64_t flush_end = flush + kReadoutFlush < end ? flush + kReadoutFlush : end;
    for (int64_t k = 0; k < num_blocks; ++k) blocks[k].running.reset();
    for (int64_t c = flush; c < flush_end; c += size) {
      const int64_t count = c + size < flush_end ? size : flush_end - c;
      const T class_bound = products.take_classes(c, count);
      int64_t steps = 0;
      for (int64_t k = 0; k < num_blocks; ++k) steps += products.steps(blocks[k], count);
      Prefetch ahead = prefetch_block<S>(p, c + count, size, end, steps);
      for (int64_t k = 0; k < num_blocks; ++k) {
        forward_block<S>(p, products, blocks[k], c, count, class_bound, c == flush, ahead);
      }
    }
    for (int64_t k = 0; k < num_blocks; ++k) {
      RowBlock<T>& block = blocks[k];
      merge_running(block.running, block.w.sum_rows, flush == begin, block.rows, p.value_dim,
                    block.w.value_dim, block.base_total, block.sum_total, block.mean);
    }
  }
}

template <typename S>
void forward_typed(const ReadoutProblem& p, int64_t row, int64_t rows, int64_t begin, int64_t end,
                   void* scratch, void* base, double* sum, void* mean) {
  using T = AccumulateOf<S>;
  Arena arena{static_cast<char*>(scratch)};
  const Workspace<T> w(p, arena, false);
  VectorProducts<S> products(p, w);
  RowBlock<T> block{w, row, rows, static_cast<T*>(base), sum, static_cast<T*>(mean)};
  forward_over<S>(p, products, &block, 1, begin, end);
}

}  // namespace
}  // namespace fcl::ops::cpu
