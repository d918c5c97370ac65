// SPDX-License-Identifier: Apache-2.0
// First kernel of the Hopper path with stored weights: logits of a block of left rows and a chunk
// of right rows, and what a Weigher (readout_sm90_weighers.cuh) makes of them, to memory in 16
// bits.
#pragma once

#include "ops/cuda/readout_sm90_product.cuh"

namespace fcl::ops::cuda {

struct alignas(16) FourWords {
  uint32_t x, y, z, w;
};

// Word i of lane q of each quad -> word q of lane i.
template <class Hw>
FCL_DEVICE void transpose_quad(uint32_t (&words)[4]) {
  const int lane = Hw::thread() % 4;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const bool odd = lane % 2 != 0;
    const uint32_t got = Hw::shuffle_xor(odd ? words[i] : words[i + 1], 1);
    words[i] = odd ? got : words[i];
    words[i + 1] = odd ? words[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool upper = lane >= 2;
    const uint32_t got = Hw::shuffle_xor(upper ? words[i] : words[i + 2], 2);
    words[i] = upper ? got : words[i];
    words[i + 2] = upper ? words[i + 2] : got;
  }
}

// A part of the chunk's tiles. Each role finds it for itself (see Sm90::thread).
struct ChunkPart {
  int first_tile, tiles;
  FCL_DEVICE ChunkPart(const Sm90Chunk& chunk, int64_t split, int tiles_per_split) {
    first_tile = static_cast<int>(split) * tiles_per_split;
    const int left = chunk.tiles - first_tile;
    tiles = left < 0 ? 0 : left < tiles_per_split ? left : tiles_per_split;
  }
};

template <class Hw, class Weigher>
struct WeightsBlock {
  using Map = typename Hw::TensorMap;
  using Tile = typename Weigher::Tile;
  using S = typename Tile::S;
  using Ring = ProductRing<Hw, Tile, false>;
  using Place = typename Ring::Place;

  const Map* left;   // boxes of 64 columns x kRows rows
  const Map* right;  // boxes of 64 columns x kColumns / cluster size rows
  const Sm90Weights& p;
  const typename Weigher::Task& task;

  FCL_DEVICE void run() {
    Ring::run(left, right, [this] { produce(); }, [this](int consumer) { consume(consumer); });
  }

  FCL_DEVICE int64_t first_row() const { return p.chunk.left_begin + Hw::block_x() * Tile::kRows; }
  FCL_DEVICE int64_t first_right(const ChunkPart& part) const {
    return p.chunk.right_begin + static_cast<int64_t>(part.first_tile) * Tile::kColumns;
  }

  FCL_DEVICE void produce() {
    const bool leads = Hw::thread() == 0;
    // Others are of use for terms alone, but then keep step (see ReadoutBlock).
    if (!Weigher::kTerms && !leads) return;
    const ChunkPart part(p.chunk, Hw::block_y(), p.tiles_per_split);
    Place at;
    int buffer = 0;
    for (int t = 0; t < part.tiles; ++t) {
      const int64_t first = first_right(part) + static_cast<int64_t>(t) * Tile::kColumns;
      for (int step = 0; step < p.steps; ++step, at.next()) {
        Ring::wait_empty(at);
        if constexpr (Weigher::kTerms) {
          if (step == 0) Weigher::store_terms(task, first_row(), first, Tile::terms(buffer));
          Hw::sync_warp();  // the arrival of one lane then speaks for all stores
        }
        if (!leads) continue;
        Ring::load(at, left, step * Tile::kDepth, first_row(), right, step * Tile::kDepth, first);
      }
      if (++buffer == Tile::kTermBuffers) buffer = 0;
    }
  }

  FCL_DEVICE void consume(int consumer) {
    using namespace fcl::sm90;
    const ChunkPart part(p.chunk, Hw::block_y(), p.tiles_per_split);
    const int in_block = consumer * kProductRows + accumulator_row(Hw::thread() % kWarpgroup, 0);
    const int64_t row = first_row() + in_block;
    const int64_t rest = p.num_right - first_right(part);
    const int64_t most = static_cast<int64_t>(part.tiles) * Tile::kColumns;
    const int count = static_cast<int>(rest < most ? rest : most);
    Weigher weigher;
    weigher.start(task, row, in_block, first_right(part), count);
    float weights[Ring::kAccumulators];
    Place at;
    int buffer = 0;
    for (int t = 0; t < part.tiles; ++t) {
      Ring::multiply_steps(weights, consumer, p.steps, at);
      weigher.weigh(task, weights, t * Tile::kColumns, count, Tile::terms(buffer));
      if (++buffer == Tile::kTermBuffers) buffer = 0;
      if constexpr (Weigher::kStores) {
        const int64_t stored_row = row - p.chunk.left_begin;
        const int64_t tile = part.first_tile + t;
        weigher.store_bases(task, tile * p.chunk.left_rows + stored_row);
        store(weights, p.weights + stored_row * p.chunk.columns + tile * Tile::kColumns);
      }
    }
    weigher.finish(task, row);
  }

  // Rounds weights; `to` is where the first of the thread's two rows begins. A quad has eight
  // columns of a row in registers, a lane stores eight of 32.
  FCL_DEVICE void store(const float (&weights)[Ring::kAccumulators], uint16_t* to) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      uint16_t* row = to + 8 * r * p.chunk.columns + 8 * (Hw::thread() % 4);
#pragma unroll
      for (int i = 0; i < Ring::kAccumulators; i += 16) {
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = i + 4 * j + 2 * r;
          words[j] = Hw::template pack<S>(weights[at], weights[at + 1]);
        }
        transpose_quad<Hw>(words);
        *reinterpret_cast<FourWords*>(row + 2 * i) =
            FourWords{words[0], words[1], words[2], words[3]};
      }
    }
  }
};

}  // namespace fcl::ops::cuda
