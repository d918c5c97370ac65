// SPDX-License-Identifier: Apache-2.0
// The inner loop of knn_search on the CPU: products that are tested in registers. After the first
// few blocks hardly a tile has a similarity that its columns still look for, so only those that do
// are stored and read again. Internal to each ISA unit.
#pragma once

#include "ops/cpu/knn_graph_lists.h"
#include "ops/cpu/knn_graph_pack.h"

namespace fcl::ops::cpu {
namespace {

// Similarities of a tile, [kRows][kPanel].
template <typename T>
struct Similarities {
  alignas(kVectorBytes) T of[kTileRows * kPanel<T>];
};

// Similarities of kRows rows to a panel of columns; false, and nothing stored, where none of them
// reaches its column's threshold.
template <typename T, int kRows>
inline bool tile_reaches(const TileA<T>& a, const T* b, const T* row_squares,
                         const T* column_squares, const T* thresholds, Similarities<T>& out) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[kRows][2];
  tile_sums<T, kRows, kPanel<T>>(a, b, sum);
  if (row_squares != nullptr) {
    const Vec<T> squares[2] = {load(column_squares), load(column_squares + L)};
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      for (int half = 0; half < 2; ++half) {
        const Vec<T> value = sum[m][half] * T(2) - (squares[half] + row_squares[m]);
        sum[m][half] = value > 0 ? Vec<T>{} : value;
      }
    }
  }
  Vec<T> best[2] = {sum[0][0], sum[0][1]};
#pragma GCC unroll 16
  for (int m = 1; m < kRows; ++m) {
    best[0] = sum[m][0] > best[0] ? sum[m][0] : best[0];
    best[1] = sum[m][1] > best[1] ? sum[m][1] : best[1];
  }
  const uint32_t mask =
      mask_reaches<T>(best[0], load(thresholds)) | mask_reaches<T>(best[1], load(thresholds + L));
  if (mask == 0) return false;
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    store(out.of + m * kPanel<T>, sum[m][0]);
    store(out.of + m * kPanel<T> + L, sum[m][1]);
  }
  return true;
}

template <typename T, int kRows = kTileRows>
inline bool rows_reach(int64_t rows, const TileA<T>& a, const T* b, const T* row_squares,
                       const T* column_squares, const T* thresholds, Similarities<T>& out) {
  if (rows == kRows) {
    return tile_reaches<T, kRows>(a, b, row_squares, column_squares, thresholds, out);
  }
  if constexpr (kRows > 1) {
    return rows_reach<T, kRows - 1>(rows, a, b, row_squares, column_squares, thresholds, out);
  }
  return false;
}

// Adds what reaches its threshold to the lists of a panel of columns, row by row: a threshold
// leaves out equal similarities once the k-th best has a lower index.
template <typename T>
void offer_tile(const KnnProblem& p, const KnnTables& lists, const Similarities<T>& tile,
                int64_t rows, int64_t first, int64_t column, T* thresholds) {
  const Key<T>* bounds = static_cast<const Key<T>*>(lists.bounds) + column;
  for (int64_t r = 0; r < rows; ++r) {
    const T* similarity = tile.of + r * kPanel<T>;
    uint32_t mask = mask_reaches<T>(load(similarity), load(thresholds)) |
                    mask_reaches<T>(load(similarity + kLanes<T>), load(thresholds + kLanes<T>))
                        << kLanes<T>;
    for (; mask != 0; mask &= mask - 1) {
      const int64_t c = __builtin_ctz(mask);
      if (add_candidate(p, lists, column + c, similarity[c], first + r)) {
        thresholds[c] = threshold<T>(bounds[c], first + r + 1);
      }
    }
  }
}

template <typename T>
void search_typed(const KnnProblem& p, const KnnTables& tables, KnnBlock rows, KnnBlock next,
                  int64_t first, const KnnProblem& of_columns, const KnnTables& lists,
                  KnnBlock columns, void* scratch) {
  const Workspace<T> w(of_columns, scratch);
  const Key<T>* bounds = static_cast<const Key<T>*>(lists.bounds) + columns.begin;
  const int64_t padded = round_up(columns.count, kPanel<T>);
  for (int64_t q = 0; q < padded; ++q) {
    w.thresholds[q] =
        q < columns.count ? threshold<T>(bounds[q], first + rows.begin) : infinity<T>();
  }
  const int64_t groups = ceil_div(rows.count, kTileRows);
  Prefetch ahead = prefetch_rows<T>(tables, w, next, rows.count, columns.count);
  const T* packed = packed_rows<T>(tables, w, rows);
  TileA<T> a{packed, w.dim / kPanel<T>, kPanel<T>, rows.count * kPanel<T>, 1, &ahead};
  const T* squares = p.metric == KnnMetric::kSquaredL2
                         ? static_cast<const T*>(tables.squares) + rows.begin
                         : nullptr;
  Similarities<T> tile;
  for (int64_t q = 0; q < padded; q += kPanel<T>) {
    // In groups as equal as possible, as tile_all_rows has them.
    for (int64_t group = 0; group < groups; ++group) {
      const int64_t begin = group * rows.count / groups;
      const int64_t count = (group + 1) * rows.count / groups - begin;
      a.data = packed + begin * kPanel<T>;
      if (rows_reach<T>(count, a, w.columns + q * w.dim,
                        squares == nullptr ? nullptr : squares + begin, w.squares + q,
                        w.thresholds + q, tile)) {
        offer_tile(of_columns, lists, tile, count, first + rows.begin + begin, columns.begin + q,
                   w.thresholds + q);
      }
    }
  }
}

}  // namespace
}  // namespace fcl::ops::cpu
