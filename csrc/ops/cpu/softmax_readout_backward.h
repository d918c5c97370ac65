// SPDX-License-Identifier: Apache-2.0
// Gradients of softmax_readout: to embeddings over a range of rows and classes, to prototypes and
// values over a range of classes and all rows. Logits are computed again, from the log-sum-exp the
// probabilities follow without another sum.
#pragma once

#include "ops/cpu/softmax_readout_blocks.h"

namespace fcl::ops::cpu {
namespace {

// Logits `from` -> probability, and weights = probability * (coefficient + value_logits); both in
// place of their inputs when value_logits is given, else weights replace the logits.
template <typename T>
void weigh(const T* base, const T* coefficient, int64_t rows, int64_t count, const T* from,
           T* logits, T* value_logits) {
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t begin = 0; begin < rows; begin += kLanes<T>) {
      T* z = logits + c * kRows + begin;
      // No logit is above the log-sum, but rounding of large ones can say so by any amount.
      const Vec<T> below = load(from + c * kRows + begin) - load(base + begin);
      const Vec<T> probability = exp2(below > Vec<T>{} ? Vec<T>{} : below);
      if (value_logits == nullptr) {
        store(z, probability * load(coefficient + begin));
      } else {
        T* y = value_logits + c * kRows + begin;
        store(z, probability);
        store(y, probability * (load(coefficient + begin) + load(y)));
      }
    }
  }
}

// Per-row terms of the gradients for one block of rows; rows past the end get zero weight.
template <typename T>
void load_row_terms(const ReadoutBackward& b, int64_t row, int64_t rows, T* base, T* coefficient) {
  const T* logsumexp = static_cast<const T*>(b.logsumexp) + row;
  const T* given = static_cast<const T*>(b.coefficient) + row;
  for (int64_t i = 0; i < kRows; ++i) {
    const bool real = i < rows && logsumexp[i] != minus_infinity<T>();
    base[i] = real ? static_cast<T>(static_cast<double>(logsumexp[i]) * kLog2E) : T(0);
    coefficient[i] = i < rows ? given[i] : T(0);
  }
}

template <typename S>
void backward_rows_typed(const ReadoutProblem& p, const ReadoutBackward& b, int64_t row,
                         int64_t rows, int64_t begin, int64_t end, void* scratch, void* grad_out) {
  using T = AccumulateOf<S>;
  Arena arena{static_cast<char*>(scratch)};
  const Workspace<T> w(p, arena, false);
  T* grad = static_cast<T*>(grad_out);
  const bool through_mean = b.grad_mean != nullptr;
  pack_columns<T>(static_cast<const S*>(p.embeddings) + row * p.dim, rows, p.dim, w.dim,
                  p.scale * kLog2E, w.columns);
  if (through_mean) {
    pack_columns<T>(static_cast<const T*>(b.grad_mean) + row * p.value_dim, rows, p.value_dim,
                    w.value_dim, 1.0, w.grad_columns);
  }
  alignas(64) T base[kRows];
  alignas(64) T coefficient[kRows];
  load_row_terms(b, row, rows, base, coefficient);
  clear(grad, rows * p.dim);
  const PackedClasses<T> prototypes{w.prototypes, w.block};
  const PackedClasses<T> values{w.values, w.block};
  for (int64_t flush = begin; flush < end; flush += kReadoutFlush) {
    const int64_t flush_end = flush + kReadoutFlush < end ? flush + kReadoutFlush : end;
    for (int64_t c = flush; c < flush_end; c += w.block) {
      const int64_t count = c + w.block < flush_end ? w.block : flush_end - c;
      pack_classes<S>(p, w, c, count);
      if (w.separate_values && through_mean) pack_values<S>(p, w, c, count);
      Prefetch ahead =
          prefetch_block<S>(p, c + count, w.block, end, logit_steps<T>(rows, count, w.dim));
      product_logits(prototypes, w.dim, w.columns, rows, count, w.logits, &ahead);
      mask_excluded(p, row, rows, c, count, w.logits);
      if (through_mean) {
        product_logits(values, w.value_dim, w.grad_columns, rows, count, w.value_logits);
      }
      weigh(base, coefficient, rows, count, w.logits, w.logits,
            through_mean ? w.value_logits : nullptr);
      product_rows(through_mean ? w.value_logits : w.logits, prototypes, w.dim, rows, count,
                   w.sum_rows, c != flush);
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t d = 0; d < p.dim; ++d) {
        grad[i * p.dim + d] += static_cast<T>(p.scale) * w.sum_rows[i * w.dim + d];
      }
    }
  }
}

