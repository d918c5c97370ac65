// SPDX-License-Identifier: Apache-2.0
// The tile loop of softmax_readout on tensor cores, forward and gradients:
//   out[left] = sum over right of weight(left, right) * row of right,
// with weights made of one or two products of left and right rows. A block of eight warps has 128
// left rows, 16 to a warp, one split of the right rows and up to 256 columns of the sum. It takes
// tiles of right rows; for each, panels (128 bytes of each row) come through a ring in shared
// memory, first those of the products, then those of the rows to sum. Products stay in registers
// and become the left operand of the sum. `Work` makes the weights and keeps the results.
#pragma once

#include "common/cuda_limits.h"
#include "common/mma_panel.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

inline constexpr int kMmaWarps = 8;
inline constexpr int kMmaThreads = kMmaWarps * kWarp;
inline constexpr int kMmaRows = 16 * kMmaWarps;
inline constexpr int kMmaWidth = 256;
inline constexpr int kMmaStages = 4;
inline constexpr int kMmaTerms = 3;  // words of a right row that a Work may keep at hand

// Right rows of a tile: three products of split floats need more registers.
template <typename S>
inline constexpr int kMmaRights = sizeof(S) == 4 ? 32 : 64;
template <typename S>
inline constexpr int kMmaStageBytes = (kMmaRows + kMmaRights<S>)*kPanelBytes;
template <typename S>
inline constexpr int kMmaSharedBytes =
    kMmaStages * kMmaStageBytes<S> + kMmaTerms * 4 * kMmaRights<S>;

// Operands of one launch. Product i is left[i] . right[i]^T; `summed` has rows like right.
template <typename S>
struct MmaTask {
  Matrix<S> left[2], right[2], summed;
  int64_t num_right;
  int per_split;
  int products;
  bool sums;

  // Right rows of this block: from first() on, count().
  __device__ __forceinline__ int64_t first() const {
    return static_cast<int64_t>(blockIdx.y) * per_split;
  }
  __device__ __forceinline__ int count() const {
    return static_cast<int>(min(num_right - first(), static_cast<int64_t>(per_split)));
  }
  // Panels of each phase.
  __device__ __forceinline__ int panels(int phase) const {
    int64_t columns = phase == 0 ? left[0].columns : left[1].columns;
    if (phase == 1 && products == 1) columns = 0;
    if (phase == 2) {
      columns = summed.columns - blockIdx.z * kMmaWidth;
      columns = sums ? min(columns, static_cast<int64_t>(kMmaWidth)) : 0;
    }
    return static_cast<int>((columns + kPanelColumns<S> - 1) / kPanelColumns<S>);
  }
};

// Feeds the ring: panels of the tiles' products and sums in the order the block takes them.
template <typename S>
struct PanelRing {
  static constexpr int kRights = kMmaRights<S>;
  const MmaTask<S>& task;
  int count;           // right rows of the block
  int counts[3];       // panels of each phase
  int right = 0;       // what to load next: tile,
  int phase = 0;       // phase
  int panel = 0;       // and panel of it
  uint32_t load = 0;   // where it goes
  uint32_t taken = 0;  // where the next panel to take is

  __device__ __forceinline__ explicit PanelRing(const MmaTask<S>& task)
      : task(task), count(task.count()) {
#pragma unroll
    for (int i = 0; i < 3; ++i) counts[i] = task.panels(i);
#pragma unroll 1
    for (int i = 0; i < kMmaStages - 1; ++i) start();
  }

  __device__ __forceinline__ static void advance(uint32_t& at) {
    at += kMmaStageBytes<S>;
    if (at == kMmaStages * kMmaStageBytes<S>) at = 0;
  }

  // Starts the copies of one more panel, or nothing after the last; a group either way.
  __device__ __forceinline__ void start() {
    if (right < count) {
      const uint32_t to = shared_base() + load;
      int64_t column = static_cast<int64_t>(panel) * kPanelColumns<S>;
      Matrix<S> from = phase == 0 ? task.right[0] : phase == 1 ? task.right[1] : task.summed;
      if (phase < 2) {
        copy_panel<kMmaRows, kMmaThreads>(to, phase == 0 ? task.left[0] : task.left[1],
                                          static_cast<int64_t>(blockIdx.x) * kMmaRows, column);
      } else {
        column += static_cast<int64_t>(blockIdx.z) * kMmaWidth;
      }
      copy_panel<kRights, kMmaThreads>(to + kMmaRows * kPanelBytes, from, task.first() + right,
                                       column);
      ++panel;
      while (phase < 3 && panel == (phase == 0 ? counts[0] : phase == 1 ? counts[1] : counts[2])) {
        panel = 0;
        ++phase;
      }
      if (phase == 3) {
        phase = 0;
        right += kRights;
      }
      advance(load);
    }
    commit_copies();
  }

