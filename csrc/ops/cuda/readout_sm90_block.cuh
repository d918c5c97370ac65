// SPDX-License-Identifier: Apache-2.0
// What the Hopper kernels of softmax_readout share: where a block works, the ring of class tiles,
// and the way of sums to memory.
#pragma once

#include "ops/cuda/readout_sm90.h"
#include "ops/cuda/readout_sm90_softmax.cuh"

namespace fcl::ops::cuda {

// Place in a ring of stages: index, and parity of the round.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  FCL_DEVICE void next() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Rows and classes of a block. Each role finds them for itself (see Sm90::thread).
template <class Hw, class Tile>
struct BlockWork {
  int64_t row;          // first
  int64_t split;        //
  int64_t first_class;  // of the split
  int classes;          // of the split
  int tiles;
  int cluster;  // blocks that get every tile of classes

  FCL_DEVICE void start(const Sm90Readout& p) {
    const int64_t per_split = static_cast<int64_t>(p.tiles_per_split) * Tile::kClasses;
    row = Hw::block_x() * Tile::kRows;
    split = Hw::block_y();
    first_class = split * per_split;
    const int64_t left = p.num_classes - first_class;
    classes = static_cast<int>(left < per_split ? left : per_split);
    tiles = (classes + Tile::kClasses - 1) / Tile::kClasses;
    cluster = Hw::cluster_size();
  }
};

// Says at barriers of this and the other blocks of the cluster that the warp is done with a stage.
template <class Hw>
FCL_DEVICE void release_stage(uint32_t barrier, int cluster) {
  Hw::sync_warp();
  const int lane = Hw::thread() % 32;
  if (lane < cluster) Hw::arrive_at(barrier, lane);
}

// Factors of the classes of a tile to shared memory, by one warp; zero past the last class.
template <class Hw, int kClasses>
FCL_DEVICE void store_factors(const Sm90Readout& p, int64_t first, uint32_t to) {
  for (int c = Hw::thread() % 32; c < kClasses; c += 32) {
    Hw::store(to + 4 * c, first + c < p.num_classes ? p.factors[first + c] : 0.0f);
  }
  Hw::sync_warp();  // the arrival of one lane then speaks for all stores
}

// Issues the loads of a tile of classes, `panels` panels from `column`; every block of the cluster
// fetches its part for all.
template <class Hw, int kClasses>
FCL_DEVICE void load_classes(const typename Hw::TensorMap* map, int64_t first, int column,
                             int panels, uint32_t to, uint32_t barrier, int cluster) {
  const int part = kClasses / cluster;
  const int begin = Hw::cluster_rank() * part;
  const int from = static_cast<int>(first) + begin;
  for (int panel = 0; panel < panels; ++panel) {
    const uint32_t at = to + fcl::sm90::tile_offset(kClasses, begin, panel * 64);
    if (cluster == 1) {
      Hw::load_tile(map, at, barrier, column + panel * 64, from);
    } else {
      Hw::load_tile_to_all(map, at, barrier, column + panel * 64, from, (1 << cluster) - 1);
    }
  }
}

// Moves the sums of two rows to the split's part of p.mean, in float32 memory. `carried` brings
// what is there to today's reference.
template <class Hw, class Task, int kCount>
FCL_DEVICE void flush_sums(const Task& p, int64_t split, int64_t first_row, int first_column,
                           float (&sums)[kCount], const float (&carried)[2], bool adds) {
  constexpr int kBatch = 8;  // loads under way at a time
  const int column =
      first_column + fcl::sm90::accumulator_column(Hw::thread() % fcl::sm90::kWarpgroup, 0);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t at = first_row + 8 * r;
    if (at >= p.num_rows) continue;
    float* to = p.mean + (split * p.num_rows + at) * p.dim + column;
#pragma unroll
    for (int begin = 0; begin < kCount / 4; begin += kBatch) {
      FloatPair old[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        // dim is a multiple of 8: eight columns are inside or outside together.
        const bool inside = first_column + 8 * (begin + b) < p.dim;
        old[b] = FloatPair{0, 0};
        if (adds && inside) old[b] = *reinterpret_cast<const FloatPair*>(to + 8 * (begin + b));
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int i = 4 * (begin + b) + 2 * r;
        const FloatPair value{Hw::multiply_add(old[b].x, carried[r], sums[i]),
                              Hw::multiply_add(old[b].y, carried[r], sums[i + 1])};
        const bool inside = first_column + 8 * (begin + b) < p.dim;
        if (inside) *reinterpret_cast<FloatPair*>(to + 8 * (begin + b)) = value;
      }
    }
  }
}

}  // namespace fcl::ops::cuda
