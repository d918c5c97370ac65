// SPDX-License-Identifier: Apache-2.0
// softmax_readout on Hopper for 257 to 512 columns: one block, 64 rows against one split of the
// classes. The sums of 64 rows fill the registers of two warpgroups, half of the columns each, so
// the work is split by kind:
//   warpgroup 0: one warp feeds two rings of half tiles through the copy engine,
//   warpgroup 1: logits[64 x classes] = rows . tile^T, with the rows in registers (as many of their
//                columns as fit), and the weights, which go to shared memory; the products of the
//                next tile run meanwhile,
//   warpgroups 2, 3: sums[64 x half] += weights . half tile.
#pragma once

#include "ops/cuda/readout_sm90_block.cuh"

namespace fcl::ops::cuda {

template <class Hw, class Tile, bool kFactors>
struct ReadoutWideBlock {
  using Map = typename Hw::TensorMap;
  using S = typename Tile::S;
  using Place = RingPlace<Tile::kStages>;
  using WeightsPlace = RingPlace<2>;
  static constexpr int kHalfSteps = Tile::kHalfDim / fcl::sm90::kProductDepth;
  static constexpr int kRegisterSteps = Tile::kSharedRows ? kHalfSteps : 2 * kHalfSteps;

  const Map* rows_map;     // boxes of 64 columns x kRows rows
  const Map* classes_map;  // boxes of 64 columns x kClasses / cluster size rows
  const Sm90Readout& p;
  BlockWork<Hw, Tile> work;

  FCL_DEVICE ReadoutWideBlock(const Map* rows_map, const Map* classes_map, const Sm90Readout& p)
      : rows_map(rows_map), classes_map(classes_map), p(p) {}

  FCL_DEVICE void run() {
    const int warp = Hw::warp();
    if (warp == 0 && Hw::thread() == 0) {
      Hw::require_alignment();
      Hw::prefetch(rows_map);
      Hw::prefetch(classes_map);
      Hw::init_barrier(Tile::rows_barrier(), 1);
      // Warps that read a half tile: four for logits, four for sums.
      const int readers = Tile::kMean ? 8 : 4;
      for (int s = 0; s < Tile::kStages; ++s) {
        for (int half = 0; half < 2; ++half) {
          Hw::init_barrier(Tile::full_barrier(half, s), 1);
          Hw::init_barrier(Tile::empty_barrier(half, s), readers * Hw::cluster_size());
        }
      }
      for (int b = 0; b < 2; ++b) {
        Hw::init_barrier(Tile::weights_full_barrier(b), 4);
        Hw::init_barrier(Tile::weights_empty_barrier(b), 8);
      }
      Hw::publish_barriers();
    }
    Hw::sync_cluster();  // barriers of all blocks are there
    // In the end, no block leaves while others arrive at its barriers.
    if (warp < 4) {
      Hw::template fewer_registers<Tile::kProducerRegisters>();
      work.start(p);
      if (warp == 0) produce();
      Hw::sync_warp();
      Hw::sync_cluster();
    } else if (warp < 8) {
      Hw::template more_registers<Tile::kLogitsRegisters>();
      work.start(p);
      make_weights();
      Hw::sync_cluster();
    } else {
      Hw::template more_registers<Tile::kSumsRegisters>();
      work.start(p);
      if constexpr (Tile::kMean) add_up(warp / 4 - 2);
      Hw::sync_cluster();
    }
  }

  FCL_DEVICE void produce() {
    const bool leads = Hw::thread() == 0;
    if (Tile::kSharedRows && leads) {
      Hw::arrive_expecting(Tile::rows_barrier(), Tile::kRowsBytes);
      for (int panel = 0; panel < Tile::kHalfPanels; ++panel) {
        Hw::load_tile(rows_map, fcl::sm90::tile_offset(Tile::kRows, 0, panel * 64),
                      Tile::rows_barrier(), Tile::kHalfDim + panel * 64,
                      static_cast<int>(work.row));
      }
    }
    // Others are of use for factors alone (see ReadoutBlock).
    if (!kFactors && !leads) return;
    Place at;
    for (int t = 0; t < work.tiles; ++t, at.next()) {
      const int64_t first = work.first_class + static_cast<int64_t>(t) * Tile::kClasses;
      for (int half = 0; half < 2; ++half) {
        if (half == 1 && !leads) continue;
        Hw::wait(Tile::empty_barrier(half, at.stage), at.parity ^ 1);
        if constexpr (kFactors) {
          if (half == 0) store_factors<Hw, Tile::kClasses>(p, first, Tile::factors(at.stage));
        }
        if (!leads) continue;
        const uint32_t full = Tile::full_barrier(half, at.stage);
        Hw::arrive_expecting(full, Tile::kHalfBytes);
        load_classes<Hw, Tile::kClasses>(classes_map, first, half * Tile::kHalfDim,
                                         Tile::kHalfPanels, Tile::stage(half, at.stage), full,
                                         work.cluster);
      }
    }
  }