  // Address of the next panel, left rows first, then right ones.
  __device__ __forceinline__ uint32_t next() {
    wait_copies<kMmaStages - 2>();
    __syncthreads();  // all threads' copies are there, the panel before has been read
    start();
    const uint32_t at = shared_base() + taken;
    advance(taken);
    return at;
  }
};

template <int kRowTiles, int kTiles>
__device__ __forceinline__ void clear(float (&sums)[kRowTiles][kTiles][4]) {
#pragma unroll
  for (int r = 0; r < kRowTiles; ++r) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[r][n][i] = 0;
    }
  }
}

// Work::kTerms words of each right row are loaded by Work::load_term. Work::weigh(products, ...)
// turns products into weights; Work::flush takes the sums of a run of right rows.
template <typename S, typename Work>
__device__ __forceinline__ void mma_tile_loop(const MmaTask<S>& task, Work& work) {
  constexpr int kRights = kMmaRights<S>;
  constexpr int kTiles = kRights / 8;
  constexpr int kPanelTiles = kPanelColumns<S> / 8;
  constexpr uint32_t kRight = kMmaRows * kPanelBytes;
  const int warp = threadIdx.x / kWarp;
  const uint32_t own = warp * 16 * kPanelBytes;  // this warp's rows in a panel
  const uint32_t terms = shared_base() + kMmaStages * kMmaStageBytes<S>;
  PanelRing<S> ring(task);
  const int count = ring.count;
  work.start(static_cast<int64_t>(blockIdx.x) * kMmaRows + warp * 16, task.first(), count);
  float sums[1][Work::kSums ? kMmaWidth / 8 : 1][4];
  for (int run = 0; run < count; run += kFlush) {
    const int run_end = min(run + static_cast<int>(kFlush), count);
    clear(sums);
    for (int right = run; right < run_end; right += kRights) {
      uint32_t term[Work::kTerms == 0 ? 1 : Work::kTerms];
      const bool has_term = Work::kTerms != 0 && static_cast<int>(threadIdx.x) < kRights;
      if (has_term) work.load_term(task.first() + right + threadIdx.x, term);
      float products[1][kTiles][4];
      clear(products);
      for (int i = 0; i < ring.counts[0]; ++i) {
        const uint32_t panel = ring.next();
        PanelProduct<S>::rows(products, panel + own, panel + kRight);
      }
      float slopes[1][Work::kSlopes ? kTiles : 1][4];
      if constexpr (Work::kSlopes) {
        clear(slopes);
        for (int i = 0; i < ring.counts[1]; ++i) {
          const uint32_t panel = ring.next();
          PanelProduct<S>::rows(slopes, panel + own, panel + kRight);
        }
      }
      if constexpr (Work::kTerms != 0) {
        // Those of the tile before were last read ahead of a barrier in next().
        if (has_term) {
#pragma unroll
          for (int i = 0; i < Work::kTerms; ++i) {
            store_shared(terms + (i * kRights + threadIdx.x) * 4, term[i]);
          }
        }
        __syncthreads();  // they are written
      }
      work.weigh(products, slopes, sums, right, terms);
      if constexpr (Work::kSums) {
        typename PanelProduct<S>::template Weights<1, kTiles> weights;
        weights.set(products);
#pragma unroll
        for (int i = 0; i < kMmaWidth / kPanelColumns<S>; ++i) {
          if (i >= ring.counts[2]) break;
          const uint32_t panel = ring.next();
          PanelProduct<S>::columns(sums, i * kPanelTiles, weights, panel + kRight);
        }
      }
    }
    work.flush(sums, run == 0);
  }
  work.finish();
}

}  // namespace
}  // namespace fcl::ops::cuda
