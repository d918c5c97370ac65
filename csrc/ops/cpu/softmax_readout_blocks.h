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
  T* norms;                    // [block], 1 / |w_c| where prototypes are normalised, else 1
  T* logits;                   // [block][kRows]
  T* value_logits;             // [block][kRows], V . grad_mean
  T* sum_rows;                 // [kRows][max(dim, value_dim)]
  T* sum_classes = nullptr;    // [block][dim]
  T* total_classes = nullptr;  // [block][dim], of the earlier flushes
  T* sum_values = nullptr;     // [block][value_dim]
  T* total_values = nullptr;   // [block][value_dim]

  // What only gradients to the classes need is a third of the memory, and left out otherwise.
  Workspace(const ReadoutProblem& p, Arena& arena, bool for_classes)
      : dim(round_up(p.dim, kPanel<T>)),
        value_dim(round_up(p.value_dim, kPanel<T>)),
        separate_values(p.values != nullptr) {
    const int64_t size = static_cast<int64_t>(sizeof(T));
    const int64_t width = dim + (separate_values ? value_dim : 0);
    block = block_classes(((for_classes ? 2 : 1) * width + kRows) * size,
                          kRows * (dim + value_dim) * size);
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
template <typename T>
T squared_norm_of_packed_row(const T* row, int64_t padded_dim, int64_t panel_rows) {
  Vec<T> sum0{};
  Vec<T> sum1{};
  for (int64_t begin = 0; begin < padded_dim; begin += kPanel<T>) {
    const Vec<T> v0 = load(row + begin * panel_rows);
    const Vec<T> v1 = load(row + begin * panel_rows + kLanes<T>);
    sum0 += v0 * v0;
    sum1 += v1 * v1;
  }
  return reduce_add<T>(sum0 + sum1);
}

// Packs a block of classes; prototypes at unit length if the problem says so. Returns the largest
// norm a packed prototype has.
template <typename S, typename T>
T pack_classes(const ReadoutProblem& p, const Workspace<T>& w, int64_t begin, int64_t count,
               bool with_values) {
  const S* prototypes = static_cast<const S*>(p.prototypes) + begin * p.dim;
  T largest = 0;
  for (int64_t c = 0; c < count; ++c) {
    T* packed = w.prototypes + c * kPanel<T>;
    pack_rows<T>(prototypes + c * p.dim, 1, p.dim, w.block, packed);
    const T squared = squared_norm_of_packed_row(packed, w.dim, w.block);
    if (p.normalize) {
      w.norms[c] = inverse_norm(squared);
      scale_packed_row(packed, w.dim, w.block, w.norms[c]);
    }
    largest = squared > largest || squared != squared ? squared : largest;
  }
  if (w.separate_values && with_values) {
    pack_rows<T>(static_cast<const S*>(p.values) + begin * p.value_dim, count, p.value_dim, w.block,
                 w.values);
  }
  // A little above 1: rounding.
  if (p.normalize) return largest != largest ? largest : static_cast<T>(1.0001);
  return __builtin_sqrt(largest);
}

// The prototypes of the block at `next` of a task that ends at `end`, to be fetched while the
// logits of `count` classes are computed, `dim_panels` steps per tile of kTileRows classes and
// row_panel rows.
template <typename S>
Prefetch prefetch_block(const ReadoutProblem& p, int64_t next, int64_t block, int64_t end,
                        int64_t count, int64_t rows, int64_t row_panel, int64_t dim_panels) {
  const int64_t classes = next + block < end ? block : end - next;
  return Prefetch(static_cast<const S*>(p.prototypes) + next * p.dim,
                  classes * p.dim * static_cast<int64_t>(sizeof(S)),
                  ceil_div(rows, row_panel) * ceil_div(count, kTileRows) * dim_panels);
}

// out[class][row] = classes . columns, for packed classes and packed columns.
template <typename T>
void product_logits(const Workspace<T>& w, const T* classes, int64_t padded_dim, const T* columns,
                    int64_t rows, int64_t count, T* out, Prefetch* ahead = nullptr) {
  const TileA<T> a{classes, padded_dim / kPanel<T>, kPanel<T>, w.block * kPanel<T>, 1, ahead};
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

}  // namespace
}  // namespace fcl::ops::cpu
