// SPDX-License-Identifier: Apache-2.0
// The path `gather` of random_walk: one step, as fast as rows can be gathered (docs/walk_cuda.md).
//
// A team of lanes owns up to 32 vectors of a row. Its lanes lie side by side along the columns, 16
// bytes each, in kGroups groups that take different edges. Sums go four ways, by the position of
// the edge in memory modulo 4, and are put together in one order. So bits depend neither on the
// number of groups, nor on the width of loads, nor on whether a warp or a block sums a row: panels
// of columns give those of whole rows.
#include "common/cuda_launch.cuh"
#include "common/cuda_limits.h"
#include "ops/cuda/walk_row.cuh"
#include "ops/cuda/walk_sums.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

// How lanes are laid out, the same for all blocks of a launch.
struct Teams {
  int lanes;           // side by side along the columns, a power of two
  int64_t pieces;      // teams that share a row
  uint32_t row_bytes;  // between rows of the state
  bool wide_edges;     // columns and values can be read four at a time
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
