// SPDX-License-Identifier: Apache-2.0
// The path `gather` of random_walk: one step, as fast as rows can be gathered (docs/walk_cuda.md).
//
// A team of lanes owns up to 32 vectors of a row. Its lanes lie side by side along the columns, 16
// bytes each, in kGroups groups that take different edges. Sums go four ways, by the position of
// the edge in memory modulo 4, and are put together in one order. So bits depend neither on the
// number of groups, nor on the width of loads, nor on whether a warp or a block sums a row: panels
// of columns give those of whole rows.
#include <type_traits>

#include "common/cuda_launch.cuh"
#include "common/cuda_limits.h"
#include "ops/cuda/walk_row.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

constexpr int kThreads = 256;
constexpr int kWays = 4;
// Blocks resident on a multiprocessor, for which registers must suffice, and gathers that a lane
// then has in flight: 3 x 256 x 4 x 16 bytes are 48 KB, where latency times bandwidth ask for some
// 30 KB. Where sums or columns take more registers, two blocks have 64 KB, or 32 where both do.
// Short rows are few bytes a row: there, too, a lane takes 8 at once, in four groups all of a row
// of 32 edges.
template <typename Index>
constexpr bool kWideColumns = sizeof(Index) == 8;
template <int kSize, int kGroups>
constexpr bool kManySums = kSize == 8 && kGroups == 1;
template <typename Index, int kSize, int kGroups>
constexpr int kResident = kWideColumns<Index> || kManySums<kSize, kGroups> ? 2 : 3;
template <typename Index, int kSize, int kGroups>
constexpr int kInFlight =
    kGroups == kWays || kWideColumns<Index> != kManySums<kSize, kGroups> ? 8 : 4;

// How lanes are laid out, the same for all blocks of a launch.
struct Teams {
  int lanes;           // side by side along the columns, a power of two
  int64_t pieces;      // teams that share a row
  uint32_t row_bytes;  // between rows of the state
  bool wide_edges;     // columns and values can be read four at a time
};

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

// Segment `s` of a row's edges, in whole groups of four.
struct Segment {
  int64_t begin, end;

  __device__ __forceinline__ Segment(int64_t row_begin, int64_t row_end, int64_t s) {
    const int64_t first = row_begin / kWays * kWays + s * kWalkSegment;
    begin = first > row_begin ? first : row_begin;
    end = first + kWalkSegment < row_end ? first + kWalkSegment : row_end;
  }
};

