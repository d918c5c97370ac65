// SPDX-License-Identifier: Apache-2.0
// Gradients of softmax_readout on CUDA (formulas: ops/softmax_readout.h). All three are one
// pattern,
//   out[left] = factor * sum over right of weight(left, right) * row of right,
// with embeddings on the left and classes on the right, or the other way round; weights are
// recomputed from the log-sum-exp, tile by tile. Splits of the right side are summed in a fixed
// order by a second kernel.
#include "common/cuda_launch.cuh"
#include "common/cuda_tile.cuh"
#include "ops/cuda/readout_combine.cuh"
#include "ops/cuda/readout_path.h"
#include "ops/cuda/readout_split.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

template <typename T>
struct BackwardShared {
  TileShared<T> tile;
  // Terms of the embeddings in this tile, whichever side they are on.
  int64_t exclude[kTileRows];
  T base[kTileRows];
  T coefficient[kTileRows];
  T norms[kTileRows];  // inverse norms of the tile's classes
};

template <typename T>
__device__ __forceinline__ void load_terms(BackwardShared<T>& shared, const ReadoutProblem& p,
                                           const ReadoutBackward& b, int64_t row, int count) {
  const int i = threadIdx.x;
  if (i >= kTileRows) return;
  const bool inside = i < count;
  shared.exclude[i] = inside && p.exclude != nullptr ? p.exclude[row + i] : -1;
  assert(shared.exclude[i] < p.num_classes && "softmax_readout: exclude is not below C");
  const T logsumexp = inside ? static_cast<const T*>(b.logsumexp)[row + i] : T(0);
  // An empty set of classes has no probabilities to recompute: all its logits are -inf.
  shared.base[i] =
      logsumexp == -infinity<T>() ? T(0) : static_cast<T>(static_cast<double>(logsumexp) * kLog2E);
  shared.coefficient[i] = inside ? static_cast<const T*>(b.coefficient)[row + i] : T(0);
}

template <typename T>
__device__ __forceinline__ void load_norms(BackwardShared<T>& shared, const ReadoutProblem& p,
                                           int64_t first, int count) {
  const int i = threadIdx.x;
  if (i >= kTileRows) return;
  const T* norms = static_cast<const T*>(p.inverse_norms);
  shared.norms[i] = norms != nullptr && i < count ? norms[first + i] : T(1);
}

// One block: 64 rows of the left side, one split of the right side, one panel of output columns.
// With one split `out` is the result, else partial sums [split][left][width].
template <typename S, ReadoutGradient kWhich>
__global__ void __launch_bounds__(kTileThreads, kTileResident<typename Accumulate<S>::type>)
    backward_kernel(ReadoutProblem p, ReadoutBackward b, int64_t per_split, bool accumulate,
                    typename Accumulate<S>::type* out) {
  using T = typename Accumulate<S>::type;
  constexpr bool kByRow = kWhich == ReadoutGradient::kEmbeddings;
  constexpr bool kValues = kWhich == ReadoutGradient::kValues;
  __shared__ BackwardShared<T> shared;
  const int64_t num_left = kByRow ? p.num_rows : p.num_classes;
  const int64_t num_right = kByRow ? p.num_classes : p.num_rows;
  const int64_t width = kValues ? p.value_dim : p.dim;
  const int64_t left = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int left_count = static_cast<int>(min(num_left - left, static_cast<int64_t>(kTileRows)));
  const int64_t begin = blockIdx.y * per_split;
  const int64_t end = min(begin + per_split, num_right);
  const int64_t first_column = static_cast<int64_t>(blockIdx.z) * kTileWidth<T>;
  const S* embeddings = static_cast<const S*>(p.embeddings);
  const S* prototypes = static_cast<const S*>(p.prototypes);
  const S* values = static_cast<const S*>(p.values);
  const T* grad_mean = static_cast<const T*>(b.grad_mean);
  const bool through_mean = !kValues && grad_mean != nullptr;
  const bool shared_values = p.values == p.prototypes;
  const T factor = static_cast<T>(p.scale * kLog2E);
  const T out_factor = kValues ? T(1) : static_cast<T>(p.scale);
  T* to = out + (blockIdx.y * num_left + left) * width;
  if (kByRow) {
    load_terms(shared, p, b, left, left_count);
  } else {
    load_norms(shared, p, left, left_count);
  }
  T sums[kThreadRows][kThreadWidth<T>];
  for (int64_t run = begin; run < end; run += kFlush) {
    const int64_t run_end = min(run + kFlush, end);
    clear_sums<T>(sums);
    for (int64_t right = run; right < run_end; right += kTileColumns<T>) {
      const int count =
          static_cast<int>(min(run_end - right, static_cast<int64_t>(kTileColumns<T>)));
      T logits[kThreadRows][kThreadColumns<T>];
      T readouts[kThreadRows][kThreadColumns<T>];  // grad_mean . values
      if constexpr (kByRow) {
        // Norms of the tile before were last read ahead of a barrier inside tile_accumulate.
        load_norms(shared, p, right, count);
        tile_product<T>(shared.tile, embeddings + left * p.dim, left_count,
                        prototypes + right * p.dim, count, p.dim, logits);
        if (through_mean) {
          tile_product<T>(shared.tile, grad_mean + left * p.value_dim, left_count,
                          values + right * p.value_dim, count, p.value_dim, readouts);
        }
      } else {
        tile_product<T>(shared.tile, prototypes + left * p.dim, left_count,
                        embeddings + right * p.dim, count, p.dim, logits);
        if (through_mean) {
          tile_product<T>(shared.tile, values + left * p.value_dim, left_count,
                          grad_mean + right * p.value_dim, count, p.value_dim, readouts);
        }
        // The terms of the tile before were last read ahead of a barrier inside tile_product.
        load_terms(shared, p, b, right, count);
        __syncthreads();  // they are loaded
      }
#pragma unroll
      for (int j = 0; j < kThreadColumns<T>; ++j) {
        const int column = tile_column(j);
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) {
          const int r = tile_row(i);
          const int x = kByRow ? r : column;
          const int64_t label = kByRow ? right + column : left + r;
          const bool counts = column < count && r < left_count && label != shared.exclude[x];
          const T norm = shared.norms[kByRow ? column : r];
          T weight = 0;
          if (counts) {
            weight = exp2_of(logits[i][j] * (factor * norm) - shared.base[x]);
            if (!kValues) {
              T slope = shared.coefficient[x];
              if (through_mean) slope += shared_values ? readouts[i][j] * norm : readouts[i][j];
              weight *= slope;
            }
            if (kByRow) weight *= norm;
          }
          shared.tile.weights[column][r] = weight;
        }
      }
      // tile_accumulate starts with the barrier that completes the weights.
      if constexpr (kByRow) {
        tile_accumulate<T>(shared.tile, prototypes + right * p.dim, count, width, first_column,
                           sums);
      } else if constexpr (kValues) {
        tile_accumulate<T>(shared.tile, grad_mean + right * p.value_dim, count, width, first_column,
                           sums);
      } else {
        tile_accumulate<T>(shared.tile, embeddings + right * p.dim, count, width, first_column,
                           sums);
      }
    }
    const bool adds = run != begin || accumulate;
#pragma unroll
    for (int i = 0; i < kThreadRows; ++i) {
      const int r = tile_row(i);
      if (r >= left_count) continue;
#pragma unroll
      for (int j = 0; j < kThreadWidth<T>; ++j) {
        const int64_t column = first_column + tile_column(j);
        if (column >= width) continue;
        T* element = to + r * width + column;
        *element = (adds ? *element : T(0)) + out_factor * sums[i][j];
      }
    }
  }
}

