// SPDX-License-Identifier: Apache-2.0
// Candidates of knn_graph on the CPU as integer keys: made, read, selected and sorted. Internal to
// each ISA unit.
#pragma once

#include <cstdint>

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

}  // namespace
}  // namespace fcl::ops::cpu
