// SPDX-License-Identifier: Apache-2.0
// Second kernel of the Hopper path with stored weights: sums of right rows by the weights of a
// chunk, added in float32 to what earlier chunks gave. A block has 128 left rows, 256 columns, and
// a part of the chunk.
//
// Weights of a tile are relative to a reference of their row. References of a part follow the
// largest so far: sums are brought to the tile's own reference, where that is at most 2^60 below.
// Further down a tile adds nothing that a float would keep, whatever it is taken to be relative to.
#pragma once

#include "ops/cuda/readout_sm90_weights.cuh"

namespace fcl::ops::cuda {

template <class Hw>
struct RunningReference {
  static constexpr float kDepth = 60;

  float top[2];  // largest so far
  float now[2];  // what the sums are relative to, at most kDepth below

  FCL_DEVICE static float power(float exponent_from, float exponent_to) {
    // Equal ones may be infinite.
    return exponent_from == exponent_to ? 1.0f : Hw::exp2(exponent_from - exponent_to);
  }

  // What sums are to be multiplied by before weights relative to `base` are added.
  FCL_DEVICE float move(int r, float base) {
    top[r] = Hw::max(top[r], base);
    const float to = Hw::max(base, top[r] - kDepth);
    const float factor = power(now[r], to);
    now[r] = to;
    return factor;
  }
};

template <class Hw, typename S>
struct SumsBlock {
  using Map = typename Hw::TensorMap;
  using Tile = Sm90StoredTile<S>;
  using Ring = ProductRing<Hw, Tile, true>;
  using Place = typename Ring::Place;
  static constexpr int kSteps = Tile::kColumns / Tile::kDepth;  // of a tile of weights

  const Map* weights;  // boxes of 64 columns x kRows rows
  const Map* right;    // boxes of 64 columns x kDepth / cluster size rows
  const Sm90StoredSums& p;

  FCL_DEVICE void run() {
    Ring::run(weights, right, [this] { produce(); }, [this](int consumer) { consume(consumer); });
  }

  // 64-bit divisions would be function calls, beside which products wait for each other.
  FCL_DEVICE int64_t split() const { return static_cast<int>(Hw::block_y()) / p.panels; }
  FCL_DEVICE int first_column() const {
    return static_cast<int>(Hw::block_y()) % p.panels * Tile::kColumns;
  }

  FCL_DEVICE void produce() {
    if (Hw::thread() != 0) return;
    const ChunkPart part(p.chunk, split(), p.tiles_per_split);
    Place at;
    int column = part.first_tile * Tile::kColumns;  // of the weights
    for (int step = 0; step < part.tiles * kSteps; ++step, at.next(), column += Tile::kDepth) {
      Ring::wait_empty(at);
      Ring::load(at, weights, column, Hw::block_x() * Tile::kRows, right, first_column(),
                 p.chunk.right_begin + column);
    }
  }

  FCL_DEVICE void consume(int consumer) {
    using namespace fcl::sm90;
    const ChunkPart part(p.chunk, split(), p.tiles_per_split);
    const int64_t stored_row = Hw::block_x() * Tile::kRows + consumer * kProductRows +
                               accumulator_row(Hw::thread() % kWarpgroup, 0);
    const int64_t row = p.chunk.left_begin + stored_row;
    RunningReference<Hw> reference;
    float before[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool has = p.bases != nullptr && p.adds && row + 8 * r < p.num_rows;
      before[r] = has ? p.top_before[split() * p.num_rows + row + 8 * r] : -Hw::infinity();
      reference.top[r] = reference.now[r] = before[r];
    }
    float sums[Ring::kAccumulators];
#pragma unroll
    for (int i = 0; i < Ring::kAccumulators; ++i) sums[i] = 0;
    Place at;
    const float* base =
        p.bases == nullptr ? nullptr : p.bases + part.first_tile * p.chunk.left_rows + stored_row;
    float next[2] = {-Hw::infinity(), -Hw::infinity()};  // read a tile ahead
    const auto read_bases = [&](int tile) {
      if (base == nullptr || tile >= part.tiles) return;
      next[0] = base[tile * p.chunk.left_rows];
      next[1] = base[tile * p.chunk.left_rows + 8];
    };
    read_bases(0);
    for (int tile = 0; tile < part.tiles; ++tile) {
      const float factor[2] = {reference.move(0, next[0]), reference.move(1, next[1])};
      read_bases(tile + 1);
      if (Hw::any(factor[0] != 1.0f || factor[1] != 1.0f)) {
#pragma unroll
        for (int i = 0; i < Ring::kAccumulators; ++i) sums[i] *= factor[i % 4 / 2];
      }
      Ring::template add_steps<kSteps>(sums, consumer, at);
    }
    if (part.tiles > 0) {
      float carried[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        carried[r] = reference.power(before[r], reference.top[r]);
        const float factor = p.factor * reference.power(reference.now[r], reference.top[r]);
#pragma unroll
        for (int i = 2 * r; i < Ring::kAccumulators; i += 4) {
          sums[i] *= factor;
          sums[i + 1] *= factor;
        }
      }
      flush_sums<Hw>(p, split(), row, first_column(), sums, carried, p.adds);
    }
    if (p.bases == nullptr || first_column() != 0 || Hw::thread() % 4 != 0) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (row + 8 * r < p.num_rows) {
        p.top_after[split() * p.num_rows + row + 8 * r] = reference.top[r];
      }
    }
  }
};

}  // namespace fcl::ops::cuda
