// SPDX-License-Identifier: Apache-2.0
// The k best of a row of knn_graph: sorted, best first, in the output itself, so that any k works.
// What the order is by, once: paths must agree to the last bit.
#pragma once

#include "common/cuda_device.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

// Of the product of two rows and their squared norms.
template <typename T>
__device__ __forceinline__ T l2_similarity(T product, T left_square, T right_square) {
  const T similarity = T(2) * product - (left_square + right_square);
  return similarity > 0 ? T(0) : similarity;
}

// Larger similarities first, equal ones by lower index.
template <typename T>
__device__ __forceinline__ bool comes_first(T a, int32_t a_index, T b, int32_t b_index) {
  return a > b || (a == b && a_index < b_index);
}

// Puts (similarity, index) in its place in a sorted list of k, the last entry falls off. Returns
// the new k-th best similarity. The whole warp calls it.
template <typename T>
__device__ __forceinline__ T insert(T* similarities, int32_t* indices, int64_t k, T similarity,
                                    int32_t index) {
  const int lane = threadIdx.x % kWarp;
  T bound = similarity;
  const int64_t last = (k - 1) / kWarp * kWarp;
  for (int64_t begin = last; begin >= 0; begin -= kWarp) {
    const int64_t at = begin + lane;
    const bool inside = at < k;
    const T mine = inside ? similarities[at] : -infinity<T>();
    const int32_t my_index = inside ? indices[at] : INT32_MAX;
    T before = __shfl_up_sync(kAllLanes, mine, 1);
    int32_t before_index = __shfl_up_sync(kAllLanes, my_index, 1);
    if (lane == 0 && begin > 0) {
      before = similarities[begin - 1];
      before_index = indices[begin - 1];
    }
    const bool keeps = comes_first(mine, my_index, similarity, index);
    const bool is_place = at == 0 || comes_first(before, before_index, similarity, index);
    const T now = keeps ? mine : is_place ? similarity : before;
    if (inside && !keeps) {
      similarities[at] = now;
      indices[at] = is_place ? index : before_index;
    }
    if (begin == last) bound = __shfl_sync(kAllLanes, now, static_cast<int>((k - 1) % kWarp));
    // Entries further ahead are larger still.
    if (__ballot_sync(kAllLanes, inside && keeps) != 0) break;
  }
  __syncwarp();  // the next call reads what other lanes wrote
  return bound;
}

}  // namespace
}  // namespace fcl::ops::cuda