  // Registers of the left operand: this thread's part of the rows, zero past the ends.
  FCL_DEVICE void load_rows(uint32_t (&rows)[4 * kRegisterSteps]) {
    using namespace fcl::sm90;
    const int thread = Hw::thread() % kWarpgroup;
    const uint16_t* from = static_cast<const uint16_t*>(p.rows);
#pragma unroll
    for (int i = 0; i < 4 * kRegisterSteps; ++i) {
      const int64_t row = work.row + operand_row(thread, i % 4 * 2);
      const int column = i / 4 * kProductDepth + operand_column(thread, i % 4 * 2);
      const bool inside = row < p.num_rows && column < p.dim;
      rows[i] = inside ? *reinterpret_cast<const uint32_t*>(from + row * p.dim + column) : 0;
    }
  }

  // Issues logits = rows . tile^T, as the halves of the tile come in.
  FCL_DEVICE static void multiply(float (&logits)[Tile::kClasses / 2],
                                  uint32_t (&rows)[4 * kRegisterSteps], const Place& at) {
    using namespace fcl::sm90;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Hw::wait(Tile::full_barrier(half, at.stage), at.parity);
      Hw::begin_products();
      const uint64_t tile = k_major_descriptor(Hw::address(Tile::stage(half, at.stage)));
#pragma unroll
      for (int k = 0; k < kHalfSteps; ++k) {
        const uint64_t classes = advance(tile, k_major_step(Tile::kClasses, k));
        if (half * kHalfSteps < kRegisterSteps) {
          Hw::template product<S, false>(logits, rows + 4 * (half * kHalfSteps + k), classes,
                                         half + k > 0);
        } else {
          const uint64_t shared_rows = k_major_descriptor(Hw::address(0));
          Hw::template product<S, false>(logits, advance(shared_rows, k_major_step(Tile::kRows, k)),
                                         classes, true);
        }
      }
    }
    Hw::commit_products();
  }

  FCL_DEVICE void make_weights() {
    using namespace fcl::sm90;
    const int64_t first_row = work.row + accumulator_row(Hw::thread() % kWarpgroup, 0);
    RowSoftmax<Hw> softmax;
    softmax.start(p, first_row, work.first_class, work.classes);
    uint32_t rows[4 * kRegisterSteps];
    load_rows(rows);
    float even[Tile::kClasses / 2];
    float odd[Tile::kClasses / 2];
    Place at;
    WeightsPlace to;
    // The products of one tile are under way while the weights of the one before are made. Loop and
    // end are apart, as the compiler must see at every wait what is under way.
    if constexpr (Tile::kSharedRows) Hw::wait(Tile::rows_barrier(), 0);
    multiply(even, rows, at);
    int t = 0;
    for (; t + 2 < work.tiles; t += 2) {
      one_tile<true>(t, even, odd, rows, softmax, at, to);
      one_tile<true>(t + 1, odd, even, rows, softmax, at, to);
    }
    if (t + 1 < work.tiles) {
      one_tile<true>(t, even, odd, rows, softmax, at, to);
      one_tile<false>(t + 1, odd, even, rows, softmax, at, to);
    } else {
      one_tile<false>(t, even, odd, rows, softmax, at, to);
    }
    softmax.store(p, first_row, work.split);
  }

  // Weights of tile t from its products under way, with those of the next tile issued first.
  template <bool kHasNext>
  FCL_DEVICE void one_tile(int t, float (&logits)[Tile::kClasses / 2],
                           float (&next)[Tile::kClasses / 2], uint32_t (&rows)[4 * kRegisterSteps],
                           RowSoftmax<Hw>& softmax, Place& at, WeightsPlace& to) {
    const int stage = at.stage;
    at.next();
    if constexpr (kHasNext) multiply(next, rows, at);
    Hw::template wait_products<kHasNext ? 1 : 0>();
    Hw::hold(logits);
    const uint32_t factors = Tile::factors(stage);
    const bool moved =
        softmax.template step<S, kFactors>(p, logits, t * Tile::kClasses, work.classes, factors);
    if constexpr (Tile::kMean) {
      uint32_t weights[Tile::kClasses / 4];
      softmax.template pack<S, kFactors>(logits, factors, weights);
      hand_over(weights, moved, softmax, to);
      to.next();
    }
    for (int half = 0; half < 2; ++half) {
      release_stage<Hw>(Tile::empty_barrier(half, stage), work.cluster);
    }
  }

