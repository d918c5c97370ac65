// SPDX-License-Identifier: Apache-2.0
// softmax_readout on CUDA, forward. A block owns 64 rows, one split of the classes and one panel of
// value columns; it walks over tiles of classes with a running maximum (base-2 logits), as
// attention kernels do. Splits leave partial sums that a second kernel combines in a fixed order,
// so results are the same on every run and device. Wider values than one panel recompute the
// logits.
#include "common/cuda_launch.cuh"
#include "common/cuda_tile.cuh"
#include "ops/cuda/readout_combine.cuh"
#include "ops/cuda/readout_path.h"
#include "ops/cuda/readout_split.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

// Threads that share a row while a tile of logits is exponentiated.
constexpr int kParts = kTileThreads / kTileRows;

template <typename T>
struct ForwardShared {
  TileShared<T> tile;
  int64_t exclude[kTileRows];
  T norms[kTileColumns<T>];          // inverse norms of the tile's classes, for logits
  T value_factors[kTileColumns<T>];  // and for the mean
  double part_sum[kParts][kTileRows];
  T part_max[kParts][kTileRows];
  double run_sum[kTileRows];  // of the classes since the last flush
  T run_max[kTileRows];
  double total_sum[kTileRows];  // of those before
  T total_max[kTileRows];
  T keep[kTileRows];  // factors that bring old sums to the new maximum
  T add[kTileRows];
};

// Raw logits in shared.tile.weights -> 2^(logit - maximum), times the classes' factors in the mean;
// updates run_max and run_sum, and leaves in shared.keep what earlier sums must be multiplied by.
template <typename T>
__device__ __forceinline__ void exponentiate(ForwardShared<T>& shared) {
  constexpr int kColumns = kTileColumns<T> / kParts;
  const int row = threadIdx.x % kTileRows;
  const int part = threadIdx.x / kTileRows;
  T(*logits)[kTileRows + kTilePad] = shared.tile.weights + part * kColumns;
  T max = -infinity<T>();
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const T z = logits[c][row];
    max = z > max ? z : max;  // never takes a NaN, which then reaches the sum
  }
  shared.part_max[part][row] = max;
  __syncthreads();  // every part's maximum is written
  const T old_max = shared.run_max[row];
  max = old_max;
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    max = shared.part_max[i][row] > max ? shared.part_max[i][row] : max;
  }
  const T base = finite_base(max);
  T sum = 0;
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const T e = exp2_of(logits[c][row] - base);
    logits[c][row] = e * shared.value_factors[part * kColumns + c];
    sum += e;
  }
  shared.part_sum[part][row] = static_cast<double>(sum);
  __syncthreads();  // sums are written, and run_max is read
  if (part == 0) {
    const T keep = exp2_of(old_max - base);
    double total = shared.run_sum[row] * static_cast<double>(keep);
#pragma unroll
    for (int i = 0; i < kParts; ++i) total += shared.part_sum[i][row];
    shared.run_sum[row] = total;
    shared.run_max[row] = max;
    shared.keep[row] = keep;
  }
  __syncthreads();  // keep is written
}

// Merges the run of classes since the last flush into the totals: sums go to `mean`, rows of this
// block of one split.
template <typename T>
__device__ __forceinline__ void flush(ForwardShared<T>& shared, const ReadoutProblem& p, int rows,
                                      int64_t first_column, bool is_first, T* mean,
                                      const T (&sums)[kThreadRows][kThreadWidth<T>]) {
  const int row = threadIdx.x;
  if (row < kTileRows) {
    const T max =
        shared.run_max[row] > shared.total_max[row] ? shared.run_max[row] : shared.total_max[row];
    const T base = finite_base(max);
    const T keep = exp2_of(shared.total_max[row] - base);
    const T add = exp2_of(shared.run_max[row] - base);
    shared.total_sum[row] = shared.total_sum[row] * static_cast<double>(keep) +
                            shared.run_sum[row] * static_cast<double>(add);
    shared.total_max[row] = max;
    shared.run_max[row] = -infinity<T>();
    shared.run_sum[row] = 0;
    shared.keep[row] = keep;
    shared.add[row] = add;
  }
  __syncthreads();  // keep and add are written
  if (mean == nullptr) return;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int r = tile_row(i);
    if (r >= rows) continue;
#pragma unroll
    for (int j = 0; j < kThreadWidth<T>; ++j) {
      const int64_t column = first_column + tile_column(j);
      if (column >= p.value_dim) continue;
      T* to = mean + r * p.value_dim + column;
      const T added = sums[i][j] * shared.add[r];
      *to = is_first ? added : *to * shared.keep[r] + added;
    }
  }
}

