// SPDX-License-Identifier: Apache-2.0
// Survivors of the filter of knn_graph, between the tensor cores and the lists. A warp owns 32 of
// the block's rows, and a queue of pairs of them. It sums them as `simt` does, a pair per lane, and
// puts into the lists what beats their ends.
//
// Pairs come into a queue in any order, but lists are ordered by similarity and index, whatever the
// order in which their entries came: the result does not show it.
#pragma once

#include "common/cuda_limits.h"
#include "ops/cuda/knn_filter_tile.cuh"
#include "ops/cuda/knn_list.cuh"
#include "ops/cuda/knn_path.h"

namespace fcl::ops::cuda {
namespace {

inline constexpr int kQueueRows = kFilterRows / kFilterWarps;
// Where a warp's rows are summed from: 128 bytes of each row of 32 pairs, at the start of the
// stages.
inline constexpr int kPartBytes = kWarp * kPanelBytes;
inline constexpr int kPartDims = kPanelBytes / static_cast<int>(sizeof(float));
static_assert(kFilterWarps * 2 * kPartBytes <= 2 * kFilterPanelBytes);

struct FilterQueues {
  int counts[kFilterWarps];  // of pairs that came, more than there is room for included
  int32_t columns[kFilterWarps][kKnnQueue];
  uint8_t rows[kFilterWarps][kKnnQueue];  // of the block

  // The most that came to one.
  __device__ __forceinline__ int fullest() const {
    int most = 0;
#pragma unroll
    for (int w = 0; w < kFilterWarps; ++w) most = max(most, counts[w]);
    return most;
  }

  // Takes the survivors for which there is room, and those that are no pairs: past the last row,
  // or of a row and itself. The others stay.
  __device__ __forceinline__ void push(Survivors& survivors, int64_t first_row,
                                       int64_t first_column, int64_t num_rows) {
#pragma unroll
    for (int word = 0; word < Survivors::kWords; ++word) {
      for (uint32_t rest = survivors.bits[word]; rest != 0; rest &= rest - 1) {
        const int bit = __ffs(static_cast<int>(rest)) - 1;
        const int row = Survivors::row(bit);
        const int64_t column = first_column + Survivors::column(word, bit);
        if (column < num_rows && column != first_row + row) {
          const int queue = row / kQueueRows;
          const int at = atomicAdd(&counts[queue], 1);
          if (at >= kKnnQueue) continue;
          columns[queue][at] = static_cast<int32_t>(column);
          rows[queue][at] = static_cast<uint8_t>(row);
        }
        survivors.bits[word] &= ~(1u << bit);
      }
    }
  }
};

// left . right of a pair for each lane, in the order of tile_product: one after the other, then
// zeros up to a multiple of its depth. `at`: two parts of shared memory for this warp.
__device__ __forceinline__ float sum_pairs(const float* rows, int64_t stride, int32_t left,
                                           int32_t right, int count, uint32_t at) {
  const int lane = warp_lane();
  const int chunk = lane % kPanelChunks;
  float sum = 0;
  for (int64_t begin = 0; begin < stride; begin += kPartDims) {
    const int64_t d = begin + chunk * (kChunkBytes / static_cast<int>(sizeof(float)));
#pragma unroll
    for (int first = 0; first < kWarp; first += kWarp / kPanelChunks) {
      const int pair = first + lane / kPanelChunks;
      const bool inside = pair < count && d < stride;
      const int64_t left_row = __shfl_sync(kAllLanes, left, pair);
      const int64_t right_row = __shfl_sync(kAllLanes, right, pair);
      const uint32_t to = at + chunk_offset(pair, chunk);
      copy_async(to, inside ? rows + left_row * stride + d : rows, inside);
      copy_async(to + kPartBytes, inside ? rows + right_row * stride + d : rows, inside);
    }
    commit_copies();
    wait_copies<0>();
    __syncwarp();  // the copies of all lanes are there
    const int chunks = stride - begin > kTileDepth ? kPanelChunks : kPanelChunks / 2;
#pragma unroll 4
    for (int c = 0; c < chunks; ++c) {
      uint32_t a[4];
      uint32_t b[4];
      load_shared(a, at + chunk_offset(lane, c));
      load_shared(b, at + kPartBytes + chunk_offset(lane, c));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum = multiply_add(__uint_as_float(a[i]), __uint_as_float(b[i]), sum);
      }
    }
    __syncwarp();  // and read, before others take their place
  }
  return sum;
}

// Empties this warp's queue into the lists of its rows.
template <bool kIsL2>
__device__ __forceinline__ void drain_queue(FilterQueues& queues, const KnnRows& from,
                                            int64_t first_row, FilterRows& rows, int64_t k,
                                            int32_t* indices, float* similarities) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = warp_lane();
  const float* data = static_cast<const float*>(from.data);
  const float* squares = static_cast<const float*>(from.squares);
  const uint32_t at = shared_base() + static_cast<uint32_t>(warp * 2 * kPartBytes);
  const int count = min(queues.counts[warp], kKnnQueue);
  for (int begin = 0; begin < count; begin += kWarp) {
    const bool inside = begin + lane < count;
    const int row = inside ? queues.rows[warp][begin + lane] : warp * kQueueRows;
    const int32_t column = inside ? queues.columns[warp][begin + lane] : 0;
    float similarity = sum_pairs(data, from.stride, static_cast<int32_t>(first_row + row), column,
                                 count - begin, at);
    if constexpr (kIsL2) {
      similarity = l2_similarity(similarity, rows.squares[row], inside ? squares[column] : 0.0f);
    }
    unsigned better = __ballot_sync(kAllLanes, inside && similarity >= rows.bounds[row]);
    for (; better != 0; better &= better - 1) {
      const int source = __ffs(static_cast<int>(better)) - 1;
      const int to = __shfl_sync(kAllLanes, row, source);
      const float value = __shfl_sync(kAllLanes, similarity, source);
      const int32_t index = __shfl_sync(kAllLanes, column, source);
      const int64_t list = (first_row + to) * k;
      // Others may have gone into this list meanwhile.
      const float bound = rows.bounds[to];
      if (!comes_first(value, index, bound, indices[list + k - 1])) continue;
      const float now = insert(similarities + list, indices + list, k, value, index);
      if (lane == 0) rows.bounds[to] = now;
      __syncwarp();  // the new bound is written
    }
  }
  __syncwarp();  // all lanes know the count
  if (lane == 0) queues.counts[warp] = 0;
}

}  // namespace
}  // namespace fcl::ops::cuda