  // Weights, and by how much earlier sums shrink, to the warpgroups that add up.
  FCL_DEVICE void hand_over(uint32_t (&weights)[Tile::kClasses / 4], bool moved,
                            const RowSoftmax<Hw>& softmax, const WeightsPlace& to) {
    using namespace fcl::sm90;
    const int thread = Hw::thread() % kWarpgroup;
    Hw::wait(Tile::weights_empty_barrier(to.stage), to.parity ^ 1);
    const uint32_t corner =
        Tile::weights(to.stage) +
        tile_offset(kProductRows, accumulator_row(thread, 0), accumulator_column(thread, 0));
#pragma unroll
    for (int i = 0; i < Tile::kClasses / 4; ++i) {
      // Two for each eight columns, the second one eight rows below: a period of the swizzle.
      Hw::store(chunk_offset(corner, i / 2) + i % 2 * 8 * kRowBytes, weights[i]);
    }
    if (thread % 4 == 0) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        Hw::store(Tile::keep(to.stage) + 4 * accumulator_row(thread, 2 * r), softmax.keep[r]);
      }
    }
    if (thread % 32 == 0) {
      Hw::store(Tile::moved(to.stage) + 4 * (thread / 32), static_cast<uint32_t>(moved));
    }
    Hw::publish_stores();
    Hw::sync_warp();  // the arrival of one lane then speaks for all stores
    if (thread % 32 == 0) Hw::arrive(Tile::weights_full_barrier(to.stage));
  }

  // Unrolled, as accumulators need to be named.
  template <typename F>
  FCL_DEVICE static void for_parts(const F& f) {
#pragma unroll
    for (int part = 0; part < Tile::kParts; ++part) f(part);
  }

  FCL_DEVICE void add_up(int half) {
    using namespace fcl::sm90;
    const int thread = Hw::thread() % kWarpgroup;
    const int64_t first_row = work.row + accumulator_row(thread, 0);
    float sums[Tile::kParts][Tile::kPartDim / 2];
    Place at;
    WeightsPlace from;
    // Runs of classes, after each of which the sums move on to memory.
    for (int begin = 0; begin < work.tiles; begin += p.flush_tiles) {
      const int end = work.tiles - begin < p.flush_tiles ? work.tiles : begin + p.flush_tiles;
      float carried[2] = {1, 1};  // from the reference at the begin of the run to today's
      for_parts([&](int part) {
#pragma unroll
        for (int i = 0; i < Tile::kPartDim / 2; ++i) sums[part][i] = 0;
      });
      for (int t = begin; t < end; ++t, at.next(), from.next()) {
        Hw::wait(Tile::weights_full_barrier(from.stage), from.parity);
        // The weights' warpgroup has seen the tile; the wait makes it known to this one as well.
        Hw::wait(Tile::full_barrier(half, at.stage), at.parity);
        if (Hw::template load<uint32_t>(Tile::moved(from.stage) + 4 * (thread / 32)) != 0) {
          float keep[2];
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            keep[r] = Hw::template load<float>(Tile::keep(from.stage) +
                                               4 * accumulator_row(thread, 2 * r));
            carried[r] *= keep[r];
          }
          for_parts([&](int part) {
#pragma unroll
            for (int i = 0; i < Tile::kPartDim / 2; ++i) sums[part][i] *= keep[i % 4 / 2];
          });
        }
        const uint64_t weights = k_major_descriptor(Hw::address(Tile::weights(from.stage)));
        const uint64_t tile =
            mn_major_descriptor(Hw::address(Tile::stage(half, at.stage)), Tile::kClasses);
        for_parts([&](int part) { Hw::hold(sums[part]); });
        Hw::begin_products();
#pragma unroll
        for (int k = 0; k < Tile::kClasses / kProductDepth; ++k) {
          for_parts([&](int part) {
            const uint32_t columns = tile_offset(Tile::kClasses, 0, part * Tile::kPartDim);
            Hw::template product<S, true>(sums[part],
                                          advance(weights, k_major_step(kProductRows, k)),
                                          advance(tile, columns + mn_major_step(k)), true);
          });
        }
        Hw::commit_products();
        Hw::template wait_products<0>();
        for_parts([&](int part) { Hw::hold(sums[part]); });
        release_stage<Hw>(Tile::empty_barrier(half, at.stage), work.cluster);
        if (thread % 32 == 0) Hw::arrive(Tile::weights_empty_barrier(from.stage));
      }
      for_parts([&](int part) {
        flush_sums<Hw>(p, work.split, first_row, half * Tile::kHalfDim + part * Tile::kPartDim,
                       sums[part], carried, begin > 0);
      });
    }
  }
};

}  // namespace fcl::ops::cuda
