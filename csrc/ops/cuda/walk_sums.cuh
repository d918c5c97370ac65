// SPDX-License-Identifier: Apache-2.0
// Sums over some edges of a row, as the path `gather` of random_walk takes them (walk_gather.cu):
// what one lane does, and the registers it may do it in.
#pragma once

#include <type_traits>

#include "common/cuda_device.cuh"
#include "common/cuda_gather.cuh"
#include "ops/cuda/walk_path.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

constexpr int kThreads = 256;
constexpr int kWays = 4;
// Blocks resident on a multiprocessor, for which registers must suffice, and gathers that a lane
// then has in flight: 3 x 256 x 4 x 16 bytes are 48 KB, where latency times bandwidth ask for some
// 30 KB. Where sums, columns or double weights take more registers, two blocks have 64 KB, or 32
// where both sums and columns do. Short rows are few bytes a row: there, too, a lane takes 8 at
// once, in four groups all of a row of 32 edges.
template <typename Index>
constexpr bool kWideColumns = sizeof(Index) == 8;
template <int kSize, int kGroups>
constexpr bool kManySums = kSize == 8 && kGroups == 1;
template <int kSize, int kGroups>
constexpr bool kDoubleWeights = kSize == 2 && kGroups == 1;
template <typename Index, int kSize, int kGroups>
constexpr bool kNeedsRegisters =
    kWideColumns<Index> || kManySums<kSize, kGroups> || kDoubleWeights<kSize, kGroups>;
template <typename Index, int kSize, int kGroups>
constexpr int kResident = kNeedsRegisters<Index, kSize, kGroups> ? 2 : 3;
template <typename Index, int kSize, int kGroups>
constexpr int kInFlight = (kGroups == kWays || kNeedsRegisters<Index, kSize, kGroups>) &&
                                  !(kWideColumns<Index> && kManySums<kSize, kGroups>)
                              ? 8
                              : 4;

template <typename T>
__device__ __forceinline__ void load_four(const T* p, T (&to)[4]) {
  constexpr int kSize = 16 / sizeof(T) < 4 ? 16 / sizeof(T) : 4;
#pragma unroll
  for (int i = 0; i < 4; i += kSize) {
    const Vector<T, kSize> part = load_vector<kSize>(p + i);
#pragma unroll
    for (int j = 0; j < kSize; ++j) to[i + j] = part.at[j];
  }
}

// Some edges of a row, or of a segment of one: those from `begin` to `end`, counted from the first
// of the group of four that holds the first.
template <typename T, typename Index>
struct EdgeRange {
  const Index* col;
  const T* values;
  int begin, end;

  __device__ __forceinline__ EdgeRange(const WalkStep& p, int64_t first, int64_t last)
      : col(static_cast<const Index*>(p.graph.col) + first / kWays * kWays),
        values(static_cast<const T*>(p.values) + first / kWays * kWays),
        begin(static_cast<int>(first % kWays)),
        end(begin + static_cast<int>(last - first)) {}
};

// Sums of a lane's columns over the edges that its group takes, each way by itself.
template <typename S, typename Index, int kSize, int kGroups>
struct RowSums {
  using T = typename Accumulate<S>::type;
  static constexpr int kMine = kWays / kGroups;
  static constexpr int kQuads = kInFlight<Index, kSize, kGroups> / kMine;

  Vector<T, kSize> way[kMine] = {};

  // This group's share of kQuads times four edges from `quad` on.
  template <typename V>
  static __device__ __forceinline__ void load_edges(const V* from, int quad, int begin, int end,
                                                    int group, bool wide, V none,
                                                    V (&to)[kQuads][kMine]) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      const int first = quad + q * kWays;
      if constexpr (kMine == kWays) {
        if (wide && first >= begin && first + kWays <= end) {
          load_four(from + first, to[q]);
          continue;
        }
      }
#pragma unroll
      for (int m = 0; m < kMine; ++m) {
        const int e = first + group + m * kGroups;
        to[q][m] = e >= begin && e < end ? from[e] : none;
      }
    }
  }

  // Adds the products of some edges; `columns` are the lane's in row 0 of the state.
  __device__ __forceinline__ void multiply(const EdgeRange<T, Index>& edges, const S* columns,
                                           uint32_t row_bytes, int group, bool wide_edges,
                                           bool is_active) {
    const char* base = reinterpret_cast<const char*>(columns);
    Index column[kQuads][kMine];
    load_edges(edges.col, 0, edges.begin, edges.end, group, wide_edges, Index(-1), column);
    for (int quad = 0; quad < edges.end; quad += kQuads * kWays) {
      Vector<S, kSize> x[kQuads][kMine];
      T weight[kQuads][kMine];
      load_edges(edges.values, quad, edges.begin, edges.end, group, wide_edges, T(0), weight);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
#pragma unroll
        for (int m = 0; m < kMine; ++m) {
          using Unsigned = std::make_unsigned_t<Index>;
          const bool counts = column[q][m] >= 0;
          const uint64_t at =
              static_cast<uint64_t>(static_cast<Unsigned>(column[q][m])) * row_bytes;
          x[q][m] =
              gather_vector<kSize>(reinterpret_cast<const S*>(base + at), counts && is_active);
          // The weight of padding may be anything.
          weight[q][m] = counts ? weight[q][m] : T(0);
        }
      }
      // The next columns are on their way while this lane waits for these rows.
      load_edges(edges.col, quad + kQuads * kWays, edges.begin, edges.end, group, wide_edges,
                 Index(-1), column);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
#pragma unroll
        for (int m = 0; m < kMine; ++m) {
#pragma unroll
          for (int i = 0; i < kSize; ++i) {
            way[m].at[i] = multiply_add(weight[q][m], load_value<T>(&x[q][m].at[i]), way[m].at[i]);
          }
        }
      }
    }
  }

  // The sum of all ways, in every group: (0 + 2) + (1 + 3). All lanes of the warp call it.
  __device__ __forceinline__ Vector<T, kSize> total(int lanes) const {
    Vector<T, kSize> sum;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if constexpr (kGroups == 1) {
        sum.at[i] = (way[0].at[i] + way[2].at[i]) + (way[1].at[i] + way[3].at[i]);
      } else if constexpr (kGroups == 2) {
        const T half = way[0].at[i] + way[1].at[i];
        sum.at[i] = half + __shfl_xor_sync(kAllLanes, half, lanes);
      } else {
        const T half = way[0].at[i] + __shfl_xor_sync(kAllLanes, way[0].at[i], 2 * lanes);
        sum.at[i] = half + __shfl_xor_sync(kAllLanes, half, lanes);
      }
    }
    return sum;
  }
};

}  // namespace
}  // namespace fcl::ops::cuda
