// SPDX-License-Identifier: Apache-2.0
// CPU kernels of softmax_readout, compiled once per ISA by softmax_readout_<isa>.cpp.
//
// Everything is a product of small blocks through one micro-kernel (common/tile.h). Logits are held
// transposed, [classes][rows]: the maximum and the sum over classes are then vertical, and the
// block is at once the A operand of the product with the values. Logits are in base 2 (the factor
// scale * log2(e) is folded into the packed embeddings), and the maximum is tracked per block of
// classes, so any scale is safe.
#pragma once

#include "common/tile.h"
#include "ops/cpu/softmax_readout_kernels.h"

namespace fcl::ops::cpu {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr int64_t kRows = kReadoutRows;

template <typename T>
constexpr T minus_infinity() {
  return -static_cast<T>(__builtin_inf());
}

// Bumps through one scratch allocation; with a null base it only counts.
struct Arena {
  char* base;
  size_t used = 0;
  template <typename T>
  T* take(int64_t count) {
    T* p = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
    used += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    return p;
  }
};

// Block sizes and scratch of one task.
template <typename T>
struct Workspace {
  int64_t dim, value_dim;  // padded to whole panels
  int64_t block;           // classes per block
  bool separate_values;
  T* columns;        // [kRows/kPanel][dim][kPanel], embeddings
  T* grad_columns;   // [kRows/kPanel][value_dim][kPanel], grad_mean
  T* prototypes;     // [dim/kPanel][block][kPanel]
  T* values;         // [value_dim/kPanel][block][kPanel]; prototypes unless separate
  T* logits;         // [block][kRows]
  T* value_logits;   // [block][kRows], V . grad_mean
  T* sum_rows;       // [kRows][max(dim, value_dim)]
  T* sum_classes;    // [block][dim], then the total of the earlier flushes
  T* total_classes;  // [block][dim]
  T* sum_values;     // [block][value_dim]
  T* total_values;   // [block][value_dim]

  Workspace(const ReadoutProblem& p, Arena& arena)
      : dim(round_up(p.dim, kPanel<T>)),
        value_dim(round_up(p.value_dim, kPanel<T>)),
        separate_values(p.values != p.prototypes) {
    // The packed classes, their logits and the row blocks should share a 1 MiB L2 cache.
    const int64_t budget = 768 * 1024 / static_cast<int64_t>(sizeof(T));
    const int64_t per_class = dim + (separate_values ? value_dim : 0) + kRows;
    const int64_t fixed = kRows * (dim + value_dim);
    int64_t groups = (budget - fixed) / per_class / kTileRows;
    const int64_t most = 448 / kTileRows;
    groups = groups > most ? most : groups < 4 ? 4 : groups;
    block = groups * kTileRows;
    columns = arena.take<T>(kRows * dim);
    grad_columns = arena.take<T>(kRows * value_dim);
    prototypes = arena.take<T>(dim * block);
    values = separate_values ? arena.take<T>(value_dim * block) : prototypes;
    logits = arena.take<T>(block * kRows);
    value_logits = arena.take<T>(block * kRows);
    sum_rows = arena.take<T>(kRows * (dim > value_dim ? dim : value_dim));
    sum_classes = arena.take<T>(block * dim);
    total_classes = arena.take<T>(block * dim);
    sum_values = arena.take<T>(block * value_dim);
    total_values = arena.take<T>(block * value_dim);
  }
};

template <typename S>
using AccumulateOf = typename Accumulate<S>::type;

// Which gradients and operands a pass over the classes packs.
template <typename S, typename T>
void pack_classes(const ReadoutProblem& p, const Workspace<T>& w, int64_t begin, int64_t count,
                  bool with_values) {
  pack_rows<T>(static_cast<const S*>(p.prototypes) + begin * p.dim, count, p.dim, w.block,
               w.prototypes);
  if (w.separate_values && with_values) {
    pack_rows<T>(static_cast<const S*>(p.values) + begin * p.value_dim, count, p.value_dim, w.block,
                 w.values);
  }
}

// out[class][row] = classes . columns, for packed classes and packed columns.
template <typename T>
void product_logits(const Workspace<T>& w, const T* classes, int64_t padded_dim, const T* columns,
                    int64_t rows, int64_t count, T* out) {
  const TileA<T> a{classes, padded_dim / kPanel<T>, kPanel<T>, w.block * kPanel<T>, 1};
  for (int64_t begin = 0; begin < rows; begin += kPanel<T>) {
    tile_all_rows<T, kPanel<T>>(count, a, columns + begin * padded_dim, out + begin, kRows, false);
  }
}

// out[row][d] (+)= sum_class weights[class][row] classes[class][d].
template <typename T>
void product_rows(const Workspace<T>& w, const T* weights, const T* classes, int64_t padded_dim,
                  int64_t rows, int64_t count, T* out, bool accumulate) {
  const TileA<T> a{weights, 1, count, 0, kRows};
  for (int64_t begin = 0; begin < padded_dim; begin += kPanel<T>) {
    tile_all_rows<T, 1>(rows, a, classes + begin * w.block, out + begin, padded_dim, accumulate);
  }
}

// out[class][d] += sum_row weights[class][row] rows[row][d], rows packed in panels of kRows.
template <typename T>
void product_classes(const T* weights, const T* packed_rows, int64_t padded_dim, int64_t rows,
                     int64_t count, T* out) {
  const TileA<T> a{weights, 1, rows, 0, 1};
  for (int64_t begin = 0; begin < padded_dim; begin += kPanel<T>) {
    tile_all_rows<T, kRows>(count, a, packed_rows + begin * kRows, out + begin, padded_dim, true);
  }
}

// An excluded class leaves the sum: its logit becomes -inf.
template <typename T>
void mask_excluded(const ReadoutProblem& p, int64_t row, int64_t rows, int64_t begin, int64_t count,
                   T* logits) {
  if (p.exclude == nullptr) return;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t offset = p.exclude[row + i] - begin;
    if (offset >= 0 && offset < count) logits[offset * kRows + i] = minus_infinity<T>();
  }
}

