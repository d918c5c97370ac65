// SPDX-License-Identifier: Apache-2.0
// How panels of the operands come to shared memory, for the tile loop of readout_mma.cuh. Either
// everything streams through a ring, panel by panel in the order it is used, or, where left rows
// and two tiles of right rows fit, the former stay, and a tile is loaded once for all its uses.
#pragma once

#include "common/mma_panel.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

inline constexpr int kMmaWarps = 8;
inline constexpr int kMmaThreads = kMmaWarps * kWarp;
inline constexpr int kMmaRows = 16 * kMmaWarps;
inline constexpr int kMmaRowPanelBytes = kMmaRows * kPanelBytes;
// Shared memory that a block may have on every device of compute capability 8.0 and up.
inline constexpr int kMmaMostShared = 99 * 1024;

// Right rows of a tile, and columns of the sum that a block holds.
template <typename Storage, int kRightRows, int kSumWidth>
struct MmaShape {
  using S = Storage;
  static constexpr int kRights = kRightRows;
  static constexpr int kTiles = kRights / 8;
  static constexpr int kWidth = kSumWidth;
  static constexpr int kPanelBytes = kRights * fcl::cuda::kPanelBytes;
  // At the start of the shared memory, 16 bytes of each right row that a Work wants at hand.
  static constexpr int kTermBytes = 16 * kRights;
};

template <typename S>
__host__ __device__ constexpr int panel_count(int64_t columns) {
  return static_cast<int>((columns + kPanelColumns<S> - 1) / kPanelColumns<S>);
}

// Operands of one launch. Product i is left[i] . right[i]^T; `summed` has rows like right.
template <typename S>
struct MmaTask {
  Matrix<S> left[2], right[2], summed;
  int64_t num_right;
  int per_split;
  int products;
  bool sums;
  // Launches that take parts: left rows from left_begin, right rows of each split from chunk_begin.
  int64_t left_begin;
  int chunk_begin, chunk;

  // Right rows of this block: from first() on, count(), none if not positive.
  __device__ __forceinline__ int64_t first() const {
    return static_cast<int64_t>(blockIdx.y) * per_split + chunk_begin;
  }
  __device__ __forceinline__ int count() const {
    const int64_t left_over = num_right - static_cast<int64_t>(blockIdx.y) * per_split;
    const int of_split = static_cast<int>(min(left_over, static_cast<int64_t>(per_split)));
    return min(of_split - chunk_begin, chunk);
  }
  __device__ __forceinline__ int64_t left_row() const {
    return left_begin + static_cast<int64_t>(blockIdx.x) * kMmaRows;
  }
  // Panels of each product, then of this block's part of the sum.
  template <int kWidth>
  __device__ __forceinline__ int panels(int phase) const {
    if (phase < 2) return phase < products ? panel_count<S>(left[phase].columns) : 0;
    const int64_t columns = summed.columns - static_cast<int64_t>(blockIdx.z) * kWidth;
    return sums ? panel_count<S>(min(columns, static_cast<int64_t>(kWidth))) : 0;
  }
};

// Addresses of a panel of left rows and one of right rows.
struct PanelPair {
  uint32_t left, right;
};

// Everything streams: any number of columns, right matrices of any kind.
template <class Shape>
struct StreamFeed {
  using S = typename Shape::S;
  static constexpr int kStages = 4;
  static constexpr int kStageBytes = kMmaRowPanelBytes + Shape::kPanelBytes;
  static constexpr int kSharedBytes = Shape::kTermBytes + kStages * kStageBytes;
  static_assert(kSharedBytes <= kMmaMostShared);

  const MmaTask<S>& task;
  int count;           // right rows of the block
  int counts[3];       // panels of each phase
  int right = 0;       // what to load next: tile,
  int phase = 0;       // phase
  int panel = 0;       // and panel of it
  uint32_t load = 0;   // where it goes
  uint32_t taken = 0;  // where the next panel to take is

  __device__ __forceinline__ explicit StreamFeed(const MmaTask<S>& task)
      : task(task), count(task.count()) {
#pragma unroll
    for (int i = 0; i < 3; ++i) counts[i] = task.template panels<Shape::kWidth>(i);
#pragma unroll 1
    for (int i = 0; i < kStages - 1; ++i) start();
  }

  __device__ __forceinline__ PanelPair product(int, int) { return next(); }
  __device__ __forceinline__ uint32_t sum(int) { return next().right; }

 private:
  __device__ __forceinline__ static void advance(uint32_t& at) {
    at += kStageBytes;
    if (at == kStages * kStageBytes) at = 0;
  }

