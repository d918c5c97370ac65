// SPDX-License-Identifier: Apache-2.0
// The path `union` of random_walk: a window of 16 rows is a product of its weights, dense [16 x
// slots], and the rows of the state that any of them gathers, each read once (docs/walk_cuda.md).
//
// A block owns a window, a warp 8 vectors of 16 bytes of its columns. Tensor cores take a row of
// the right operand from lane % 4 and a column from lane / 4. Which row and which column they take
// for which is ours to say: so a lane loads 16 bytes of four rows of the state, and each of the
// columns it got goes to another product. Nothing of the state passes through shared memory, where
// only the weights are; those of a column side by side are those of the vector the lane stores.
#include "common/cuda_launch.cuh"
#include "common/mma_product.cuh"
#include "ops/cuda/walk_row.cuh"
#include "ops/cuda/walk_union.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

constexpr int kRows = 16;
constexpr int kSlots = 16;
constexpr int kEntries = kRows * kSlots;
// Chunks of 16 slots whose weights are in shared memory at a time: 16 KB.
constexpr int kStage = 16;
constexpr int kMostWarps = 4;

// What the products of one chunk add to the sums: they start from zero, so that what tensor cores
// cut off when they add is in proportion to a chunk and not to the whole row.
template <int kTiles>
__device__ __forceinline__ void add_tiles(float (&total)[kTiles][4], const float (&sum)[4], int j) {
#pragma unroll
  for (int i = 0; i < 4; ++i) total[j][i] += sum[i];
}

// `above`, `below`: weights of rows lane / 4 and lane / 4 + 8 for the slots 4 (lane % 4) to + 3,
// whose rows of the state are x.
__device__ __forceinline__ void multiply_chunk(const Vector<float, 4>& above,
                                               const Vector<float, 4>& below,
                                               const Vector<float, 4> (&x)[4],
                                               float (&total)[4][4]) {
  uint32_t big[2][4];
  uint32_t small[2][4];
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Vector<float, 4>& row = i % 2 == 0 ? above : below;
      const SplitFloat weight(row.at[2 * k + i / 2]);
      big[k][i] = weight.big;
      small[k][i] = weight.small;
    }
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float sum[4] = {};
    SplitFloat b[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) b[r] = SplitFloat(x[r].at[j]);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      multiply_matrices_tf32(sum, small[k], b[2 * k].big, b[2 * k + 1].big);
      multiply_matrices_tf32(sum, big[k], b[2 * k].small, b[2 * k + 1].small);
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      multiply_matrices_tf32(sum, big[k], b[2 * k].big, b[2 * k + 1].big);
    }
    add_tiles(total, sum, j);
  }
}

// A weight as the sum of two bfloat16: to 2^-17 of it, beside the 2^-9 of the state.
__device__ __forceinline__ void split_pair(float low, float high, uint32_t& big, uint32_t& small) {
  big = pack_pair<BFloat16>(low, high);
  small = pack_pair<BFloat16>(low - __uint_as_float(big << 16),
                              high - __uint_as_float(big & 0xffff0000u));
}
__device__ __forceinline__ void multiply_chunk(const Vector<float, 4>& above,
                                               const Vector<float, 4>& below,
                                               const Vector<BFloat16, 8> (&x)[4],
                                               float (&total)[8][4]) {
  uint32_t big[4];
  uint32_t small[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const Vector<float, 4>& row = i % 2 == 0 ? above : below;
    split_pair(row.at[i / 2 * 2], row.at[i / 2 * 2 + 1], big[i], small[i]);
  }
  uint32_t words[4][4];
#pragma unroll
  for (int r = 0; r < 4; ++r) memcpy(words[r], &x[r], 16);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    uint32_t b[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t first = words[2 * half][j / 2];
      const uint32_t second = words[2 * half + 1][j / 2];
      b[half] =
          j % 2 == 0 ? (first & 0xffffu) | second << 16 : first >> 16 | (second & 0xffff0000u);
    }
    float sum[4] = {};
    multiply_matrices<BFloat16>(sum, small, b[0], b[1]);
    multiply_matrices<BFloat16>(sum, big, b[0], b[1]);
    add_tiles(total, sum, j);
  }
}

// The lane's columns of the rows that four slots stand for.
template <typename S, int kSize, bool kAligned>
__device__ __forceinline__ void load_rows(const WalkStep& p, const int32_t (&slots)[4], int64_t d,
                                          Vector<S, kSize> (&x)[4]) {
  const S* columns = static_cast<const S*>(p.state.data) + d;
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const S* from = columns + slots[r] * p.state.stride;
    if constexpr (kAligned) {
      x[r] = gather_vector<kSize>(from, slots[r] >= 0 && d < p.dim);
    } else {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        x[r].at[i] = gather_vector<1>(from + i, slots[r] >= 0 && d + i < p.dim).at[0];
      }
    }
  }
}

