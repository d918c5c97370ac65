// SPDX-License-Identifier: Apache-2.0
// CPU kernels of knn_graph, compiled once per ISA by knn_graph_<isa>.cpp.
//
// The product of a block of rows with a block of queries is held transposed, [rows][queries]: one
// vector comparison tests a row against the current k-th best of many queries, and after the first
// few blocks hardly any passes. Those that do go to a heap per query. Every similarity is one sum
// in a fixed order, whatever block it falls in.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "common/tile.h"
#include "ops/cpu/knn_graph_kernels.h"

namespace fcl::ops::cpu {
namespace {

// A neighbour as one integer, larger for better: the similarity's bits, made to sort as the number
// does, above the complement of the index, so that ties go to the lower one.
template <typename T>
struct KeyOf {
  using type = uint64_t;
  using Bits = uint32_t;
};
template <>
struct KeyOf<double> {
  __extension__ typedef unsigned __int128 type;
  using Bits = uint64_t;
};
template <typename T>
using Key = typename KeyOf<T>::type;

template <typename T>
inline Key<T> make_key(T similarity, int64_t index) {
  using Bits = typename KeyOf<T>::Bits;
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  const T value = similarity + T(0);  // -0 ties with 0
  Bits bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  bits = (bits & kSign) != 0 ? ~bits : bits | kSign;
  return (static_cast<Key<T>>(bits) << 32) | static_cast<uint32_t>(~index);
}
template <typename T>
inline T similarity_of(Key<T> key) {
  using Bits = typename KeyOf<T>::Bits;
  constexpr Bits kSign = Bits{1} << (8 * sizeof(Bits) - 1);
  Bits bits = static_cast<Bits>(key >> 32);
  bits = (bits & kSign) != 0 ? bits ^ kSign : ~bits;
  T value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}
template <typename T>
inline int32_t index_of(Key<T> key) {
  return static_cast<int32_t>(~static_cast<uint32_t>(key));
}

template <typename T>
constexpr T infinity() {
  return static_cast<T>(__builtin_inf());
}
template <typename T>
constexpr T largest_finite() {
  return sizeof(T) == 4 ? static_cast<T>(__FLT_MAX__) : static_cast<T>(__DBL_MAX__);
}

// Bit l is set where a[l] > b[l].
template <typename T>
inline uint32_t mask_greater(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
  return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ);
#elif defined(__AVX2__)
  const auto greater = a > b;
  if constexpr (sizeof(T) == 4) {
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)greater));
  }
  return static_cast<uint32_t>(_mm256_movemask_pd((__m256d)greater));
#else
  uint32_t mask = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) mask |= uint32_t{a[lane] > b[lane]} << lane;
  return mask;
#endif
}

template <typename K>
inline void exchange(K& a, K& b) {
  const K c = a;
  a = b;
  b = c;
}

// Moves the best k of n keys to the front, the k-th best to place k - 1.
template <typename K>
void select_best(K* keys, int64_t n, int64_t k) {
  int64_t begin = 0;
  int64_t last = n - 1;
  while (begin < last) {
    // The median of three becomes the pivot, at the end.
    K& middle = keys[(begin + last) / 2];
    if (middle > keys[begin]) exchange(middle, keys[begin]);
    if (keys[last] > keys[begin]) exchange(keys[last], keys[begin]);
    if (middle > keys[last]) exchange(middle, keys[last]);
    const K pivot = keys[last];
    int64_t better = begin;
    // Without a branch: comparisons here are coin flips.
    for (int64_t i = begin; i < last; ++i) {
      const K key = keys[i];
      keys[i] = keys[better];
      keys[better] = key;
      better += key > pivot;
    }
    keys[last] = keys[better];
    keys[better] = pivot;
    if (better == k - 1) return;
    if (better < k - 1) {
      begin = better + 1;
    } else {
      last = better - 1;
    }
  }
}

// Heap sort, best first.
template <typename K>
void sort_best_first(K* keys, int64_t n) {
  auto sift = [keys](int64_t at, int64_t size) {
    const K key = keys[at];
    for (int64_t child = 2 * at + 1; child < size; child = 2 * at + 1) {
      if (child + 1 < size && keys[child + 1] < keys[child]) ++child;
      if (keys[child] >= key) break;
      keys[at] = keys[child];
      at = child;
    }
    keys[at] = key;
  };
  for (int64_t at = n / 2 - 1; at >= 0; --at) sift(at, n);
  for (int64_t last = n - 1; last > 0; --last) {
    exchange(keys[0], keys[last]);
    sift(0, last);
  }
}

