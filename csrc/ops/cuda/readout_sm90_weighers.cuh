// SPDX-License-Identifier: Apache-2.0
// Logits -> weights, for the first kernel of the Hopper path with stored weights: of the readout,
// and of its gradient to prototypes. A thread has two left rows.
#pragma once

#include "ops/cuda/readout_sm90_block.cuh"
#include "ops/cuda/readout_sm90_stored.h"

namespace fcl::ops::cuda {

struct Sm90StoredReadout {
  Sm90Readout readout;      // but for its mean and how it is split
  const float* max_before;  // [splits][N] after the chunk before, or null
  int splits;
  bool scale_weights;  // by the factors
  float* bases;        // [tile][left row]: what stored weights are relative to
};

// Left rows are embeddings, right rows classes.
template <class Hw, typename S, bool kFactors, bool kWantStores>
struct ReadoutWeigher {
  using Task = Sm90StoredReadout;
  using Tile = Sm90StoredTile<S>;
  static constexpr bool kTerms = kFactors;
  static constexpr bool kStores = kWantStores;

  RowSoftmax<Hw> softmax;

  FCL_DEVICE static void store_terms(const Task& task, int64_t, int64_t first, uint32_t to) {
    store_factors<Hw, Tile::kColumns>(task.readout, first, to);
  }

  FCL_DEVICE void start(const Task& task, int64_t row, int, int64_t first, int count) {
    softmax.start(task.readout, row, first, count);
    if (task.max_before != nullptr) {
      softmax.resume(task.readout, task.max_before, row, task.splits, Hw::block_y());
    }
  }

  template <int kCount>
  FCL_DEVICE void weigh(const Task& task, float (&w)[kCount], int first, int count,
                        uint32_t terms) {
    // No sums are at hand that would have to be rescaled, and the weight of a class that outweighs
    // all others is then a power of two, free of rounding.
    softmax.template step<S, kFactors, true>(task.readout, w, first, count, terms);
    if constexpr (kFactors && kStores) {
      if (!task.scale_weights) return;
      const int column = fcl::sm90::accumulator_column(Hw::thread() % fcl::sm90::kWarpgroup, 0);
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        const FloatPair f = Hw::template load<FloatPair>(terms + 4 * (column + i * 2));
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          w[i + j] = scaled_weight<S>(w[i + j], j % 2 == 0 ? f.x : f.y);
        }
      }
    }
  }

  FCL_DEVICE void store_bases(const Task& task, int64_t at) const {
    if (Hw::thread() % 4 != 0) return;
    task.bases[at] = softmax.base[0];
    task.bases[at + 8] = softmax.base[1];
  }

  FCL_DEVICE void finish(const Task& task, int64_t row) {
    softmax.store(task.readout, row, Hw::block_y());
  }
};

struct Sm90StoredGradient {
  const float* logsumexp;    // [N]
  const float* coefficient;  // [N]
  const int64_t* exclude;    // [N] or null
  const float* factors;      // [C] or null
  int64_t num_rows, num_classes;
  float scale;  // to base-2 logits
};

// Left rows are classes, right rows embeddings: weights are softmax probabilities of the classes
// times the embedding's coefficient.
template <class Hw, typename S>
struct GradientWeigher {
  using Task = Sm90StoredGradient;
  using Tile = Sm90StoredTile<S>;
  static constexpr bool kTerms = true;
  static constexpr bool kStores = true;
  static constexpr uint32_t kCoefficients = 4 * Tile::kColumns;
  static constexpr uint32_t kExcluded = 8 * Tile::kColumns;

  struct alignas(8) IntPair {
    int x, y;
  };

  float scale[2];
  int in_block;

  // Base of the exponents, coefficient, and the class excluded, from the block's first one.
  FCL_DEVICE static void store_terms(const Task& task, int64_t first_class, int64_t first,
                                     uint32_t to) {
    for (int c = Hw::thread() % 32; c < Tile::kColumns; c += 32) {
      const int64_t i = first + c;
      float base = Hw::infinity();  // past the end: weights are zero
      float coefficient = 0;
      int excluded = -1;
      if (i < task.num_rows) {
        const float logsumexp = task.logsumexp[i];
        // An empty set of classes has no probabilities to recompute: all its logits are -inf.
        base = logsumexp == -Hw::infinity()
                   ? 0
                   : static_cast<float>(static_cast<double>(logsumexp) * 1.4426950408889634);
        coefficient = task.coefficient[i];
        const int64_t hole = task.exclude == nullptr ? -1 : task.exclude[i] - first_class;
        if (hole >= 0 && hole < Tile::kRows) excluded = static_cast<int>(hole);
      }
      Hw::store(to + 4 * c, base);
      Hw::store(to + kCoefficients + 4 * c, coefficient);
      Hw::store(to + kExcluded + 4 * c, excluded);
    }
  }

  FCL_DEVICE void start(const Task& task, int64_t row, int row_in_block, int64_t, int) {
    in_block = row_in_block;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int64_t at = row + 8 * r;
      const bool has_factor = task.factors != nullptr && at < task.num_classes;
      scale[r] = has_factor ? task.scale * task.factors[at] : task.scale;
    }
  }

  template <int kCount>
  FCL_DEVICE void weigh(const Task&, float (&w)[kCount], int, int, uint32_t terms) {
    const int column = fcl::sm90::accumulator_column(Hw::thread() % fcl::sm90::kWarpgroup, 0);
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint32_t at = terms + 4 * (column + i * 2);
      const FloatPair base = Hw::template load<FloatPair>(at);
      const FloatPair coefficient = Hw::template load<FloatPair>(at + kCoefficients);
      const IntPair excluded = Hw::template load<IntPair>(at + kExcluded);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int r = j / 2;
        const bool even = j % 2 == 0;
        const float exponent = Hw::multiply_add(w[i + j], scale[r], -(even ? base.x : base.y));
        const float weight = Hw::exp2(exponent) * (even ? coefficient.x : coefficient.y);
        w[i + j] = in_block + 8 * r == (even ? excluded.x : excluded.y) ? 0.0f : weight;
      }
    }
  }

  FCL_DEVICE void store_bases(const Task&, int64_t) const {}
  FCL_DEVICE void finish(const Task&, int64_t) {}
};

}  // namespace fcl::ops::cuda