template <typename S, bool kAligned>
__global__ void __launch_bounds__(kMostWarps* kWarp)
    mma_walk_kernel(WalkUnion windows, WalkStep p) {
  constexpr int kSize = kWide<S>;
  alignas(16) __shared__ float weights[kStage][kEntries];
  alignas(16) __shared__ int32_t slots[kStage * kSlots];
  const int thread = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  const int warp = thread / kWarp;
  const int lane = thread % kWarp;
  const int t = lane % 4;
  const int g = lane / 4;
  const int64_t first_column =
      (static_cast<int64_t>(blockIdx.y) * (threads / kWarp) + warp) * (8 * kSize);
  const int64_t d = first_column + g * kSize;
  const int64_t end = windows.window_crow[blockIdx.x + 1] / kSlots;
  float total[kSize][4] = {};
  for (int64_t stage = windows.window_crow[blockIdx.x] / kSlots; stage < end; stage += kStage) {
    const int count = static_cast<int>(min(end - stage, static_cast<int64_t>(kStage)));
    for (int i = thread; i < count * kSlots; i += threads) {
      slots[i] = windows.window_col[stage * kSlots + i];
    }
    const Vector<float, 4> zeros = {};
    for (int i = 4 * thread; i < count * kEntries; i += 4 * threads) {
      store_vector<4>(&weights[i / kEntries][i % kEntries], zeros);
    }
    __syncthreads();  // zeros are written, ahead of the weights
    for (int c = warp; c < count; c += threads / kWarp) {
      const int64_t last = windows.chunk_crow[stage + c + 1];
      for (int64_t e = windows.chunk_crow[stage + c] + lane; e < last; e += kWarp) {
        weights[c][windows.positions[e]] = windows.values[e];
      }
    }
    __syncthreads();  // weights and slots are written
    if (first_column < p.dim) {
      const auto load_slots = [&](int c, int32_t (&to)[4]) {
        const Vector<int32_t, 4> four = load_vector<4>(&slots[c * kSlots + 4 * t]);
#pragma unroll
        for (int r = 0; r < 4; ++r) to[r] = four.at[r];
      };
      int32_t rows[4];
      Vector<S, kSize> x[4];
      load_slots(0, rows);
      load_rows<S, kSize, kAligned>(p, rows, d, x);
      for (int c = 0; c < count; ++c) {
        // The next chunk's rows are on their way while this one's are multiplied.
        Vector<S, kSize> next[4] = {};
        if (c + 1 < count) {
          load_slots(c + 1, rows);
          load_rows<S, kSize, kAligned>(p, rows, d, next);
        }
        const Vector<float, 4> above = load_vector<4>(&weights[c][g * kSlots + 4 * t]);
        const Vector<float, 4> below = load_vector<4>(&weights[c][(g + 8) * kSlots + 4 * t]);
        multiply_chunk(above, below, x, total);
#pragma unroll
        for (int r = 0; r < 4; ++r) x[r] = next[r];
      }
    }
    __syncthreads();  // weights and slots are read: the next stage may have the memory
  }
  // Product j has column j of each lane's vector: a lane holds two neighbouring vectors of two
  // rows.
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + g + i / 2 * 8;
    const int64_t column = first_column + (2 * t + i % 2) * kSize;
    Vector<float, kSize> sums;
#pragma unroll
    for (int j = 0; j < kSize; ++j) sums.at[j] = total[j][i];
    if (row < windows.num_rows && column < p.dim) finish_columns(p, row, column, sums);
  }
}

constexpr int kCheckThreads = 256;

__global__ void __launch_bounds__(kCheckThreads) check_windows_kernel(WalkUnion w) {
  const int64_t num_windows = (w.num_rows + kRows - 1) / kRows;
  for (int64_t i = global_thread(); i <= num_windows; i += grid_threads()) {
    const int64_t before = i == 0 ? 0 : w.window_crow[i - 1];
    assert(w.window_crow[i] >= before && w.window_crow[i] % kSlots == 0 &&
           "window_crow decreases, or is not a multiple of 16");
    assert((i != 0 || w.window_crow[0] == 0) &&
           (i != num_windows || w.window_crow[i] == w.num_slots) &&
           "window_crow does not run from 0 to S");
  }
  for (int64_t i = global_thread(); i <= w.num_slots / kSlots; i += grid_threads()) {
    const int64_t before = i == 0 ? 0 : w.chunk_crow[i - 1];
    assert(w.chunk_crow[i] >= before && w.chunk_crow[i] <= w.num_edges &&
           (i != 0 || w.chunk_crow[0] == 0) && "chunk_crow does not run from 0 to P");
  }
  for (int64_t i = global_thread(); i < w.num_slots; i += grid_threads()) {
    assert(w.window_col[i] >= -1 && w.window_col[i] < w.num_rows &&
           "window_col leaves [0, N), or -1 for no row");
  }
}

template <typename S>
void launch_typed(const WalkUnion& windows, const WalkStep& p, cudaStream_t stream) {
  constexpr int kColumns = 8 * kWide<S>;
  const bool is_aligned = rows_are_wide<S>(p.state.stride, {p.state.data}) &&
                          divide_up(p.dim, kWide<S>) * kWide<S> <= p.state.columns;
  const int64_t tiles = divide_up(p.dim, kColumns);
  const int64_t warps = std::min<int64_t>(tiles, kMostWarps);
  const Grid grid{divide_up(windows.num_rows, kRows), divide_up(tiles, warps)};
  launch("random_walk_union", is_aligned ? mma_walk_kernel<S, true> : mma_walk_kernel<S, false>,
         grid, static_cast<int>(warps) * kWarp, stream, windows, p);
}

}  // namespace

void launch_check_windows(const WalkUnion& windows, cudaStream_t stream) {
  const int64_t blocks =
      stride_blocks(std::max(windows.num_rows, windows.num_slots) + 1, kCheckThreads);
  launch("random_walk_union", check_windows_kernel, {blocks}, kCheckThreads, stream, windows);
}

void launch_walk_union(const WalkUnion& windows, const WalkStep& step, cudaStream_t stream) {
  if (step.dim == 0) return;
  const CudaDevice device = current_device("random_walk_union");
  if (device.capability < 80) refuse_path("random_walk_union", "union", device);
  if (step.state.dtype == Dtype::kBfloat16) return launch_typed<BFloat16>(windows, step, stream);
  launch_typed<float>(windows, step, stream);
}

}  // namespace fcl::ops::cuda