template <typename T>
struct Workspace {
  int64_t dim, capacity;  // dim padded to whole panels; candidates per query
  T* queries;             // [kKnnQueries / kPanel][dim][kPanel]
  T* products;            // [kKnnRows][kKnnQueries]
  T* bounds;              // [kKnnQueries]: none of the k best is below
  T* squares;             // [kKnnQueries]
  int64_t* counts;        // [kKnnQueries]: candidates collected
  Key<T>* keys;           // [kKnnQueries][capacity]
  size_t bytes;

  Workspace(const KnnProblem& p, void* scratch)
      : dim(round_up(p.dim, kPanel<T>)), capacity(2 * p.k) {
    char* base = static_cast<char*>(scratch);
    size_t used = 0;
    auto take = [&](size_t size) {
      char* at = base == nullptr ? nullptr : base + used;
      used += static_cast<size_t>(round_up(static_cast<int64_t>(size), 64));
      return at;
    };
    queries = reinterpret_cast<T*>(take(sizeof(T) * kKnnQueries * dim));
    // Also holds a block of converted rows while packing.
    const int64_t width = dim > kKnnQueries ? dim : kKnnQueries;
    products = reinterpret_cast<T*>(take(sizeof(T) * kKnnRows * width));
    bounds = reinterpret_cast<T*>(take(sizeof(T) * kKnnQueries));
    squares = reinterpret_cast<T*>(take(sizeof(T) * kKnnQueries));
    counts = reinterpret_cast<int64_t*>(take(sizeof(int64_t) * kKnnQueries));
    keys = reinterpret_cast<Key<T>*>(take(sizeof(Key<T>) * kKnnQueries * capacity));
    bytes = used;
  }
};

// Converts one row to T, normalised for cosine. The norm is taken relative to the largest entry, in
// double, so neither tiny nor huge rows lose it.
template <typename T, typename S>
KnnRefusal convert_row(const KnnProblem& p, const S* from, T* to, T* square) {
  double largest = 0;
  for (int64_t d = 0; d < p.dim; ++d) {
    const double x = static_cast<double>(load_as<T>(from + d));
    const double size = x < 0 ? -x : x;
    largest = size > largest || x != x ? size : largest;
  }
  if (!(largest <= __DBL_MAX__)) return KnnRefusal::kNotFinite;
  if (p.metric == KnnMetric::kCosine) {
    double sum = 0;
    for (int64_t d = 0; d < p.dim && largest > 0; ++d) {
      const double x = static_cast<double>(load_as<T>(from + d)) / largest;
      sum += x * x;
    }
    // A zero row stays zero: similarity 0 to everything.
    const double inverse = largest > 0 ? 1.0 / __builtin_sqrt(sum) : 1.0;
    const double unit = largest > 0 ? largest : 1.0;
    for (int64_t d = 0; d < p.dim; ++d) {
      to[d] = static_cast<T>(static_cast<double>(load_as<T>(from + d)) / unit * inverse);
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

template <typename S>
KnnRefusal pack_typed(const KnnProblem& p, int64_t block, void* scratch, const KnnPacked& packed,
                      int64_t* refused) {
  using T = typename Accumulate<S>::type;
  const Workspace<T> w(p, scratch);
  const int64_t begin = block * kKnnRows;
  const int64_t count = p.num_rows - begin < kKnnRows ? p.num_rows - begin : kKnnRows;
  T* rows = w.products;
  for (int64_t i = 0; i < count; ++i) {
    const S* from = static_cast<const S*>(p.features) + (begin + i) * p.dim;
    const KnnRefusal why =
        convert_row<T>(p, from, rows + i * p.dim, static_cast<T*>(packed.squares) + begin + i);
    if (why == KnnRefusal::kNone) continue;
    *refused = begin + i;
    return why;
  }
  pack_rows<T>(rows, count, p.dim, kKnnRows, static_cast<T*>(packed.rows) + begin * w.dim);
  return KnnRefusal::kNone;
}

// Packed rows -> columns of the product; columns past the end are zero.
template <typename T>
void load_queries(const Workspace<T>& w, const T* rows, int64_t begin, int64_t count) {
  for (int64_t i = 0; i < kKnnQueries; ++i) {
    T* to = w.queries + i / kPanel<T> * kPanel<T> * w.dim + i % kPanel<T>;
    const int64_t row = begin + i;
    const T* from = rows + row / kKnnRows * kKnnRows * w.dim + row % kKnnRows * kPanel<T>;
    for (int64_t d = 0; d < w.dim; ++d) {
      const int64_t panel = d / kPanel<T>;
      to[d * kPanel<T>] = i < count ? from[panel * kKnnRows * kPanel<T> + d % kPanel<T>] : T(0);
    }
  }
}

// Products -> similarities in place, for l2.
template <typename T>
void to_distances(const Workspace<T>& w, const T* row_squares, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t q = 0; q < kKnnQueries; q += kLanes<T>) {
      T* z = w.products + r * kKnnQueries + q;
      const Vec<T> value = load(z) * T(2) - (load(w.squares + q) + row_squares[r]);
      store(z, value > 0 ? Vec<T>{} : value);
    }
  }
}

// Rows above a query's bound become candidates. Rows come in ascending order, so one that only
// equals the k-th best loses to it, as the tie rule wants.
template <typename T>
void take_better(const Workspace<T>& w, int64_t k, int64_t first_row, int64_t rows) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* similarity = w.products + r * kKnnQueries;
    for (int64_t q = 0; q < kKnnQueries; q += kLanes<T>) {
      uint32_t mask = mask_greater<T>(load(similarity + q), load(w.bounds + q));
      for (; mask != 0; mask &= mask - 1) {
        const int64_t query = q + __builtin_ctz(mask);
        Key<T>* keys = w.keys + query * w.capacity;
        keys[w.counts[query]++] = make_key(similarity[query], first_row + r);
        if (w.counts[query] < w.capacity) continue;
        select_best(keys, w.capacity, k);
        w.counts[query] = k;
        w.bounds[query] = similarity_of<T>(keys[k - 1]);
      }
    }
  }
}