// Partial readout, indexed [split][row]: max of the base-2 logits, sum 2^(z - max), and the same
// sum of values, unnormalised. mean is null if only the log-sum-exp is wanted.
template <typename S>
__global__ void __launch_bounds__(kTileThreads, kTileResident<typename Accumulate<S>::type>)
    forward_kernel(ReadoutProblem p, int64_t classes_per_split,
                   typename Accumulate<S>::type* max_out, double* sum_out,
                   typename Accumulate<S>::type* mean_out) {
  using T = typename Accumulate<S>::type;
  __shared__ ForwardShared<T> shared;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int rows = static_cast<int>(min(p.num_rows - row, static_cast<int64_t>(kTileRows)));
  const int64_t begin = blockIdx.y * classes_per_split;
  const int64_t end = min(begin + classes_per_split, p.num_classes);
  const int64_t first_column = static_cast<int64_t>(blockIdx.z) * kTileWidth<T>;
  const S* embeddings = static_cast<const S*>(p.embeddings) + row * p.dim;
  const S* prototypes = static_cast<const S*>(p.prototypes);
  const S* values = static_cast<const S*>(p.values);
  const T* norms = static_cast<const T*>(p.inverse_norms);
  const int64_t at = blockIdx.y * p.num_rows + row;
  T* mean = mean_out == nullptr ? nullptr : mean_out + at * p.value_dim;
  if (threadIdx.x < kTileRows) {
    const int i = threadIdx.x;
    const bool excludes = p.exclude != nullptr && i < rows;
    shared.exclude[i] = excludes ? p.exclude[row + i] : -1;
    assert(shared.exclude[i] < p.num_classes && "softmax_readout: exclude is not below C");
    shared.run_max[i] = -infinity<T>();
    shared.run_sum[i] = 0;
    shared.total_max[i] = -infinity<T>();
    shared.total_sum[i] = 0;
  }
  const T factor = static_cast<T>(p.scale * kLog2E);
  T sums[kThreadRows][kThreadWidth<T>];
  for (int64_t run = begin; run < end; run += kFlush) {
    const int64_t run_end = min(run + kFlush, end);
    clear_sums<T>(sums);
    for (int64_t c = run; c < run_end; c += kTileColumns<T>) {
      const int count = static_cast<int>(min(run_end - c, static_cast<int64_t>(kTileColumns<T>)));
      if (threadIdx.x < kTileColumns<T>) {
        const int column = threadIdx.x;
        const T norm = norms != nullptr && column < count ? norms[c + column] : T(1);
        shared.norms[column] = norm;
        shared.value_factors[column] = p.values == p.prototypes ? norm : T(1);
      }
      T logits[kThreadRows][kThreadColumns<T>];
      tile_product<T>(shared.tile, embeddings, rows, prototypes + c * p.dim, count, p.dim, logits);
      // Weights of the tile before were last read ahead of a barrier inside tile_product.
#pragma unroll
      for (int j = 0; j < kThreadColumns<T>; ++j) {
        const int column = tile_column(j);
        const T to_base2 = factor * shared.norms[column];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
          const int r = tile_row(i);
          const bool counts = column < count && c + column != shared.exclude[r];
          shared.tile.weights[column][r] = counts ? logits[i][j] * to_base2 : -infinity<T>();
        }
      }
      __syncthreads();  // logits are written
      exponentiate(shared);
      if (mean == nullptr) continue;
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const T keep = shared.keep[tile_row(i)];
#pragma unroll
        for (int j = 0; j < kThreadWidth<T>; ++j) sums[i][j] *= keep;
      }
      tile_accumulate<T>(shared.tile, values + c * p.value_dim, count, p.value_dim, first_column,
                         sums);
    }
    flush(shared, p, rows, first_column, run == begin, mean, sums);
  }
  if (blockIdx.z == 0 && static_cast<int>(threadIdx.x) < rows) {
    max_out[at + threadIdx.x] = shared.total_max[threadIdx.x];
    sum_out[at + threadIdx.x] = shared.total_sum[threadIdx.x];
  }
}

template <typename S>
void forward_typed(const ReadoutProblem& p, void* scratch, void* logsumexp, void* mean,
                   cudaStream_t stream) {
  using T = typename Accumulate<S>::type;
  const char* op = "softmax_readout";
  const ReadoutSplit split = split_forward<T>(p, mean != nullptr);
  const int64_t partials = split.splits * p.num_rows;
  double* sum = static_cast<double*>(scratch);
  T* max = reinterpret_cast<T*>(sum + partials);
  T* partial = mean == nullptr || split.splits == 1 ? static_cast<T*>(mean) : max + partials;
  launch(op, forward_kernel<S>, split.grid(), kTileThreads, stream, p, split.per_split, max, sum,
         partial);
  combine_splits<T>(op, p.num_rows, p.value_dim, split.splits, max, sum,
                    {split.splits, max, partial}, static_cast<T*>(logsumexp), static_cast<T*>(mean),
                    stream);
}

int64_t forward_scratch(const ReadoutProblem& p, bool need_mean, const CudaDevice&) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename Accumulate<typename decltype(tag)::type>::type;
    bytes = partials_bytes<T>(p, split_forward<T>(p, need_mean).splits, need_mean);
  });
  return bytes;
}

void forward(const ReadoutProblem& p, void* scratch, void* logsumexp, void* mean, const CudaDevice&,
             cudaStream_t stream) {
  if (p.num_rows == 0) return;
  dispatch_dtype(p.dtype, [&](auto tag) {
    forward_typed<typename decltype(tag)::type>(p, scratch, logsumexp, mean, stream);
  });
}

}  // namespace

const ReadoutForwardPath kReadoutForwardSimt = {"simt", [](const CudaDevice&) { return true; },
                                                [](const ReadoutProblem&) { return true; },
                                                forward_scratch, forward};

}  // namespace fcl::ops::cuda
