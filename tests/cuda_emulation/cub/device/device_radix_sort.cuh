// SPDX-License-Identifier: Apache-2.0
// Stand-in for CUB's header of the same name: a stable sort of pairs by the given bits of the keys.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "cuda_runtime_api.h"

namespace cub {

struct DeviceRadixSort {
  template <typename Key, typename Value>
  static cudaError_t SortPairs(void* scratch, size_t& bytes, const Key* keys_in, Key* keys_out,
                               const Value* values_in, Value* values_out, int64_t count,
                               int begin_bit, int end_bit, cudaStream_t) {
    if (scratch == nullptr) {
      bytes = 1;
      return cudaSuccess;
    }
    const Key mask = static_cast<Key>((uint64_t{1} << (end_bit - begin_bit)) - 1);
    const auto digits = [&](int64_t i) { return keys_in[i] >> begin_bit & mask; };
    std::vector<int64_t> order(count);
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return digits(a) < digits(b); });
    for (int64_t i = 0; i < count; ++i) {
      keys_out[i] = keys_in[order[i]];
      values_out[i] = values_in[order[i]];
    }
    return cudaSuccess;
  }
};

}  // namespace cub
