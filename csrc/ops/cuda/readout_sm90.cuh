// SPDX-License-Identifier: Apache-2.0
// softmax_readout on Hopper for up to 256 columns: one block, 128 rows against one split of the
// classes. One thread of the first warpgroup feeds a ring of class tiles through the copy engine;
// two consumer warpgroups, 64 rows each, use every tile twice:
//   logits[64 x classes] = rows . tile^T       (tile K-major)
//   sums[64 x dim]      += weights . tile      (the same bytes MN-major)
// Weights never leave the registers. The second product of a tile runs together with the first of
// the next, below whose exponentials it hides. `Hw` is the machine (common/cuda_sm90.cuh, or the
// tests' stand-in).
#pragma once

#include "ops/cuda/readout_sm90_block.cuh"

namespace fcl::ops::cuda {

template <class Hw, class Tile, bool kFactors>
struct ReadoutBlock {
  using Map = typename Hw::TensorMap;
  using S = typename Tile::S;
  using Place = RingPlace<Tile::kStages>;

  const Map* rows_map;     // boxes of 64 columns x kRows rows
  const Map* classes_map;  // boxes of 64 columns x kClasses / cluster size rows
  const Sm90Readout& p;
  BlockWork<Hw, Tile> work;

  FCL_DEVICE ReadoutBlock(const Map* rows_map, const Map* classes_map, const Sm90Readout& p)
      : rows_map(rows_map), classes_map(classes_map), p(p) {}

  FCL_DEVICE void run() {
    const int warp = Hw::warp();
    if (warp == 0 && Hw::thread() == 0) {
      Hw::require_alignment();
      Hw::prefetch(rows_map);
      Hw::prefetch(classes_map);
      Hw::init_barrier(Tile::rows_barrier(), 1);
      for (int s = 0; s < Tile::kStages; ++s) {
        Hw::init_barrier(Tile::full_barrier(s), 1);
        // Every consumer warp of every block that gets the tile says that it is done with it.
        Hw::init_barrier(Tile::empty_barrier(s), Tile::kConsumers * 4 * Hw::cluster_size());
      }
      Hw::publish_barriers();
    }
    Hw::sync_cluster();  // barriers of all blocks are there
    // In the end, no block leaves while others arrive at its barriers.
    if (warp < 4) {
      Hw::template fewer_registers<24>();
      work.start(p);
      if (warp == 0) produce();
      Hw::sync_warp();
      Hw::sync_cluster();
    } else {
      Hw::template more_registers<240>();
      work.start(p);
      consume(warp / 4 - 1);
      Hw::sync_cluster();
    }
  }

  FCL_DEVICE void produce() {
    const bool leads = Hw::thread() == 0;
    if (leads) {
      Hw::arrive_expecting(Tile::rows_barrier(), Tile::kRowsBytes);
      for (int panel = 0; panel < Tile::kPanels; ++panel) {
        Hw::load_tile(rows_map, fcl::sm90::tile_offset(Tile::kRows, 0, panel * 64),
                      Tile::rows_barrier(), panel * 64, static_cast<int>(work.row));
      }
    }
    // Others are of use for factors alone. They meet between the wait and the load: one that waits
    // later could find the stage used and emptied again, and take that phase for the one before.
    if (!kFactors && !leads) return;
    Place at;
    for (int t = 0; t < work.tiles; ++t, at.next()) {
      Hw::wait(Tile::empty_barrier(at.stage), at.parity ^ 1);
      const int64_t first = work.first_class + static_cast<int64_t>(t) * Tile::kClasses;
      if constexpr (kFactors) store_factors<Hw, Tile::kClasses>(p, first, Tile::factors(at.stage));
      if (!leads) continue;
      const uint32_t full = Tile::full_barrier(at.stage);
      Hw::arrive_expecting(full, Tile::kStageBytes);
      load_classes<Hw, Tile::kClasses>(classes_map, first, 0, Tile::kPanels, Tile::stage(at.stage),
                                       full, work.cluster);
    }
  }

  // This warp has read the stage for the last time.
  FCL_DEVICE void release(int stage) {
    release_stage<Hw>(Tile::empty_barrier(stage), work.cluster);
  }

  // Issues logits = rows . tile^T.
  FCL_DEVICE static void multiply(float (&logits)[Tile::kClasses / 2], uint64_t rows, int stage) {
    using namespace fcl::sm90;
    const uint64_t tile = k_major_descriptor(Hw::address(Tile::stage(stage)));
#pragma unroll
    for (int k = 0; k < Tile::kDim / kProductDepth; ++k) {
      Hw::template product<S, false>(logits, advance(rows, k_major_step(Tile::kRows, k)),
                                     advance(tile, k_major_step(Tile::kClasses, k)), k > 0);
    }
    Hw::commit_products();
  }

  // Issues sums += weights . tile.
  FCL_DEVICE static void accumulate(float (&sums)[Tile::kDim / 2],
                                    uint32_t (&weights)[Tile::kClasses / 4], int stage) {
    using namespace fcl::sm90;
    const uint64_t tile = mn_major_descriptor(Hw::address(Tile::stage(stage)), Tile::kClasses);
#pragma unroll
    for (int k = 0; k < Tile::kClasses / kProductDepth; ++k) {
      Hw::template product<S, true>(sums, weights + 4 * k, advance(tile, mn_major_step(k)), true);
    }
    Hw::commit_products();
  }

