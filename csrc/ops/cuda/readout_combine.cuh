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

// Partial readouts -> lse and mean, one block per row. With a single split mean is normalised in
// place. `exclude` (or null) is only checked: kernels of warpgroup products cannot, as a call in
// them would make each product wait for the one before.
template <typename T>
__global__ void __launch_bounds__(kCombineThreads)
    combine_kernel(int64_t num_rows, int64_t value_dim, int64_t splits, const T* max,
                   const double* sum, const T* partial, T* logsumexp, T* mean,
                   const int64_t* exclude, int64_t num_classes) {
  for (int64_t i = blockIdx.x; i < num_rows; i += gridDim.x) {
    assert((exclude == nullptr || exclude[i] < num_classes) &&
           "softmax_readout: exclude is not below C");
    T top = -infinity<T>();
    for (int64_t s = 0; s < splits; ++s) {
      const T m = max[s * num_rows + i];
      top = m > top ? m : top;
    }
    const double base = static_cast<double>(finite_base(top));
    double total = 0;
    for (int64_t s = 0; s < splits; ++s) {
      total += sum[s * num_rows + i] * exp2(static_cast<double>(max[s * num_rows + i]) - base);
    }
    if (threadIdx.x == 0) logsumexp[i] = static_cast<T>((base + log2(total)) * kLn2);
    if (mean == nullptr) continue;
    for (int64_t d = threadIdx.x; d < value_dim; d += kCombineThreads) {
      T value = 0;
      for (int64_t s = 0; s < splits; ++s) {
        const double weight = exp2(static_cast<double>(max[s * num_rows + i]) - base) / total;
        value += partial[(s * num_rows + i) * value_dim + d] *
                 (total == 0 ? T(0) : static_cast<T>(weight));
      }
      mean[i * value_dim + d] = value;
    }
  }
}

template <typename T>
void combine_splits(const char* op, int64_t num_rows, int64_t value_dim, int64_t splits,
                    const T* max, const double* sum, const T* partial, T* logsumexp, T* mean,
                    cudaStream_t stream, const int64_t* exclude = nullptr,
                    int64_t num_classes = 0) {
  launch(op, combine_kernel<T>, {std::min<int64_t>(num_rows, 1 << 20)}, kCombineThreads, stream,
         num_rows, value_dim, splits, max, sum, partial, logsumexp, mean, exclude, num_classes);
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
