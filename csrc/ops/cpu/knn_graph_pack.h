// SPDX-License-Identifier: Apache-2.0
// How knn_graph and knn_search on the CPU lay out memory: the scratch memory of a thread, rows
// packed for the products, and a block of them turned into columns. Internal to each ISA unit.
#pragma once

#include "common/tile.h"
#include "ops/cpu/knn_graph_kernels.h"
#include "ops/cpu/knn_graph_keys.h"

namespace fcl::ops::cpu {
namespace {

template <typename T>
constexpr T largest_finite() {
  return sizeof(T) == 4 ? static_cast<T>(__FLT_MAX__) : static_cast<T>(__DBL_MAX__);
}

template <typename T>
struct Workspace {
  int64_t dim;    // padded to whole panels
  T* columns;     // [p.columns / kPanel][dim][kPanel]
  T* products;    // [kKnnBlock rows][kKnnBlock columns]; only where rows and columns are one table
  T* squares;     // [p.columns]: of the columns
  T* thresholds;  // [p.columns]: what a similarity must reach to enter the list of a column
  T* converted;   // [dim]: a row while it is packed
  size_t bytes;

  Workspace(const KnnProblem& p, void* scratch) : dim(round_up(p.dim, kPanel<T>)) {
    static_assert(kKnnColumns % kPanel<T> == 0, "a block of columns is whole panels");
    char* base = static_cast<char*>(scratch);
    size_t used = 0;
    auto take = [&](int64_t count) {
      T* at = base == nullptr ? nullptr : reinterpret_cast<T*>(base + used);
      used += sizeof(T) * static_cast<size_t>(count);
      return at;
    };
    columns = take(p.columns * dim);
    products = take(p.one_table ? kKnnBlock * kKnnBlock : 0);
    squares = take(p.columns);
    thresholds = take(p.columns);
    converted = take(dim);
    bytes = used;
  }
};

// The packed rows of a block.
template <typename T>
inline T* packed_rows(const KnnTables& tables, const Workspace<T>& w, KnnBlock block) {
  return static_cast<T*>(tables.rows) + block.begin * w.dim;
}

// A block to be fetched while the products of `rows` rows and `columns` columns are computed, a
// step for each panel of dims of a tile.
template <typename T>
inline Prefetch prefetch_rows(const KnnTables& tables, const Workspace<T>& w, KnnBlock block,
                              int64_t rows, int64_t columns) {
  const int64_t tiles = ceil_div(rows, kTileRows) * ceil_div(columns, kPanel<T>);
  const int64_t bytes = block.count * w.dim * static_cast<int64_t>(sizeof(T));
  return Prefetch(packed_rows<T>(tables, w, block), bytes, tiles * (w.dim / kPanel<T>));
}

// Largest absolute value, NaN if there is one, and the sum of (x factor)^2. Eight chains at a time:
// a single one would wait for its own latency.
template <typename T, typename S>
double largest_size(const S* row, int64_t dim) {
  double largest[8] = {};
  for (int64_t begin = 0; begin < dim; begin += 8) {
    const int64_t count = dim - begin < 8 ? dim - begin : 8;
    for (int64_t j = 0; j < count; ++j) {
      const double size = __builtin_fabs(static_cast<double>(load_as<T>(row + begin + j)));
      largest[j] = size > largest[j] || size != size ? size : largest[j];
    }
  }
  double all = 0;
  for (double one : largest) all = one > all || one != one ? one : all;
  return all;
}
template <typename T, typename S>
double sum_of_squares(const S* row, int64_t dim, double factor) {
  double sum[8] = {};
  int64_t begin = 0;
  for (; begin + 8 <= dim; begin += 8) {
    for (int64_t j = 0; j < 8; ++j) {
      const double x = static_cast<double>(load_as<T>(row + begin + j)) * factor;
      sum[j] += x * x;
    }
  }
  for (int64_t j = 0; begin + j < dim; ++j) {
    const double x = static_cast<double>(load_as<T>(row + begin + j)) * factor;
    sum[j] += x * x;
  }
  double all = 0;
  for (double one : sum) all += one;
  return all;
}

// A power of two that brings an entry of this size near 1: multiplying by it is exact.
inline double factor_near_one(double size) {
  int exponent = 0;
  if (size > 0) __builtin_frexp(size, &exponent);
  // 2^1074, for the smallest numbers, would not be finite; 2^1000 serves them as well.
  return __builtin_ldexp(1.0, exponent < -1000 ? 1000 : -exponent);
}

// Converts one row to T, normalised for cosine. The norm is taken in double: squares of narrower
// numbers neither overflow nor vanish there, and doubles are brought near 1 first.
template <typename T, typename S>
KnnRefusal convert_row(const KnnProblem& p, const S* from, T* to, T* square) {
  constexpr bool kIsWide = sizeof(S) == sizeof(double);
  const bool cosine = p.metric == KnnMetric::kCosine;
  double factor = 1.0;
  if (kIsWide || !cosine) {
    const double largest = largest_size<T>(from, p.dim);
    if (!(largest <= __DBL_MAX__)) return KnnRefusal::kNotFinite;
    if (kIsWide) factor = factor_near_one(largest);
  }
  if (cosine) {
    const double sum = sum_of_squares<T>(from, p.dim, factor);
    if (!(sum <= __DBL_MAX__)) return KnnRefusal::kNotFinite;
    // A zero row stays zero: similarity 0 to everything.
    const double inverse = sum > 0 ? 1.0 / __builtin_sqrt(sum) : 1.0;
    for (int64_t d = 0; d < p.dim; ++d) {
      to[d] = static_cast<T>(static_cast<double>(load_as<T>(from + d)) * factor * inverse);
    }
    return KnnRefusal::kNone;
  }
  // Summed as the products are, so that l2 of equal rows is exactly 0.
  T sum = 0;
  for (int64_t d = 0; d < p.dim; ++d) {
    to[d] = load_as<T>(from + d);
    sum += to[d] * to[d];
  }
  *square = sum;
  // Products and distances are at most four times this: none can overflow.
  return sum <= largest_finite<T>() / 8 ? KnnRefusal::kNone : KnnRefusal::kTooLarge;
}

// Rows that are fetched before they are packed.
constexpr int64_t kRowsAhead = 8;

template <typename S>
KnnRefusal pack_typed(const KnnProblem& p, const KnnTables& tables, KnnBlock block, void* scratch,
                      int64_t* refused) {
  using T = typename Accumulate<S>::type;
  const Workspace<T> w(p, scratch);
  T* packed = packed_rows<T>(tables, w, block);
  const S* features = static_cast<const S*>(p.features) + block.begin * p.dim;
  // The processor's own prefetcher stops at the end of each page of memory.
  Prefetch ahead(features, block.count * p.dim * static_cast<int64_t>(sizeof(S)), block.count);
  for (int64_t early = 0; early < kRowsAhead; ++early) ahead.step();
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t row = block.begin + i;
    ahead.step();
    const KnnRefusal why =
        convert_row<T>(p, features + i * p.dim, w.converted, static_cast<T*>(tables.squares) + row);
    if (why != KnnRefusal::kNone) {
      *refused = row;
      return why;
    }
    // One at a time, while it is in the nearest cache.
    pack_rows<T>(w.converted, 1, p.dim, block.count, packed + i * kPanel<T>);
    if (tables.counts == nullptr) continue;
    static_cast<Key<T>*>(tables.bounds)[row] = 0;
    tables.counts[row] = 0;
  }
  return KnnRefusal::kNone;
}

// Packed rows -> columns of the product; those that fill up a panel are zero.
template <typename T>
void load_columns_typed(const KnnProblem& p, const KnnTables& tables, KnnBlock block,
                        void* scratch) {
  constexpr int L = kLanes<T>;
  const Workspace<T> w(p, scratch);
  const T* rows = packed_rows<T>(tables, w, block);
  const int64_t padded = round_up(block.count, kPanel<T>);
  for (int64_t begin = 0; begin < padded; begin += L) {
    T* to = w.columns + begin / kPanel<T> * kPanel<T> * w.dim + begin % kPanel<T>;
    for (int64_t d = 0; d < w.dim; d += L) {
      const int64_t panel = d / kPanel<T> * block.count * kPanel<T> + d % kPanel<T>;
      Vec<T> square[L];
      for (int64_t i = 0; i < L; ++i) {
        const int64_t row = begin + i;
        square[i] = row < block.count ? load(rows + panel + row * kPanel<T>) : Vec<T>{};
      }
      transpose<T>(square);
      for (int64_t j = 0; j < L; ++j) store(to + (d + j) * kPanel<T>, square[j]);
    }
  }
  const T* squares = static_cast<const T*>(tables.squares) + block.begin;
  const bool need_squares = p.metric == KnnMetric::kSquaredL2;
  for (int64_t q = 0; q < padded; ++q) {
    w.squares[q] = need_squares && q < block.count ? squares[q] : T(0);
  }
}

}  // namespace
}  // namespace fcl::ops::cpu