template <typename S, typename Index, int kSize, int kGroups>
__global__ void __launch_bounds__(kThreads, kResident<Index, kSize, kGroups>)
    walk_gather_kernel(WalkStep p, Teams teams) {
  using T = typename Accumulate<S>::type;
  using Sums = RowSums<S, Index, kSize, kGroups>;
  __shared__ bool has_hub;
  __shared__ Vector<T, kSize> shared[Sums::kMine][kWarp];
  const int thread = static_cast<int>(threadIdx.x);
  const int team_size = teams.lanes * kGroups;
  const int team_lane = thread % team_size;
  const int group = team_lane / teams.lanes;
  const int lane = team_lane % teams.lanes;
  const int num_teams = kThreads / team_size;
  const int64_t first_item = static_cast<int64_t>(blockIdx.x) * num_teams;
  const S* state = static_cast<const S*>(p.state.data);
  if (thread == 0) has_hub = false;
  __syncthreads();  // the flag is down

  const int my_team = thread / team_size;
  {
    const int64_t row = (first_item + my_team) / teams.pieces;
    const int64_t d = ((first_item + my_team) % teams.pieces * teams.lanes + lane) * kSize;
    const bool is_row = row < p.graph.num_rows;
    const bool is_active = is_row && d < p.dim;
    const int64_t begin = is_row ? p.graph.crow[row] : 0;
    const int64_t end = is_row ? p.graph.crow[row + 1] : 0;
    const bool is_hub = end - begin > kWalkHub;
    if (is_hub) has_hub = true;
    Sums sums;
    if (!is_hub) {
      sums.multiply(EdgeRange<T, Index>(p, begin, end), state + d, teams.row_bytes, group,
                    teams.wide_edges, is_active);
    }
    const Vector<T, kSize> total = sums.total(teams.lanes);
    if (is_active && !is_hub && group == 0) finish_columns(p, row, d, total);
  }
  __syncthreads();  // whoever met a hub has said so
  if (!has_hub) return;

  // All teams of the block share each hub: a segment each, added up in the order of segments.
  for (int i = 0; i < num_teams; ++i) {
    const int64_t row = (first_item + i) / teams.pieces;
    if (row >= p.graph.num_rows) return;
    const int64_t begin = p.graph.crow[row];
    const int64_t end = p.graph.crow[row + 1];
    if (end - begin <= kWalkHub) continue;
    const int64_t d = ((first_item + i) % teams.pieces * teams.lanes + lane) * kSize;
    const bool is_active = d < p.dim;
    for (int64_t wave = 0; Segment(begin, end, wave).begin < end; wave += num_teams) {
      const Segment segment(begin, end, wave + my_team);
      Sums sums;
      if (segment.begin < end) {
        sums.multiply(EdgeRange<T, Index>(p, segment.begin, segment.end), state + d,
                      teams.row_bytes, group, teams.wide_edges, is_active);
      }
      for (int turn = 0; turn < num_teams; ++turn) {
        if (turn == my_team && segment.begin < end) {
#pragma unroll
          for (int m = 0; m < Sums::kMine; ++m) {
            Vector<T, kSize>& so_far = shared[m][team_lane];
            if (wave + turn == 0) {
              so_far = sums.way[m];
            } else {
#pragma unroll
              for (int j = 0; j < kSize; ++j) so_far.at[j] += sums.way[m].at[j];
            }
          }
        }
        __syncthreads();  // the next team adds to these sums, or the first reads them
      }
    }
    // Each lane takes what it, first of all, will write for the next hub: no barrier between.
    Sums sums;
    if (my_team == 0) {
#pragma unroll
      for (int m = 0; m < Sums::kMine; ++m) sums.way[m] = shared[m][team_lane];
    }
    const Vector<T, kSize> total = sums.total(teams.lanes);
    if (my_team == 0 && group == 0 && is_active) finish_columns(p, row, d, total);
  }
}

template <typename S, typename Index, int kSize>
void launch_typed(const WalkStep& p, cudaStream_t stream) {
  const int64_t vectors = divide_up(p.dim, kSize);
  Teams teams{1, 1, static_cast<uint32_t>(p.state.stride * sizeof(S)), false};
  while (teams.lanes < kWarp && teams.lanes < vectors) teams.lanes *= 2;
  teams.pieces = divide_up(vectors, teams.lanes);
  teams.wide_edges =
      (reinterpret_cast<uintptr_t>(p.graph.col) | reinterpret_cast<uintptr_t>(p.values)) % 16 == 0;
  const auto run = [&](auto* kernel, int groups) {
    const int64_t per_block = kThreads / (teams.lanes * groups);
    launch("random_walk", kernel, {divide_up(p.graph.num_rows * teams.pieces, per_block)}, kThreads,
           stream, p, teams);
  };
  if constexpr (kSize > 1) {
    if (teams.lanes <= kWarp / 4) return run(walk_gather_kernel<S, Index, kSize, 4>, 4);
    if (teams.lanes <= kWarp / 2) return run(walk_gather_kernel<S, Index, kSize, 2>, 2);
  }
  run(walk_gather_kernel<S, Index, kSize, 1>, 1);
}

template <typename S>
void launch_state(const WalkStep& p, cudaStream_t stream) {
  const bool is_wide = rows_are_wide<S>(p.state.stride, {p.state.data}) &&
                       divide_up(p.dim, kWide<S>) * kWide<S> <= p.state.columns;
  if (p.graph.wide) {
    is_wide ? launch_typed<S, int64_t, kWide<S>>(p, stream)
            : launch_typed<S, int64_t, 1>(p, stream);
  } else {
    is_wide ? launch_typed<S, int32_t, kWide<S>>(p, stream)
            : launch_typed<S, int32_t, 1>(p, stream);
  }
}

}  // namespace

const WalkPath kWalkGather = {
    "gather",
    [](const CudaDevice& device) { return device.capability >= 80; },
    [](int64_t dim) { return dim < (int64_t{1} << 28); },
    [](const WalkStep& p, cudaStream_t stream) {
      if (p.dim == 0) return;
      dispatch_dtype(p.state.dtype,
                     [&](auto tag) { launch_state<typename decltype(tag)::type>(p, stream); });
    },
    true,
};

}  // namespace fcl::ops::cuda