template <typename S, ReadoutGradient kWhich>
void backward_typed(const ReadoutProblem& p, const ReadoutBackward& b, bool accumulate,
                    void* scratch, void* out, cudaStream_t stream) {
  using T = typename Accumulate<S>::type;
  const char* op = "softmax_readout_backward";
  constexpr bool kByRow = kWhich == ReadoutGradient::kEmbeddings;
  const int64_t width = kWhich == ReadoutGradient::kValues ? p.value_dim : p.dim;
  const int64_t elements = (kByRow ? p.num_rows : p.num_classes) * width;
  const ReadoutSplit split = split_backward<T>(p, kWhich);
  if (!kByRow && p.num_rows == 0) {
    if (!accumulate) {
      check_cuda(cudaMemsetAsync(out, 0, elements * sizeof(T), stream), op);
    }
    return;
  }
  if (split.splits == 1) {
    launch(op, backward_kernel<S, kWhich>, split.grid(), kTileThreads, stream, p, b,
           split.per_split, accumulate, static_cast<T*>(out));
    return;
  }
  T* partial = static_cast<T*>(scratch);
  launch(op, backward_kernel<S, kWhich>, split.grid(), kTileThreads, stream, p, b, split.per_split,
         false, partial);
  sum_splits(op, partial, split.splits, elements, accumulate, static_cast<T*>(out), stream);
}

int64_t backward_scratch(const ReadoutProblem& p, const ReadoutBackward&, ReadoutGradient which,
                         const CudaDevice&) {
  int64_t bytes = 0;
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename Accumulate<typename decltype(tag)::type>::type;
    const int64_t splits = split_backward<T>(p, which).splits;
    const int64_t left = which == ReadoutGradient::kEmbeddings ? p.num_rows : p.num_classes;
    const int64_t width = which == ReadoutGradient::kValues ? p.value_dim : p.dim;
    if (splits > 1) bytes = splits * left * width * static_cast<int64_t>(sizeof(T));
  });
  return bytes;
}

void backward(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which,
              bool accumulate, void* scratch, void* out, const CudaDevice&, cudaStream_t stream) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    switch (which) {
      case ReadoutGradient::kEmbeddings:
        return backward_typed<S, ReadoutGradient::kEmbeddings>(p, b, accumulate, scratch, out,
                                                               stream);
      case ReadoutGradient::kPrototypes:
        return backward_typed<S, ReadoutGradient::kPrototypes>(p, b, accumulate, scratch, out,
                                                               stream);
      case ReadoutGradient::kValues:
        return backward_typed<S, ReadoutGradient::kValues>(p, b, accumulate, scratch, out, stream);
    }
  });
}

}  // namespace

const ReadoutBackwardPath kReadoutBackwardSimt = {
    "simt", [](const CudaDevice&) { return true; },
    [](const ReadoutProblem&, const ReadoutBackward&, ReadoutGradient) { return true; },
    backward_scratch, backward};

}  // namespace fcl::ops::cuda