// logits -> 2^(logits - max) in place, with the running maximum and sum per row. Returns whether an
// earlier maximum grew, in which case sums made with it shrink by `shrink` per row.
template <typename T>
bool exponentiate(T* logits, int64_t rows, int64_t count, T* max_row, double* sum_row, T* shrink) {
  constexpr int L = kLanes<T>;
  bool any_shrinks = false;
  for (int64_t begin = 0; begin < rows; begin += L) {
    const Vec<T> old_max = load(max_row + begin);
    Vec<T> new_max = old_max;
    for (int64_t c = 0; c < count; ++c) {
      const Vec<T> z = load(logits + c * kRows + begin);
      new_max = z > new_max ? z : new_max;
    }
    // An infinite maximum (all classes excluded so far, or a +inf logit) must not meet inf - inf.
    const Vec<T> infinite = broadcast(-minus_infinity<T>());
    const auto is_infinite = (new_max == infinite) | (new_max == -infinite);
    const Vec<T> base = is_infinite ? Vec<T>{} : new_max;
    Vec<T> sum{};
    for (int64_t c = 0; c < count; ++c) {
      T* z = logits + c * kRows + begin;
      const Vec<T> e = exp2(load(z) - base);
      store(z, e);
      sum += e;
    }
    const Vec<T> factor = exp2(old_max - base);
    store(max_row + begin, new_max);
    store(shrink + begin, factor);
    for (int lane = 0; lane < L; ++lane) {
      sum_row[begin + lane] = sum_row[begin + lane] * static_cast<double>(factor[lane]) +
                              static_cast<double>(sum[lane]);
      any_shrinks |= new_max[lane] > old_max[lane] && old_max[lane] != minus_infinity<T>();
    }
  }
  return any_shrinks;
}

template <typename T>
void clear(T* data, int64_t elements) {
  __builtin_memset(data, 0, sizeof(T) * static_cast<size_t>(elements));
}

template <typename T>
void scale_row(T* row, int64_t dim, T factor) {
  for (int64_t d = 0; d < dim; ++d) row[d] *= factor;
}