// Those the forward pass left for this block of rows, from `first_class` on; or null.
template <typename S, typename T>
const T* stored_logits(const ReadoutProblem& p, int64_t row, int64_t first_class) {
  if constexpr (kIsFloat<S>) {
    if (p.logits != nullptr) return p.logits + (row / kRows * p.num_classes + first_class) * kRows;
  }
  return nullptr;
}

// Floats or doubles of one block of packed rows or columns: widest padding of the two, and with
// tile products the same once more in three parts (softmax_readout_split_backward.h), and a norm.
inline int64_t packed_block_size(int64_t dim) {
  const int64_t elements = kRows * round_up(dim, kPanel<float>);
#ifdef __AMX_BF16__
  return elements + elements * 3 / 2 + kLanes<float>;
#else
  return elements;
#endif
}

// The block of the rows from `row` on.
template <typename T>
T* packed_block(void* blocks, int64_t row, int64_t dim) {
  return static_cast<T*>(blocks) + row / kRows * packed_block_size(dim);
}

template <typename S>
void pack_block_typed(const ReadoutProblem& p, const ReadoutBackward& b, int64_t row, int64_t rows,
                      const ReadoutPackedRows& packed) {
  using T = AccumulateOf<S>;
  const S* embeddings = static_cast<const S*>(p.embeddings) + row * p.dim;
  const int64_t dim = round_up(p.dim, kPanel<T>);
  if (stored_logits<S, T>(p, row, 0) == nullptr) {
    pack_columns<T>(embeddings, rows, p.dim, dim, p.scale * kLog2E,
                    packed_block<T>(packed.columns, row, p.dim));
  }
  pack_rows<T>(embeddings, rows, p.dim, kRows, packed_block<T>(packed.rows, row, p.dim));
  if (b.grad_mean == nullptr) return;
  const T* grad_mean = static_cast<const T*>(b.grad_mean) + row * p.value_dim;
  const int64_t value_dim = round_up(p.value_dim, kPanel<T>);
  pack_columns<T>(grad_mean, rows, p.value_dim, value_dim, 1.0,
                  packed_block<T>(packed.grad_columns, row, p.value_dim));
  pack_rows<T>(grad_mean, rows, p.value_dim, kRows,
               packed_block<T>(packed.grad_rows, row, p.value_dim));
}

template <typename T>
void add_sum(const T* sum, T* total, int64_t elements) {
  for (int64_t i = 0; i < elements; ++i) total[i] += sum[i];
}

// Gradient g to a unit row u = inverse_norm * w -> gradient to w: inverse_norm (g - u (u . g)).
template <typename T, typename S>
void through_normalization(const S* row, T inverse_norm, int64_t dim, T* grad) {
  constexpr int64_t L = kLanes<T>;
  // Four sums: one alone would wait for its own last addition.
  Vec<T> sums[4] = {};
  for (int64_t d = 0; d < dim; d += L) {
    sums[d / L % 4] += load_part<T>(row, d, dim) * load_part<T>(grad, d, dim);
  }
  const T along = reduce_add<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  const T factor = along * inverse_norm * inverse_norm;
  for (int64_t d = 0; d < dim; ++d) {
    grad[d] = inverse_norm * (grad[d] - factor * load_as<T>(row + d));
  }
}

// The products of the gradient to classes in the type that sums are in.
template <typename S>
class VectorClassProducts {
 public:
  using T = AccumulateOf<S>;

  VectorClassProducts(const ReadoutProblem& problem, const ReadoutPackedRows& packed_rows,
                      const Workspace<T>& workspace)
      : p(problem), packed(packed_rows), w(workspace) {}

  // Packs a block of classes.
  void take_classes(int64_t begin, int64_t count) { pack_classes<S>(p, w, begin, count); }

  // w.logits[class][row] of the block at `row`.
  void logits(int64_t row, int64_t rows, int64_t count) {
    product_logits(PackedClasses<T>{w.prototypes, w.block}, w.dim,
                   packed_block<T>(packed.columns, row, p.dim), rows, count, w.logits);
  }

  // w.sum_classes[class][dim] (+)= weights[class][row], at most `coefficient` large, times rows.
  void gradient(const T* weights, const T*, int64_t row, int64_t rows, int64_t count,
                bool accumulate) {
    product_classes(weights, packed_block<T>(packed.rows, row, p.dim), w.dim, rows, count,
                    w.sum_classes, accumulate);
  }

 private:
  const ReadoutProblem& p;
  const ReadoutPackedRows& packed;
  const Workspace<T>& w;
};