  // The two consumers issue their products one after the other.
  FCL_DEVICE static void take_turn(int consumer) {
    if constexpr (Tile::kTakeTurns) Hw::sync_threads(1 + consumer, 2 * fcl::sm90::kWarpgroup);
  }
  FCL_DEVICE static void give_turn(int consumer) {
    if constexpr (Tile::kTakeTurns) Hw::arrive_threads(2 - consumer, 2 * fcl::sm90::kWarpgroup);
  }

  FCL_DEVICE void consume(int consumer) {
    using namespace fcl::sm90;
    const int64_t first_row =
        work.row + consumer * kProductRows + accumulator_row(Hw::thread() % kWarpgroup, 0);
    RowSoftmax<Hw> softmax;
    softmax.start(p, first_row, work.first_class, work.classes);
    const uint64_t rows =
        k_major_descriptor(Hw::address(tile_offset(Tile::kRows, consumer * kProductRows, 0)));
    if (consumer == 1) give_turn(consumer);
    Hw::wait(Tile::rows_barrier(), 0);
    if constexpr (Tile::kMean) {
      consume_with_mean(consumer, rows, first_row, softmax);
    } else {
      consume_logits(consumer, rows, softmax);
    }
    softmax.store(p, first_row, work.split);
  }

  FCL_DEVICE void consume_logits(int consumer, uint64_t rows, RowSoftmax<Hw>& softmax) {
    float logits[Tile::kClasses / 2];
    Place at;
    for (int t = 0; t < work.tiles; ++t, at.next()) {
      Hw::wait(Tile::full_barrier(at.stage), at.parity);
      take_turn(consumer);
      Hw::begin_products();
      multiply(logits, rows, at.stage);
      if (consumer == 0 || t + 1 < work.tiles) give_turn(consumer);
      Hw::template wait_products<0>();
      Hw::hold(logits);
      softmax.template step<S, kFactors>(p, logits, t * Tile::kClasses, work.classes,
                                         Tile::factors(at.stage));
      release(at.stage);
    }
  }

  FCL_DEVICE void consume_with_mean(int consumer, uint64_t rows, int64_t first_row,
                                    RowSoftmax<Hw>& softmax) {
    float sums[Tile::kDim / 2];
    float logits[Tile::kClasses / 2];
    uint32_t weights[Tile::kClasses / 4];
    Place at;
    // Runs of classes, after each of which the sums move on to memory.
    for (int begin = 0; begin < work.tiles; begin += p.flush_tiles) {
      const int end = work.tiles - begin < p.flush_tiles ? work.tiles : begin + p.flush_tiles;
      float carried[2] = {1, 1};  // from the reference at the begin of the run to today's
#pragma unroll
      for (int i = 0; i < Tile::kDim / 2; ++i) sums[i] = 0;
      Hw::wait(Tile::full_barrier(at.stage), at.parity);
      take_turn(consumer);
      Hw::begin_products();
      multiply(logits, rows, at.stage);
      if (consumer == 0 || begin + 1 < work.tiles) give_turn(consumer);
      Hw::template wait_products<0>();
      Hw::hold(logits);
      softmax.template step<S, kFactors>(p, logits, begin * Tile::kClasses, work.classes,
                                         Tile::factors(at.stage));
      carried[0] *= softmax.keep[0];
      carried[1] *= softmax.keep[1];
      softmax.template pack<S, kFactors>(logits, Tile::factors(at.stage), weights);

      for (int t = begin + 1; t < end; ++t) {
        const int before = at.stage;
        at.next();
        Hw::wait(Tile::full_barrier(at.stage), at.parity);
        take_turn(consumer);
        Hw::hold(weights);
        Hw::hold(sums);
        Hw::begin_products();
        multiply(logits, rows, at.stage);
        accumulate(sums, weights, before);
        if (consumer == 0 || t + 1 < work.tiles) give_turn(consumer);
        Hw::template wait_products<1>();
        Hw::hold(logits);
        const bool moved = softmax.template step<S, kFactors>(
            p, logits, t * Tile::kClasses, work.classes, Tile::factors(at.stage));
        Hw::template wait_products<0>();
        Hw::hold(sums);
        Hw::hold(weights);
        release(before);
        if (moved) {
#pragma unroll
          for (int i = 0; i < Tile::kDim / 2; ++i) sums[i] *= softmax.keep[i % 4 / 2];
          carried[0] *= softmax.keep[0];
          carried[1] *= softmax.keep[1];
        }
        softmax.template pack<S, kFactors>(logits, Tile::factors(at.stage), weights);
      }
      Hw::hold(weights);
      Hw::hold(sums);
      Hw::begin_products();
      accumulate(sums, weights, at.stage);
      Hw::template wait_products<0>();
      Hw::hold(sums);
      release(at.stage);
      at.next();
      flush_sums<Hw>(p, work.split, first_row, 0, sums, carried, begin > 0);
    }
  }
};

}  // namespace fcl::ops::cuda