template <typename S>
void forward_typed(const ReadoutProblem& p, int64_t row, int64_t rows, int64_t begin, int64_t end,
                   void* scratch, void* max_out, double* sum_out, void* mean_out) {
  using T = AccumulateOf<S>;
  Arena arena{static_cast<char*>(scratch)};
  const Workspace<T> w(p, arena);
  T* max_total = static_cast<T*>(max_out);
  T* mean = static_cast<T*>(mean_out);
  pack_columns<T>(static_cast<const S*>(p.embeddings) + row * p.dim, rows, p.dim, w.dim,
                  static_cast<T>(p.scale * kLog2E), w.columns);
  for (int64_t i = 0; i < rows; ++i) {
    max_total[i] = minus_infinity<T>();
    sum_out[i] = 0;
    if (mean != nullptr) clear(mean + i * p.value_dim, p.value_dim);
  }
  alignas(64) T max_row[kRows];
  alignas(64) T shrink[kRows];
  double sum_row[kRows];
  for (int64_t flush = begin; flush < end; flush += kReadoutFlush) {
    const int64_t flush_end = flush + kReadoutFlush < end ? flush + kReadoutFlush : end;
    for (int64_t i = 0; i < kRows; ++i) {
      max_row[i] = minus_infinity<T>();
      sum_row[i] = 0;
    }
    for (int64_t c = flush; c < flush_end; c += w.block) {
      const int64_t count = c + w.block < flush_end ? w.block : flush_end - c;
      pack_classes<S>(p, w, c, count, mean != nullptr);
      product_logits(w, w.prototypes, w.dim, w.columns, rows, count, w.logits);
      mask_excluded(p, row, rows, c, count, w.logits);
      const bool shrinks = exponentiate(w.logits, rows, count, max_row, sum_row, shrink);
      if (mean == nullptr) continue;
      if (shrinks) {
        for (int64_t i = 0; i < rows; ++i) {
          scale_row(w.sum_rows + i * w.value_dim, w.value_dim, shrink[i]);
        }
      }
      product_rows(w, w.logits, w.values, w.value_dim, rows, count, w.sum_rows, c != flush);
    }
    // Merge this run of classes into the total under the larger of the two maxima.
    for (int64_t i = 0; i < rows; ++i) {
      const T larger = max_row[i] > max_total[i] ? max_row[i] : max_total[i];
      const bool is_infinite = larger == minus_infinity<T>() || larger == -minus_infinity<T>();
      const T base = is_infinite ? T(0) : larger;
      const T keep = exp2_scalar(max_total[i] - base);
      const T add = exp2_scalar(max_row[i] - base);
      max_total[i] = larger;
      sum_out[i] = sum_out[i] * static_cast<double>(keep) + sum_row[i] * static_cast<double>(add);
      if (mean == nullptr) continue;
      T* to = mean + i * p.value_dim;
      const T* from = w.sum_rows + i * w.value_dim;
      for (int64_t d = 0; d < p.value_dim; ++d) to[d] = to[d] * keep + from[d] * add;
    }
  }
}