  // Starts the copies of one more panel, or nothing after the last; a group either way.
  __device__ __forceinline__ void start() {
    if (right < count) {
      const uint32_t to = shared_base() + Shape::kTermBytes + load;
      int64_t column = static_cast<int64_t>(panel) * kPanelColumns<S>;
      const Matrix<S> from = phase == 0 ? task.right[0] : phase == 1 ? task.right[1] : task.summed;
      if (phase < 2) {
        const Matrix<S> rows = phase == 0 ? task.left[0] : task.left[1];
        copy_panel<kMmaRows, kMmaThreads>(to, rows, task.left_row(), column);
      } else {
        column += static_cast<int64_t>(blockIdx.z) * Shape::kWidth;
      }
      copy_panel<Shape::kRights, kMmaThreads>(to + kMmaRowPanelBytes, from, task.first() + right,
                                              column);
      ++panel;
      while (phase < 3 && panel == (phase == 0 ? counts[0] : phase == 1 ? counts[1] : counts[2])) {
        panel = 0;
        ++phase;
      }
      if (phase == 3) {
        phase = 0;
        right += Shape::kRights;
      }
      advance(load);
    }
    commit_copies();
  }

  __device__ __forceinline__ PanelPair next() {
    wait_copies<kStages - 2>();
    __syncthreads();  // all threads' copies are there, the panel before has been read
    start();
    const uint32_t at = shared_base() + Shape::kTermBytes + taken;
    advance(taken);
    return {at, at + kMmaRowPanelBytes};
  }
};

// Left rows stay; all right matrices are one, of up to kWidth columns.
template <class Shape>
struct ResidentFeed {
  using S = typename Shape::S;
  static constexpr int kStages = 2;
  static constexpr int kMostPanels = Shape::kWidth / kPanelColumns<S>;
  static constexpr int kTileBytes = kMostPanels * Shape::kPanelBytes;
  static constexpr int kLeftBytes = kMostPanels * kMmaRowPanelBytes;  // of a product

  static constexpr int shared_bytes(int products) {
    return Shape::kTermBytes + kStages * kTileBytes + products * kLeftBytes;
  }

  const MmaTask<S>& task;
  int count;      // right rows of the block
  int counts[3];  // panels of each phase
  int right = 0;  // the tile to load next
  int stage = 1;  // of the tile in use

  __device__ __forceinline__ explicit ResidentFeed(const MmaTask<S>& task)
      : task(task), count(task.count()) {
#pragma unroll
    for (int i = 0; i < 3; ++i) counts[i] = task.template panels<Shape::kWidth>(i);
#pragma unroll 1
    for (int i = 0; i < counts[0] + counts[1]; ++i) {
      const int phase = i >= counts[0];
      const int panel = i - phase * counts[0];
      const Matrix<S> rows = phase == 0 ? task.left[0] : task.left[1];
      copy_panel<kMmaRows, kMmaThreads>(left_at(phase, panel), rows, task.left_row(),
                                        static_cast<int64_t>(panel) * kPanelColumns<S>);
    }
    start(0);
  }

  __device__ __forceinline__ PanelPair product(int phase, int panel) {
    if (phase == 0 && panel == 0) {
      wait_copies<0>();
      __syncthreads();  // all threads' copies are there, the tile before has been read
      stage ^= 1;
      start(stage ^ 1);
    }
    return {left_at(phase, panel), sum(panel)};
  }
  __device__ __forceinline__ uint32_t sum(int panel) const {
    return shared_base() + Shape::kTermBytes + stage * kTileBytes + panel * Shape::kPanelBytes;
  }

 private:
  __device__ __forceinline__ static uint32_t left_at(int phase, int panel) {
    return shared_base() + Shape::kTermBytes + kStages * kTileBytes + phase * kLeftBytes +
           panel * kMmaRowPanelBytes;
  }

  __device__ __forceinline__ void start(int to) {
    if (right < count) {
      const uint32_t at = shared_base() + Shape::kTermBytes + to * kTileBytes;
#pragma unroll 1
      for (int i = 0; i < counts[0]; ++i) {
        copy_panel<Shape::kRights, kMmaThreads>(at + i * Shape::kPanelBytes, task.right[0],
                                                task.first() + right,
                                                static_cast<int64_t>(i) * kPanelColumns<S>);
      }
      right += Shape::kRights;
    }
    commit_copies();
  }
};

}  // namespace
}  // namespace fcl::ops::cuda
