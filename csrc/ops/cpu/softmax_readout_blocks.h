// SPDX-License-Identifier: Apache-2.0
// The blocks every readout kernel is made of: scratch memory, packed classes and rows, and the
// three products between them through one micro-kernel (common/tile.h). Logits are held transposed,
// [classes][rows]: the maximum and the sum over classes are then vertical, and the block is at once
// the A operand of the product with the values.
#pragma once

#include "common/tile.h"
#include "ops/cpu/softmax_readout_kernels.h"

namespace fcl::ops::cpu {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr int64_t kRows = kReadoutRows;
// The packed classes, their logits and the row blocks should share a 1 MiB L2 cache.
constexpr int64_t kBlockBytes = 768 * 1024;
// More classes per block would save nothing, and leave small problems without parallel work.
constexpr int64_t kMostClasses = 448;

template <typename S>
using AccumulateOf = typename Accumulate<S>::type;

template <typename S>
constexpr bool kIsFloat = false;
template <>
constexpr bool kIsFloat<float> = true;

template <typename T>
constexpr T minus_infinity() {
  return -static_cast<T>(__builtin_inf());
}

template <typename T>
void clear(T* data, int64_t elements) {
  __builtin_memset(data, 0, sizeof(T) * static_cast<size_t>(elements));
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

// Classes per block: whole groups of the micro-kernel, as many as the cache holds.
inline int64_t block_classes(int64_t bytes_per_class, int64_t fixed_bytes) {
  const int64_t groups = (kBlockBytes - fixed_bytes) / bytes_per_class / kTileRows;
  const int64_t most = kMostClasses / kTileRows;
  return (groups > most ? most : groups < 4 ? 4 : groups) * kTileRows;
}

// Block sizes and scratch of one task.
template <typename T>
struct Workspace {
  int64_t dim, value_dim;  // padded to whole panels
  int64_t block;           // classes per block
  bool separate_values;
  T* columns;                  // [kRows/kPanel][dim][kPanel], embeddings
  T* grad_columns;             // [kRows/kPanel][value_dim][kPanel], grad_mean
  T* prototypes;               // [dim/kPanel][block][kPanel]
  T* values;                   // [value_dim/kPanel][block][kPanel]; prototypes unless separate
  T* norms;                    // [block], 1 / |w_c| where prototypes are normalised
  T* logits;                   // [block][kRows]
  T* value_logits;             // [block][kRows], V . grad_mean
  T* sum_rows;                 // [kRows][max(dim, value_dim)]
  T* sum_classes = nullptr;    // [block][dim]
  T* total_classes = nullptr;  // [block][dim], of the earlier flushes
  T* sum_values = nullptr;     // [block][value_dim]
  T* total_values = nullptr;   // [block][value_dim]

  // What only gradients to the classes need is a third of the memory, and left out otherwise. A
  // given number of classes per block takes the place of its own.
  Workspace(const ReadoutProblem& p, Arena& arena, bool for_classes, int64_t given_block = 0)
      : dim(round_up(p.dim, kPanel<T>)),
        value_dim(round_up(p.value_dim, kPanel<T>)),
        separate_values(p.values != nullptr) {
    const int64_t size = static_cast<int64_t>(sizeof(T));
    const int64_t width = dim + (separate_values ? value_dim : 0);
    block = block_classes(((for_classes ? 2 : 1) * width + kRows) * size,
                          kRows * (dim + value_dim) * size);
    if (given_block > 0) block = given_block;
    columns = arena.take<T>(kRows * dim);
    grad_columns = arena.take<T>(kRows * value_dim);
    prototypes = arena.take<T>(dim * block);
    values = separate_values ? arena.take<T>(value_dim * block) : prototypes;
    norms = arena.take<T>(block);
    logits = arena.take<T>(block * kRows);
    value_logits = arena.take<T>(block * kRows);
    sum_rows = arena.take<T>(kRows * (dim > value_dim ? dim : value_dim));
    if (!for_classes) return;
    sum_classes = arena.take<T>(block * dim);
    total_classes = arena.take<T>(block * dim);
    sum_values = arena.take<T>(block * value_dim);
    total_values = arena.take<T>(block * value_dim);
  }
};

// 1 / |w|; a zero row stays zero.
template <typename T>
T inverse_norm(T squared) {
  const T smallest = static_cast<T>(1e-12);  // F.normalize's eps
  const T norm = __builtin_sqrt(squared);
  return T(1) / (norm > smallest ? norm : smallest);
}

// One packed row (see pack_rows) times a factor.
template <typename T>
void scale_packed_row(T* row, int64_t padded_dim, int64_t panel_rows, T factor) {
  for (int64_t begin = 0; begin < padded_dim; begin += kPanel<T>) {
    T* to = row + begin * panel_rows;
    store(to, load(to) * factor);
    store(to + kLanes<T>, load(to + kLanes<T>) * factor);
  }
}

// Squared norm of a row; each part of it, [begin, begin + kPanel), is also given to `visit`.
template <typename T, typename S, typename Visit>
T squared_norm_of(const S* row, int64_t dim, Visit&& visit) {
  Vec<T> sum0{};
  Vec<T> sum1{};
  for (int64_t begin = 0; begin < dim; begin += kPanel<T>) {
    const Vec<T> v0 = load_part<T>(row, begin, dim);
    const Vec<T> v1 = load_part<T>(row, begin + kLanes<T>, dim);
    visit(begin, v0, v1);
    sum0 += v0 * v0;
    sum1 += v1 * v1;
  }
  return reduce_add<T>(sum0 + sum1);
}

// pack_rows of one row; returns its squared norm, summed while the row is in registers.
template <typename T, typename S>
T pack_row_and_square(const S* row, int64_t dim, int64_t panel_rows, T* packed) {
  return squared_norm_of<T>(row, dim, [&](int64_t begin, Vec<T> v0, Vec<T> v1) {
    store(packed + begin * panel_rows, v0);
    store(packed + begin * panel_rows + kLanes<T>, v1);
  });
}

// Packs class c of the problem, at unit length if the problem says so, with 1 / |w_c| in `inverse`
// then; returns its squared norm as given.
template <typename S, typename T>
T pack_class(const ReadoutProblem& p, int64_t c, int64_t padded_dim, int64_t panel_rows, T* packed,
             T* inverse) {
  const S* row = static_cast<const S*>(p.prototypes) + c * p.dim;
  const T squared = pack_row_and_square(row, p.dim, panel_rows, packed);
  if (p.normalize) {
    *inverse = inverse_norm(squared);
    scale_packed_row(packed, padded_dim, panel_rows, *inverse);
  }
  return squared;
}

template <typename T>
T larger_or_nan(T squared, T largest) {
  return squared > largest || squared != squared ? squared : largest;
}

// The largest norm packed prototypes have, given the largest squared norm of the rows.
template <typename T>
T largest_packed_norm(const ReadoutProblem& p, T largest_squared) {
  // A little above 1: rounding.
  if (p.normalize) {
    return largest_squared != largest_squared ? largest_squared : static_cast<T>(1.0001);
  }
  return __builtin_sqrt(largest_squared);
}

// Packs a block of classes; returns the largest norm a packed prototype has.
template <typename S, typename T>
T pack_classes(const ReadoutProblem& p, const Workspace<T>& w, int64_t begin, int64_t count) {
  T largest = 0;
  for (int64_t c = 0; c < count; ++c) {
    largest = larger_or_nan(
        pack_class<S>(p, begin + c, w.dim, w.block, w.prototypes + c * kPanel<T>, w.norms + c),
        largest);
  }
  return largest_packed_norm(p, largest);
}

// What pack_classes says of norms, bit for bit, without packing.
template <typename S, typename T>
void inverse_norms(const ReadoutProblem& p, const Workspace<T>& w, int64_t begin, int64_t count) {
  for (int64_t c = 0; c < count; ++c) {
    const S* row = static_cast<const S*>(p.prototypes) + (begin + c) * p.dim;
    w.norms[c] = inverse_norm(squared_norm_of<T>(row, p.dim, [](int64_t, Vec<T>, Vec<T>) {}));
  }
}

// Packs the values of a block of classes, where they are not the prototypes.
template <typename S, typename T>
void pack_values(const ReadoutProblem& p, const Workspace<T>& w, int64_t begin, int64_t count) {
  pack_rows<T>(static_cast<const S*>(p.values) + begin * p.value_dim, count, p.value_dim, w.block,
               w.values);
}

// All classes [begin, end) into panels of C rows. T is the type of the prototypes.
template <typename T>
void pack_prototypes_typed(const ReadoutProblem& p, int64_t begin, int64_t end, T* packed,
                           T* squared_norms) {
  T inverse;
  for (int64_t c = begin; c < end; ++c) {
    squared_norms[c] = pack_class<T>(p, c, round_up(p.dim, kPanel<T>), p.num_classes,
                                     packed + c * kPanel<T>, &inverse);
  }
}

// A block of packed classes as products read it: [dim/kPanel][panel_rows][kPanel].
template <typename T>
struct PackedClasses {
  const T* data;
  int64_t panel_rows;
};

// Those that came packed, from `begin` on.
template <typename T>
PackedClasses<T> classes_packed_before(const ReadoutProblem& p, int64_t begin) {
  return {static_cast<const T*>(p.packed) + begin * kPanel<T>, p.num_classes};
}

template <typename T>
T largest_norm_packed_before(const ReadoutProblem& p, int64_t begin, int64_t count) {
  const T* squared = static_cast<const T*>(p.squared_norms) + begin;
  T largest = 0;
  for (int64_t c = 0; c < count; ++c) largest = larger_or_nan(squared[c], largest);
  return largest_packed_norm(p, largest);
}

// The prototypes of the block at `next` of a task that ends at `end`, to be fetched in so many
// steps while the logits of the block before are computed.
template <typename S>
Prefetch prefetch_block(const ReadoutProblem& p, int64_t next, int64_t block, int64_t end,
                        int64_t steps) {
  const int64_t classes = next + block < end ? block : end - next;
  const int64_t size = static_cast<int64_t>(sizeof(S));
  if (p.packed != nullptr) {
    const int64_t panel_bytes = kPanel<S> * size;
    return Prefetch(static_cast<const char*>(p.packed) + next * panel_bytes, classes * panel_bytes,
                    steps, round_up(p.dim, kPanel<S>) / kPanel<S>, p.num_classes * panel_bytes);
  }
  return Prefetch(static_cast<const S*>(p.prototypes) + next * p.dim, classes * p.dim * size,
                  steps);
}

// Calls of Prefetch::step that product_logits makes.
template <typename T>
int64_t logit_steps(int64_t rows, int64_t count, int64_t padded_dim) {
  return ceil_div(rows, kPanel<T>) * ceil_div(count, kTileRows) * (padded_dim / kPanel<T>);
}

// out[class][row] = classes . columns, for packed classes and packed columns.
template <typename T>
void product_logits(PackedClasses<T> classes, int64_t padded_dim, const T* columns, int64_t rows,
                    int64_t count, T* out, Prefetch* ahead = nullptr) {
  const TileA<T> a{
      classes.data, padded_dim / kPanel<T>, kPanel<T>, classes.panel_rows * kPanel<T>, 1, ahead};
  for (int64_t begin = 0; begin < rows; begin += kPanel<T>) {
    tile_all_rows<T, kPanel<T>>(count, a, columns + begin * padded_dim, out + begin, kRows, false);
  }
}

// out[row][d] (+)= sum_class weights[class][row] classes[class][d].
template <typename T>
void product_rows(const T* weights, PackedClasses<T> classes, int64_t padded_dim, int64_t rows,
                  int64_t count, T* out, bool accumulate) {
  const TileA<T> a{weights, 1, count, 0, kRows};
  for (int64_t begin = 0; begin < padded_dim; begin += kPanel<T>) {
    tile_all_rows<T, 1>(rows, a, classes.data + begin * classes.panel_rows, out + begin, padded_dim,
                        accumulate);
  }
}

// out[class][d] (+)= sum_row weights[class][row] rows[row][d], rows packed in panels of kRows.
template <typename T>
void product_classes(const T* weights, const T* packed_rows, int64_t padded_dim, int64_t rows,
                     int64_t count, T* out, bool accumulate) {
  const TileA<T> a{weights, 1, rows, 0, 1};
  for (int64_t begin = 0; begin < padded_dim; begin += kPanel<T>) {
    tile_all_rows<T, kRows>(count, a, packed_rows + begin * kRows, out + begin, padded_dim,
                            accumulate);
  }
}

// The first of n rising numbers that is not below `least`.
inline const int64_t* first_not_below(const int64_t* first, int64_t n, int64_t least) {
  while (n > 0) {
    const int64_t half = n / 2;
    if (first[half] < least) {
      first += half + 1;
      n -= half + 1;
    } else {
      n = half;
    }
  }
  return first;
}

// An excluded class leaves the sum: its logit becomes -inf.
template <typename T>
void mask_excluded(const ReadoutProblem& p, int64_t row, int64_t rows, int64_t begin, int64_t count,
                   T* logits) {
  if (p.exclude == nullptr) return;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t excluded = p.exclude[row + i];
    if (p.exclude_crow == nullptr) {
      const int64_t offset = excluded - begin;
      if (offset >= 0 && offset < count) logits[offset * kRows + i] = minus_infinity<T>();
      continue;
    }
    if (excluded < 0) continue;
    const int64_t* set = p.exclude_col + p.exclude_crow[excluded];
    const int64_t* set_end = p.exclude_col + p.exclude_crow[excluded + 1];
    for (const int64_t* c = first_not_below(set, set_end - set, begin);
         c < set_end && *c < begin + count; ++c) {
      logits[(*c - begin) * kRows + i] = minus_infinity<T>();
    }
  }
}

}  // namespace
}  // namespace fcl::ops::cpu
