// SPDX-License-Identifier: Apache-2.0
// What both kernels of the Hopper path with stored weights share: products of 128 x 256, of which
// one thread of the first warpgroup feeds the operands through a ring of stages, 64 terms each, to
// two consumer warpgroups of 64 rows. The left operand is K-major. The right one is
//   K-major: 256 rows of 64 columns, the rows are the product's columns (logits), or
//   MN-major: 64 rows of 256 columns, the columns are the product's (sums of rows).
#pragma once

#include "ops/cuda/readout_sm90_block.cuh"
#include "ops/cuda/readout_sm90_stored.h"

namespace fcl::ops::cuda {

template <class Hw, class Tile, bool kMnMajor>
struct ProductRing {
  using Map = typename Hw::TensorMap;
  using S = typename Tile::S;
  using Place = RingPlace<Tile::kStages>;
  static constexpr int kRightRows = kMnMajor ? Tile::kDepth : Tile::kColumns;
  static constexpr int kRightPanels = kMnMajor ? Tile::kColumns / fcl::sm90::kPanelColumns : 1;
  static constexpr int kAccumulators = Tile::kColumns / 2;

  // Runs the roles of a block: produce() in one warp, consume(0 or 1) in the others' warpgroups.
  template <typename Produce, typename Consume>
  FCL_DEVICE static void run(const Map* left, const Map* right, const Produce& produce,
                             const Consume& consume) {
    const int warp = Hw::warp();
    if (warp == 0 && Hw::thread() == 0) {
      Hw::require_alignment();
      Hw::prefetch(left);
      Hw::prefetch(right);
      for (int s = 0; s < Tile::kStages; ++s) {
        Hw::init_barrier(Tile::full_barrier(s), 1);
        // Every consumer warp of every block that gets the right rows says that it is done.
        Hw::init_barrier(Tile::empty_barrier(s), Tile::kConsumers * 4 * Hw::cluster_size());
      }
      Hw::publish_barriers();
    }
    Hw::sync_cluster();  // barriers of all blocks are there
    // In the end, no block leaves while others arrive at its barriers.
    if (warp < 4) {
      Hw::template fewer_registers<24>();
      if (warp == 0) produce();
      Hw::sync_warp();
      Hw::sync_cluster();
    } else {
      Hw::template more_registers<240>();
      consume(warp / 4 - 1);
      Hw::sync_cluster();
    }
  }

  FCL_DEVICE static void wait_empty(const Place& at) {
    Hw::wait(Tile::empty_barrier(at.stage), at.parity ^ 1);
  }

  // By one thread, once the stage is empty: the operands of a step, from these columns and rows.
  FCL_DEVICE static void load(const Place& at, const Map* left, int left_column, int64_t left_row,
                              const Map* right, int right_column, int64_t right_row) {
    const uint32_t full = Tile::full_barrier(at.stage);
    Hw::arrive_expecting(full, Tile::kStageBytes);
    Hw::load_tile(left, Tile::left(at.stage), full, left_column, static_cast<int>(left_row));
    load_classes<Hw, kRightRows>(right, right_row, right_column, kRightPanels,
                                 Tile::right(at.stage), full, Hw::cluster_size());
  }

  // Issues the products of a step for a consumer's rows; the first of them adds to d, or not.
  template <bool kAdds>
  FCL_DEVICE static void multiply(float (&d)[kAccumulators], int consumer, const Place& at) {
    using namespace fcl::sm90;
    Hw::wait(Tile::full_barrier(at.stage), at.parity);
    const uint64_t left = k_major_descriptor(
        Hw::address(Tile::left(at.stage) + tile_offset(Tile::kRows, consumer * kProductRows, 0)));
    const uint32_t right_at = Hw::address(Tile::right(at.stage));
    const uint64_t right =
        kMnMajor ? mn_major_descriptor(right_at, kRightRows) : k_major_descriptor(right_at);
    Hw::begin_products();
#pragma unroll
    for (int k = 0; k < Tile::kDepth / kProductDepth; ++k) {
      const uint32_t step = kMnMajor ? mn_major_step(k) : k_major_step(kRightRows, k);
      Hw::template product<S, kMnMajor>(d, advance(left, k_major_step(Tile::kRows, k)),
                                        advance(right, step), kAdds || k > 0);
    }
    Hw::commit_products();
  }

  // d = the sum of `steps` steps. Each stage is given back while the products of the next one run.
  FCL_DEVICE static void multiply_steps(float (&d)[kAccumulators], int consumer, int steps,
                                        Place& at) {
    Hw::hold(d);
    multiply<false>(d, consumer, at);
    int before = at.stage;
    at.next();
    for (int step = 1; step < steps; ++step, at.next()) {
      multiply<true>(d, consumer, at);
      Hw::template wait_products<1>();
      release_stage<Hw>(Tile::empty_barrier(before), Hw::cluster_size());
      before = at.stage;
    }
    Hw::template wait_products<0>();
    Hw::hold(d);
    release_stage<Hw>(Tile::empty_barrier(before), Hw::cluster_size());
  }

  // d += the same, of a number of steps that is known.
  template <int kSteps>
  FCL_DEVICE static void add_steps(float (&d)[kAccumulators], int consumer, Place& at) {
    Hw::hold(d);
    int before = 0;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      multiply<true>(d, consumer, at);
      if (step > 0) {
        Hw::template wait_products<1>();
        release_stage<Hw>(Tile::empty_barrier(before), Hw::cluster_size());
      }
      before = at.stage;
      at.next();
    }
    Hw::template wait_products<0>();
    Hw::hold(d);
    release_stage<Hw>(Tile::empty_barrier(before), Hw::cluster_size());
  }
};

}  // namespace fcl::ops::cuda
