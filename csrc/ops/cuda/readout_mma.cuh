// SPDX-License-Identifier: Apache-2.0
// The tile loop of softmax_readout on tensor cores, forward and gradients:
//   out[left] = sum over right of weight(left, right) * row of right,
// with weights made of one or two products of left and right rows. A block of eight warps has 128
// left rows, 16 to a warp, one split of the right rows and one panel of columns of the sum; it
// takes tile after tile of right rows. Products stay in registers and become the left operand of
// the sum. A `Feed` brings the operands, a `Work` makes the weights and keeps the results.
#pragma once

#include <type_traits>

#include "common/cuda_limits.h"
#include "common/mma_product.cuh"
#include "ops/cuda/readout_mma_feed.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

// Factor of a class in a sum of its rows, from its inverse norm. No float16 row but zero has one
// above 2^25; zero rows add nothing, and their factor of 1e12 leaves float16's range.
template <typename S>
__device__ __forceinline__ float factor_in_sum(float inverse_norm) {
  return std::is_same_v<S, Float16> && inverse_norm > 33554432.0f ? 0.0f : inverse_norm;
}

// Work has
//   kSums, kSlopes: whether there is a sum, and a second product,
//   has_terms(), load_term(row, words): what it wants to have at hand of each right row,
//   start(first left row of the warp, first right row, their count),
//   weigh(products, second products, sums, right row from the first, where the terms are),
//   flush(sums, whether they are the first), finish().
template <class Work, template <class> class Feed>
__device__ __forceinline__ void mma_tile_loop(const MmaTask<typename Work::Shape::S>& task,
                                              Work& work) {
  using Shape = typename Work::Shape;
  using S = typename Shape::S;
  using Product = PanelProduct<S>;
  constexpr int kTiles = Shape::kTiles;
  const int warp = threadIdx.x / kWarp;
  const uint32_t own = warp * 16 * kPanelBytes;  // this warp's rows in a panel
  Feed<Shape> feed(task);
  const int count = feed.count;
  work.start(task.left_row() + warp * 16, task.first(), count);
  float sums[Work::kSums ? Shape::kWidth / 8 : 1][4];
  for (int run = 0; run < count; run += kFlush) {
    const int run_end = min(run + static_cast<int>(kFlush), count);
    clear(sums);
    for (int right = run; right < run_end; right += Shape::kRights) {
      uint32_t term[4] = {};
      const bool has_term = work.has_terms() && static_cast<int>(threadIdx.x) < Shape::kRights;
      if (has_term) work.load_term(task.first() + right + threadIdx.x, term);
      float products[kTiles][4];
      clear(products);
      for (int i = 0; i < feed.counts[0]; ++i) {
        const PanelPair at = feed.product(0, i);
        Product::rows(products, at.left + own, at.right);
      }
      float slopes[Work::kSlopes ? kTiles : 1][4];
      if constexpr (Work::kSlopes) {
        clear(slopes);
        for (int i = 0; i < feed.counts[1]; ++i) {
          const PanelPair at = feed.product(1, i);
          Product::rows(slopes, at.left + own, at.right);
        }
      }
      if (work.has_terms()) {
        // Those of the tile before were last read ahead of a barrier in the feed.
        if (has_term) store_shared(shared_base() + 16 * threadIdx.x, term);
        __syncthreads();  // they are written
      }
      work.weigh(products, slopes, sums, right, shared_base());
      if constexpr (Work::kSums) {
        typename Product::template Weights<kTiles> weights;
        weights.set(products);
#pragma unroll
        for (int i = 0; i < Shape::kWidth / kPanelColumns<S>; ++i) {
          if (i >= feed.counts[2]) break;
          Product::columns(sums, i * kPanelColumns<S> / 8, weights, feed.sum(i));
        }
      }
    }
    work.flush(sums, run == 0);
  }
  work.finish();
}

}  // namespace
}  // namespace fcl::ops::cuda