template <typename T>
void search_typed(const KnnProblem& p, const KnnPacked& packed, int64_t begin, int64_t count,
                  void* scratch, int32_t* indices, T* similarities) {
  const Workspace<T> w(p, scratch);
  const T* all = static_cast<const T*>(packed.rows);
  const T* squares = static_cast<const T*>(packed.squares);
  load_queries(w, all, begin, count);
  for (int64_t q = 0; q < kKnnQueries; ++q) {
    // Columns without a query accept nothing.
    w.bounds[q] = q < count ? -infinity<T>() : infinity<T>();
    w.squares[q] = q < count && p.metric == KnnMetric::kSquaredL2 ? squares[begin + q] : T(0);
    w.counts[q] = 0;
  }
  for (int64_t row = 0; row < p.num_rows; row += kKnnRows) {
    const int64_t rows = row + kKnnRows < p.num_rows ? kKnnRows : p.num_rows - row;
    const TileA<T> a{all + row * w.dim, w.dim / kPanel<T>, kPanel<T>, kKnnRows * kPanel<T>, 1};
    for (int64_t q = 0; q < count; q += kPanel<T>) {
      tile_all_rows<T, kPanel<T>>(rows, a, w.queries + q * w.dim, w.products + q, kKnnQueries,
                                  false);
    }
    if (p.metric == KnnMetric::kSquaredL2) to_distances(w, squares + row, rows);
    for (int64_t q = 0; q < count; ++q) {
      const int64_t self = begin + q - row;
      if (self >= 0 && self < rows) w.products[self * kKnnQueries + q] = -infinity<T>();
    }
    take_better(w, p.k, row, rows);
  }
  for (int64_t q = 0; q < count; ++q) {
    Key<T>* keys = w.keys + q * w.capacity;
    select_best(keys, w.counts[q], p.k);
    sort_best_first(keys, p.k);
    for (int64_t i = 0; i < p.k; ++i) {
      indices[(begin + q) * p.k + i] = index_of<T>(keys[i]);
      similarities[(begin + q) * p.k + i] = similarity_of<T>(keys[i]);
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

size_t packed_bytes(const KnnProblem& p) {
  size_t bytes = 0;
  with_accumulate(p, [&](auto zero) {
    using T = decltype(zero);
    bytes = sizeof(T) *
            static_cast<size_t>(round_up(p.num_rows, kKnnRows) * round_up(p.dim, kPanel<T>));
  });
  return bytes;
}
size_t scratch_bytes(const KnnProblem& p) {
  size_t bytes = 0;
  with_accumulate(p, [&](auto zero) { bytes = Workspace<decltype(zero)>(p, nullptr).bytes; });
  return bytes;
}
KnnRefusal pack(const KnnProblem& p, int64_t block, void* scratch, const KnnPacked& packed,
                int64_t* refused) {
  KnnRefusal why = KnnRefusal::kNone;
  dispatch_dtype(p.dtype, [&](auto tag) {
    why = pack_typed<typename decltype(tag)::type>(p, block, scratch, packed, refused);
  });
  return why;
}
void search(const KnnProblem& p, const KnnPacked& packed, int64_t begin, int64_t count,
            void* scratch, int32_t* indices, void* similarities) {
  with_accumulate(p, [&](auto zero) {
    using T = decltype(zero);
    search_typed<T>(p, packed, begin, count, scratch, indices, static_cast<T*>(similarities));
  });
}

}  // namespace

const KnnGraphKernels FCL_KNN_GRAPH_KERNELS = {packed_bytes, scratch_bytes, pack, search};

}  // namespace fcl::ops::cpu
