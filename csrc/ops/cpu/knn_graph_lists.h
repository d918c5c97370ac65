// SPDX-License-Identifier: Apache-2.0
// The lists of candidates of knn_graph and knn_search on the CPU: what a similarity must reach to
// enter one, and entering it. Internal to each ISA unit.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/simd.h"
#include "ops/cpu/knn_graph_kernels.h"
#include "ops/cpu/knn_graph_keys.h"

namespace fcl::ops::cpu {
namespace {

template <typename T>
constexpr T infinity() {
  return static_cast<T>(__builtin_inf());
}

// Bit l is set where a[l] >= b[l]; never for a NaN.
template <typename T>
inline uint32_t mask_reaches(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ);
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GE_OQ);
#elif defined(__AVX2__)
  const auto reaches = a >= b;
  if constexpr (sizeof(T) == 4) {
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)reaches));
  }
  return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)reaches));
#else
  uint32_t mask = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) mask |= uint32_t{a[lane] >= b[lane]} << lane;
  return mask;
#endif
}

// The least similarity that can still be among the best when all indices to come are at least
// next_index: an equal one must have an index below that of the k-th best.
template <typename T>
inline T threshold(Key<T> bound, int64_t next_index) {
  if (bound == 0) return -infinity<T>();
  const bool ties_lose = index_of<T>(bound) < next_index;
  return similarity_of<T>(ties_lose ? bound + (Key<T>{1} << 32) : bound);
}

// Adds a candidate to the list of a row; true if that raised the row's bound.
template <typename T>
inline bool add_candidate(const KnnProblem& p, const KnnTables& tables, int64_t row, T similarity,
                          int64_t index) {
  Key<T>* keys = static_cast<Key<T>*>(tables.keys) + row * p.capacity;
  const int32_t count = tables.counts[row];
  keys[count] = make_key(similarity, index);
  tables.counts[row] = count + 1;
  if (count + 1 < p.capacity) return false;
  select_best(keys, p.capacity, p.k);
  tables.counts[row] = static_cast<int32_t>(p.k);
  static_cast<Key<T>*>(tables.bounds)[row] = keys[p.k - 1];
  return true;
}

}  // namespace
}  // namespace fcl::ops::cpu
