// SPDX-License-Identifier: Apache-2.0
// CPU kernels of knn_graph and knn_search, compiled once per ISA by knn_graph_<isa>.cpp.
//
// In knn_graph similarity is symmetric, so the product of two blocks of rows is computed once and
// read twice: by columns, where one vector comparison tests a row against the k-th best of many
// columns, and by rows, where it tests many columns against the k-th best of a row. After the first
// few blocks hardly any passes. Those that do go to the list of candidates of the row or column,
// which holds keys in total order: what is best does not depend on the order they come in. Every
// similarity is one sum in a fixed order, whatever block it falls in.
#pragma once

#include "ops/cpu/knn_graph_lists.h"
#include "ops/cpu/knn_graph_pack.h"
#include "ops/cpu/knn_search_impl.h"

namespace fcl::ops::cpu {
namespace {

// Products -> similarities in place, for l2.
template <typename T>
void to_distances(const Workspace<T>& w, const T* row_squares, KnnBlock rows, KnnBlock columns) {
  for (int64_t r = 0; r < rows.count; ++r) {
    for (int64_t q = 0; q < columns.count; q += kLanes<T>) {
      T* z = w.products + r * kKnnBlock + q;
      const Vec<T> value = load(z) * T(2) - (load(w.squares + q) + row_squares[r]);
      store(z, value > 0 ? Vec<T>{} : value);
    }
  }
}

template <typename T>
void multiply_typed(const KnnProblem& p, const KnnTables& tables, KnnBlock rows, KnnBlock next,
                    KnnBlock columns, void* scratch) {
  const Workspace<T> w(p, scratch);
  Prefetch ahead = prefetch_rows<T>(tables, w, next, rows.count, columns.count);
  const TileA<T> a{packed_rows<T>(tables, w, rows),
                   w.dim / kPanel<T>,
                   kPanel<T>,
                   rows.count * kPanel<T>,
                   1,
                   &ahead};
  for (int64_t q = 0; q < columns.count; q += kPanel<T>) {
    tile_all_rows<T, kPanel<T>>(rows.count, a, w.columns + q * w.dim, w.products + q, kKnnBlock,
                                false);
  }
  if (p.metric == KnnMetric::kSquaredL2) {
    to_distances(w, static_cast<const T*>(tables.squares) + rows.begin, rows, columns);
  }
  if (rows.begin != columns.begin) return;
  // NaN reaches no threshold.
  for (int64_t i = 0; i < rows.count; ++i) {
    w.products[i * kKnnBlock + i] = static_cast<T>(__builtin_nan(""));
  }
}

template <typename T>
void offer_to_columns_typed(const KnnProblem& p, const KnnTables& tables, KnnBlock rows,
                            KnnBlock columns, void* scratch) {
  const Workspace<T> w(p, scratch);
  const Key<T>* bounds = static_cast<const Key<T>*>(tables.bounds) + columns.begin;
  for (int64_t q = 0; q < round_up(columns.count, kLanes<T>); ++q) {
    w.thresholds[q] = q < columns.count ? threshold<T>(bounds[q], rows.begin) : infinity<T>();
  }
  for (int64_t r = 0; r < rows.count; ++r) {
    const T* similarity = w.products + r * kKnnBlock;
    for (int64_t q = 0; q < columns.count; q += kLanes<T>) {
      uint32_t mask = mask_reaches<T>(load(similarity + q), load(w.thresholds + q));
      for (; mask != 0; mask &= mask - 1) {
        const int64_t c = q + __builtin_ctz(mask);
        const int64_t index = rows.begin + r;
        if (add_candidate(p, tables, columns.begin + c, similarity[c], index)) {
          w.thresholds[c] = threshold<T>(bounds[c], index + 1);
        }
      }
    }
  }
}

template <typename T>
void offer_to_rows_typed(const KnnProblem& p, const KnnTables& tables, KnnBlock rows,
                         KnnBlock columns, void* scratch) {
  const Workspace<T> w(p, scratch);
  const Key<T>* bounds = static_cast<const Key<T>*>(tables.bounds) + rows.begin;
  for (int64_t r = 0; r < rows.count; ++r) {
    const T* similarity = w.products + r * kKnnBlock;
    T least = threshold<T>(bounds[r], columns.begin);
    for (int64_t q = 0; q < columns.count; q += kLanes<T>) {
      uint32_t mask = mask_reaches<T>(load(similarity + q), broadcast(least));
      const int64_t left = columns.count - q;
      if (left < kLanes<T>) mask &= (uint32_t{1} << left) - 1;
      for (; mask != 0; mask &= mask - 1) {
        const int64_t c = q + __builtin_ctz(mask);
        const int64_t index = columns.begin + c;
        if (add_candidate(p, tables, rows.begin + r, similarity[c], index)) {
          least = threshold<T>(bounds[r], index + 1);
        }
      }
    }
  }
}

template <typename T>
void finish_typed(const KnnProblem& p, const KnnTables& tables, KnnBlock block, int32_t* indices,
                  T* similarities) {
  for (int64_t row = block.begin; row < block.begin + block.count; ++row) {
    Key<T>* keys = static_cast<Key<T>*>(tables.keys) + row * p.capacity;
    int64_t found = tables.counts[row];
    if (found > p.k) {
      select_best(keys, found, p.k);
      found = p.k;
    }
    sort_best_first(keys, found);
    for (int64_t i = 0; i < p.width; ++i) {
      indices[row * p.width + i] = i < found ? index_of<T>(keys[i]) : -1;
      similarities[row * p.width + i] = i < found ? similarity_of<T>(keys[i]) : T(0);
    }
  }
}

template <typename F>
void with_accumulate(const KnnProblem& p, const F& f) {
  if (p.dtype == Dtype::kFloat64) {
    f(0.0);
  } else {
    f(0.0f);
  }
}

KnnBytes bytes(const KnnProblem& p) {
  KnnBytes bytes{};
  with_accumulate(p, [&](auto zero) {
    using T = decltype(zero);
    const Workspace<T> w(p, nullptr);
    const auto rows = static_cast<size_t>(p.num_rows);
    bytes = {sizeof(T) * rows * static_cast<size_t>(w.dim), sizeof(T) * rows,
             sizeof(Key<T>) * rows * static_cast<size_t>(p.capacity), sizeof(Key<T>) * rows,
             w.bytes};
  });
  return bytes;
}
KnnRefusal pack(const KnnProblem& p, const KnnTables& tables, KnnBlock block, void* scratch,
                int64_t* refused) {
  KnnRefusal why = KnnRefusal::kNone;
  dispatch_dtype(p.dtype, [&](auto tag) {
    why = pack_typed<typename decltype(tag)::type>(p, tables, block, scratch, refused);
  });
  return why;
}
void load_columns(const KnnProblem& p, const KnnTables& tables, KnnBlock block, void* scratch) {
  with_accumulate(
      p, [&](auto zero) { load_columns_typed<decltype(zero)>(p, tables, block, scratch); });
}
void multiply(const KnnProblem& p, const KnnTables& tables, KnnBlock rows, KnnBlock next,
              KnnBlock columns, void* scratch) {
  with_accumulate(p, [&](auto zero) {
    multiply_typed<decltype(zero)>(p, tables, rows, next, columns, scratch);
  });
}
void offer_to_columns(const KnnProblem& p, const KnnTables& tables, KnnBlock rows, KnnBlock columns,
                      void* scratch) {
  with_accumulate(p, [&](auto zero) {
    offer_to_columns_typed<decltype(zero)>(p, tables, rows, columns, scratch);
  });
}
void offer_to_rows(const KnnProblem& p, const KnnTables& tables, KnnBlock rows, KnnBlock columns,
                   void* scratch) {
  with_accumulate(p, [&](auto zero) {
    offer_to_rows_typed<decltype(zero)>(p, tables, rows, columns, scratch);
  });
}
void search(const KnnProblem& p, const KnnTables& tables, KnnBlock rows, KnnBlock next,
            int64_t first, const KnnProblem& of_columns, const KnnTables& lists, KnnBlock columns,
            void* scratch) {
  with_accumulate(p, [&](auto zero) {
    search_typed<decltype(zero)>(p, tables, rows, next, first, of_columns, lists, columns, scratch);
  });
}
void finish(const KnnProblem& p, const KnnTables& tables, KnnBlock block, int32_t* indices,
            void* similarities) {
  with_accumulate(p, [&](auto zero) {
    using T = decltype(zero);
    finish_typed<T>(p, tables, block, indices, static_cast<T*>(similarities));
  });
}

}  // namespace

const KnnGraphKernels FCL_KNN_GRAPH_KERNELS = {
    bytes, pack, load_columns, multiply, offer_to_columns, offer_to_rows, search, finish};

}  // namespace fcl::ops::cpu