// logits -> probability, and weights = probability * (coefficient + value_logits); both in place of
// their inputs when value_logits is given, else weights replace the logits.
template <typename T>
void weigh(const T* base, const T* coefficient, int64_t rows, int64_t count, T* logits,
           T* value_logits) {
  for (int64_t c = 0; c < count; ++c) {
    for (int64_t begin = 0; begin < rows; begin += kLanes<T>) {
      T* z = logits + c * kRows + begin;
      const Vec<T> probability = exp2(load(z) - load(base + begin));
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
  const Workspace<T> w(p, arena);
  T* grad = static_cast<T*>(grad_out);
  const bool through_mean = b.grad_mean != nullptr;
  pack_columns<T>(static_cast<const S*>(p.embeddings) + row * p.dim, rows, p.dim, w.dim,
                  static_cast<T>(p.scale * kLog2E), w.columns);
  if (through_mean) {
    pack_columns<T>(static_cast<const T*>(b.grad_mean) + row * p.value_dim, rows, p.value_dim,
                    w.value_dim, T(1), w.grad_columns);
  }
  alignas(64) T base[kRows];
  alignas(64) T coefficient[kRows];
  load_row_terms(b, row, rows, base, coefficient);
  clear(grad, rows * p.dim);
  for (int64_t flush = begin; flush < end; flush += kReadoutFlush) {
    const int64_t flush_end = flush + kReadoutFlush < end ? flush + kReadoutFlush : end;
    for (int64_t c = flush; c < flush_end; c += w.block) {
      const int64_t count = c + w.block < flush_end ? w.block : flush_end - c;
      pack_classes<S>(p, w, c, count, through_mean);
      product_logits(w, w.prototypes, w.dim, w.columns, rows, count, w.logits);
      mask_excluded(p, row, rows, c, count, w.logits);
      if (through_mean) {
        product_logits(w, w.values, w.value_dim, w.grad_columns, rows, count, w.value_logits);
      }
      weigh(base, coefficient, rows, count, w.logits, through_mean ? w.value_logits : nullptr);
      product_rows(w, through_mean ? w.value_logits : w.logits, w.prototypes, w.dim, rows, count,
                   w.sum_rows, c != flush);
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t d = 0; d < p.dim; ++d) {
        grad[i * p.dim + d] += static_cast<T>(p.scale) * w.sum_rows[i * w.dim + d];
      }
    }
  }
}

template <typename S>
void pack_block_typed(const ReadoutProblem& p, const ReadoutBackward& b, int64_t row, int64_t rows,
                      const ReadoutPackedRows& packed) {
  using T = AccumulateOf<S>;
  const S* embeddings = static_cast<const S*>(p.embeddings) + row * p.dim;
  const int64_t dim = round_up(p.dim, kPanel<T>);
  pack_columns<T>(embeddings, rows, p.dim, dim, static_cast<T>(p.scale * kLog2E),
                  static_cast<T*>(packed.columns) + row * dim);
  pack_rows<T>(embeddings, rows, p.dim, kRows, static_cast<T*>(packed.rows) + row * dim);
  if (b.grad_mean == nullptr) return;
  const T* grad_mean = static_cast<const T*>(b.grad_mean) + row * p.value_dim;
  const int64_t value_dim = round_up(p.value_dim, kPanel<T>);
  pack_columns<T>(grad_mean, rows, p.value_dim, value_dim, T(1),
                  static_cast<T*>(packed.grad_columns) + row * value_dim);
  pack_rows<T>(grad_mean, rows, p.value_dim, kRows,
               static_cast<T*>(packed.grad_rows) + row * value_dim);
}

// total += sum; sum = 0.
template <typename T>
void flush_sum(T* sum, T* total, int64_t elements) {
  for (int64_t i = 0; i < elements; ++i) {
    total[i] += sum[i];
    sum[i] = 0;
  }
}

template <typename S>
void backward_classes_typed(const ReadoutProblem& p, const ReadoutBackward& b,
                            const ReadoutPackedRows& packed, int64_t begin, int64_t end,
                            void* scratch, void* grad_prototypes_out, void* grad_values_out) {
  using T = AccumulateOf<S>;
  Arena arena{static_cast<char*>(scratch)};
  const Workspace<T> w(p, arena);
  T* grad_prototypes = static_cast<T*>(grad_prototypes_out);
  T* grad_values = static_cast<T*>(grad_values_out);
  const bool through_mean = b.grad_mean != nullptr;
  const bool want_values = through_mean && (grad_values != nullptr ||
                                            (!w.separate_values && grad_prototypes != nullptr));
  alignas(64) T base[kRows];
  alignas(64) T coefficient[kRows];
  for (int64_t c = begin; c < end; c += w.block) {
    const int64_t count = c + w.block < end ? w.block : end - c;
    pack_classes<S>(p, w, c, count, through_mean);
    clear(w.sum_classes, count * w.dim);
    clear(w.total_classes, count * w.dim);
    clear(w.sum_values, count * w.value_dim);
    clear(w.total_values, count * w.value_dim);
    for (int64_t row = 0; row < p.num_rows; row += kRows) {
      const int64_t rows = row + kRows < p.num_rows ? kRows : p.num_rows - row;
      load_row_terms(b, row, rows, base, coefficient);
      product_logits(w, w.prototypes, w.dim, static_cast<const T*>(packed.columns) + row * w.dim,
                     rows, count, w.logits);
      mask_excluded(p, row, rows, c, count, w.logits);
      if (through_mean) {
        product_logits(w, w.values, w.value_dim,
                       static_cast<const T*>(packed.grad_columns) + row * w.value_dim, rows, count,
                       w.value_logits);
      }
      weigh(base, coefficient, rows, count, w.logits, through_mean ? w.value_logits : nullptr);
      if (grad_prototypes != nullptr) {
        product_classes(through_mean ? w.value_logits : w.logits,
                        static_cast<const T*>(packed.rows) + row * w.dim, w.dim, rows, count,
                        w.sum_classes);
      }
      if (want_values) {
        product_classes(w.logits, static_cast<const T*>(packed.grad_rows) + row * w.value_dim,
                        w.value_dim, rows, count, w.sum_values);
      }
      if ((row / kRows + 1) % (kReadoutFlush / kRows) == 0) {
        flush_sum(w.sum_classes, w.total_classes, count * w.dim);
        flush_sum(w.sum_values, w.total_values, count * w.value_dim);
      }
    }
    flush_sum(w.sum_classes, w.total_classes, count * w.dim);
    flush_sum(w.sum_values, w.total_values, count * w.value_dim);
    for (int64_t k = 0; k < count; ++k) {
      if (grad_prototypes != nullptr) {
        T* to = grad_prototypes + (c + k) * p.dim;
        for (int64_t d = 0; d < p.dim; ++d) {
          to[d] = static_cast<T>(p.scale) * w.total_classes[k * w.dim + d];
          if (want_values && !w.separate_values) to[d] += w.total_values[k * w.value_dim + d];
        }
      }
      if (grad_values != nullptr) {
        __builtin_memcpy(grad_values + (c + k) * p.value_dim, w.total_values + k * w.value_dim,
                         sizeof(T) * p.value_dim);
      }
    }
  }
}

template <typename S>
size_t scratch_bytes_typed(const ReadoutProblem& p) {
  Arena arena{nullptr};
  const Workspace<AccumulateOf<S>> w(p, arena);
  return arena.used;
}

// Type-erased entries of the table.
size_t scratch_bytes(const ReadoutProblem& p) {
  size_t bytes = 0;
  dispatch_dtype(p.dtype,
                 [&](auto tag) { bytes = scratch_bytes_typed<typename decltype(tag)::type>(p); });
  return bytes;
}
size_t packed_block_elements(int64_t dim) {
  // Widest padding of the two accumulation types.
  return static_cast<size_t>(kRows * round_up(dim, kPanel<float>));
}
int64_t classes_per_task(const ReadoutProblem& p) {
  int64_t block = 0;
  dispatch_dtype(p.dtype, [&](auto tag) {
    Arena arena{nullptr};
    block = Workspace<AccumulateOf<typename decltype(tag)::type>>(p, arena).block;
  });
  return block;
}
void forward(const ReadoutProblem& p, int64_t row, int64_t rows, int64_t begin, int64_t end,
             void* scratch, void* max, double* sum, void* mean) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    forward_typed<typename decltype(tag)::type>(p, row, rows, begin, end, scratch, max, sum, mean);
  });
}
void backward_rows(const ReadoutProblem& p, const ReadoutBackward& b, int64_t row, int64_t rows,
                   int64_t begin, int64_t end, void* scratch, void* grad) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    backward_rows_typed<typename decltype(tag)::type>(p, b, row, rows, begin, end, scratch, grad);
  });
}
void pack_block(const ReadoutProblem& p, const ReadoutBackward& b, int64_t row, int64_t rows,
                const ReadoutPackedRows& packed) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    pack_block_typed<typename decltype(tag)::type>(p, b, row, rows, packed);
  });
}
void backward_classes(const ReadoutProblem& p, const ReadoutBackward& b,
                      const ReadoutPackedRows& packed, int64_t begin, int64_t end, void* scratch,
                      void* grad_prototypes, void* grad_values) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    backward_classes_typed<typename decltype(tag)::type>(p, b, packed, begin, end, scratch,
                                                         grad_prototypes, grad_values);
  });
}

}  // namespace

const SoftmaxReadoutKernels FCL_READOUT_KERNELS = {
    scratch_bytes, packed_block_elements, classes_per_task, forward, backward_rows,
    pack_block,    backward_classes,
};

}  // namespace fcl::ops::cpu