// Over products of any kind that leave logits and sums where w has them.
template <typename S, typename Products, typename T = AccumulateOf<S>>
void backward_classes_over(const ReadoutProblem& p, const ReadoutBackward& b,
                           const ReadoutPackedRows& packed, const Workspace<T>& w,
                           Products& products, int64_t begin, int64_t end, T* grad_prototypes,
                           T* grad_values) {
  const bool through_mean = b.grad_mean != nullptr;
  const bool want_values = through_mean && (grad_values != nullptr ||
                                            (!w.separate_values && grad_prototypes != nullptr));
  // Few rows need no second accumulator.
  const bool flushes = p.num_rows > kReadoutFlush;
  const PackedClasses<T> values{w.values, w.block};
  alignas(64) T base[kRows];
  alignas(64) T coefficient[kRows];
  for (int64_t c = begin; c < end; c += w.block) {
    const int64_t count = c + w.block < end ? w.block : end - c;
    if (stored_logits<S, T>(p, 0, c) == nullptr || through_mean) {
      products.take_classes(c, count);
      if (w.separate_values && through_mean) pack_values<S>(p, w, c, count);
    } else if (p.normalize) {
      inverse_norms<S>(p, w, c, count);
    }
    if (flushes) {
      clear(w.total_classes, count * w.dim);
      clear(w.total_values, count * w.value_dim);
    }
    for (int64_t row = 0; row < p.num_rows; row += kRows) {
      const int64_t rows = row + kRows < p.num_rows ? kRows : p.num_rows - row;
      load_row_terms(b, row, rows, base, coefficient);
      const T* logits = stored_logits<S, T>(p, row, c);
      if (logits == nullptr) {
        products.logits(row, rows, count);
        mask_excluded(p, row, rows, c, count, w.logits);
        logits = w.logits;
      }
      if (through_mean) {
        product_logits(values, w.value_dim, packed_block<T>(packed.grad_columns, row, p.value_dim),
                       rows, count, w.value_logits);
      }
      weigh(base, coefficient, rows, count, logits, w.logits,
            through_mean ? w.value_logits : nullptr);
      const bool accumulate = row % kReadoutFlush != 0;
      if (grad_prototypes != nullptr) {
        products.gradient(through_mean ? w.value_logits : w.logits, coefficient, row, rows, count,
                          accumulate);
      }
      if (want_values) {
        product_classes(w.logits, packed_block<T>(packed.grad_rows, row, p.value_dim), w.value_dim,
                        rows, count, w.sum_values, accumulate);
      }
      if (flushes && ((row + kRows) % kReadoutFlush == 0 || row + kRows >= p.num_rows)) {
        if (grad_prototypes != nullptr) add_sum(w.sum_classes, w.total_classes, count * w.dim);
        if (want_values) add_sum(w.sum_values, w.total_values, count * w.value_dim);
      }
    }
    if (p.num_rows == 0) {
      clear(w.sum_classes, count * w.dim);
      clear(w.sum_values, count * w.value_dim);
    }
    for (int64_t k = 0; k < count; ++k) {
      const T* sum = (flushes ? w.total_classes : w.sum_classes) + k * w.dim;
      const T* value_sum = (flushes ? w.total_values : w.sum_values) + k * w.value_dim;
      if (grad_prototypes != nullptr) {
        T* to = grad_prototypes + (c + k) * p.dim;
        const bool add_values = want_values && !w.separate_values;
        for (int64_t d = 0; d < p.dim; ++d) {
          to[d] = static_cast<T>(p.scale) * sum[d] + (add_values ? value_sum[d] : T(0));
        }
        if (p.normalize) {
          const S* prototype = static_cast<const S*>(p.prototypes) + (c + k) * p.dim;
          through_normalization(prototype, w.norms[k], p.dim, to);
        }
      }
      if (grad_values != nullptr && want_values) {
        __builtin_memcpy(grad_values + (c + k) * p.value_dim, value_sum, sizeof(T) * p.value_dim);
      }
    }
  }
}

template <typename S>
void backward_classes_typed(const ReadoutProblem& p, const ReadoutBackward& b,
                            const ReadoutPackedRows& packed, int64_t begin, int64_t end,
                            void* scratch, void* grad_prototypes, void* grad_values) {
  using T = AccumulateOf<S>;
  Arena arena{static_cast<char*>(scratch)};
  const Workspace<T> w(p, arena, true);
  VectorClassProducts<S> products(p, packed, w);
  backward_classes_over<S>(p, b, packed, w, products, begin, end, static_cast<T*>(grad_prototypes),
                           static_cast<T*>(grad_values));
}

}  // namespace
}  // namespace fcl::ops::cpu
