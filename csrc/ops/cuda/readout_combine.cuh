// SPDX-License-Identifier: Apache-2.0
// Partial results of splits become one, in the order of the splits: log-sum-exp and mean,
// gradients.
#pragma once

#include <algorithm>

#include "common/cuda_device.cuh"
#include "common/cuda_launch.cuh"
#include "ops/cuda/softmax_readout_kernels.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

// Scratch: sum [splits][N] (double), max [splits][N] and, where there are several splits, mean
// [splits][N][Dv].
template <typename T>
int64_t partials_bytes(const ReadoutProblem& p, int64_t splits, bool need_mean) {
  const int64_t means = need_mean && splits > 1 ? p.value_dim : 0;
  const int64_t per_row =
      static_cast<int64_t>(sizeof(double) + sizeof(T)) + static_cast<int64_t>(sizeof(T)) * means;
  return splits * p.num_rows * per_row;
}

constexpr int kCombineThreads = 128;
constexpr int kCombineSplits = 512;  // weights of splits that are at hand at a time

// In every thread, in one order.
template <typename T, typename F>
__device__ __forceinline__ T block_reduce(T value, const F& f) {
  __shared__ T parts[kCombineThreads / kWarp];
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = f(value, __shfl_xor_sync(kAllLanes, value, offset));
  }
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();  // parts are written
  value = parts[0];
#pragma unroll
  for (int i = 1; i < kCombineThreads / kWarp; ++i) value = f(value, parts[i]);
  return value;
}

// Weighted sums of values of the splits, and the references that their weights are relative to:
// those of the sums of weights, unless values were split otherwise.
template <typename T>
struct PartialMeans {
  int64_t splits;
  const T* max;   // [splits][N]
  const T* mean;  // [splits][N][Dv]
};

// Partial readouts -> lse and mean, one block per row. With a single split mean is normalised in
// place. `exclude` (or null) is only checked: kernels of warpgroup products cannot, as a call in
// them would make each product wait for the one before.
template <typename T>
__global__ void __launch_bounds__(kCombineThreads, 8)
    combine_kernel(int64_t num_rows, int64_t value_dim, int64_t splits, const T* max,
                   const double* sum, PartialMeans<T> means, T* logsumexp, T* mean,
                   const int64_t* exclude, int64_t num_classes) {
  __shared__ T weights[kCombineSplits];
  const int thread = threadIdx.x;
  const int64_t i = blockIdx.x;
  assert((exclude == nullptr || exclude[i] < num_classes) &&
         "softmax_readout: exclude is not below C");
  T top = -infinity<T>();
  for (int64_t s = thread; s < splits; s += kCombineThreads) {
    const T m = max[s * num_rows + i];
    top = m > top ? m : top;
  }
  top = block_reduce(top, [](T a, T b) { return b > a ? b : a; });
  const double base = static_cast<double>(finite_base(top));
  double total = 0;
  for (int64_t s = thread; s < splits; s += kCombineThreads) {
    total += sum[s * num_rows + i] * exp2(static_cast<double>(max[s * num_rows + i]) - base);
  }
  total = block_reduce(total, [](double a, double b) { return a + b; });
  const double lse = base + log2(total);  // of base-2 logits
  if (thread == 0) logsumexp[i] = static_cast<T>(lse * kLn2);
  if (mean == nullptr) return;
  for (int64_t begin = 0; begin < means.splits; begin += kCombineSplits) {
    const int count = static_cast<int>(min(means.splits - begin, int64_t{kCombineSplits}));
    for (int s = thread; s < count; s += kCombineThreads) {
      const double m = static_cast<double>(means.max[(begin + s) * num_rows + i]);
      weights[s] = total == 0 ? T(0) : static_cast<T>(exp2(m - lse));
    }
    __syncthreads();  // weights are written
    for (int64_t d = thread; d < value_dim; d += kCombineThreads) {
      T value = begin == 0 ? T(0) : mean[i * value_dim + d];
#pragma unroll 4
      for (int s = 0; s < count; ++s) {
        value += means.mean[((begin + s) * num_rows + i) * value_dim + d] * weights[s];
      }
      mean[i * value_dim + d] = value;
    }
    __syncthreads();  // they have been read
  }
}

template <typename T>
void combine_splits(const char* op, int64_t num_rows, int64_t value_dim, int64_t splits,
                    const T* max, const double* sum, PartialMeans<T> means, T* logsumexp, T* mean,
                    cudaStream_t stream, const int64_t* exclude = nullptr,
                    int64_t num_classes = 0) {
  launch(op, combine_kernel<T>, {num_rows}, kCombineThreads, stream, num_rows, value_dim, splits,
         max, sum, means, logsumexp, mean, exclude, num_classes);
}

constexpr int kSumThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    sum_splits_kernel(const T* partial, int64_t splits, int64_t elements, bool accumulate, T* out) {
  for (int64_t i = global_thread(); i < elements; i += grid_threads()) {
    T sum = accumulate ? out[i] : T(0);
    for (int64_t s = 0; s < splits; ++s) sum += partial[s * elements + i];
    out[i] = sum;
  }
}

// partial [splits][elements] -> out, added to what it holds if accumulate.
template <typename T>
void sum_splits(const char* op, const T* partial, int64_t splits, int64_t elements, bool accumulate,
                T* out, cudaStream_t stream) {
  launch(op, sum_splits_kernel<T>, {stride_blocks(elements, kSumThreads)}, kSumThreads, stream,
         partial, splits, elements, accumulate, out);
}

}  // namespace
}  // namespace fcl::ops::cuda
