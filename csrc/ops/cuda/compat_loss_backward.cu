// SPDX-License-Identifier: Apache-2.0
// Gradient of compat_loss to prototypes on CUDA: the readout's gradient for all classes but the
// target, and here what comes before and after. Nothing is added atomically: a class has one warp
// that adds its rows in their order.
#include "common/cuda_launch.cuh"
#include "common/cuda_scratch.h"
#include "ops/cuda/compat_loss_kernels.h"
#include "ops/cuda/inverse_norms.h"
#include "ops/cuda/row_norm.cuh"

namespace fcl::ops::cuda {
namespace {

constexpr const char* kOp = "compat_loss_backward";
constexpr int kThreads = 256;
constexpr int kTargetThreads = 128;
constexpr int kLaneColumns = 4;
constexpr int64_t kTargetColumns = kWarp * kLaneColumns;
constexpr int kSmoothRows = 32;  // rows that a block of smooth_kernel reads at once

// d total / d (loss of row i), times the scale.
template <typename T>
__device__ __forceinline__ double scaled_grad(const CompatProblem& p, const CompatBackward& b,
                                              int64_t i) {
  return p.options.scale *
         static_cast<double>(static_cast<const T*>(b.grad_loss)[b.per_row ? i : 0]);
}

template <typename T>
__device__ __forceinline__ double state_of(const CompatProblem& p, const CompatBackward& b,
                                           CompatLossState which, int64_t i) {
  return static_cast<double>(static_cast<const T*>(b.state)[which * p.num_rows + i]);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    coefficient_kernel(CompatProblem p, CompatBackward b, int64_t* exclude, T* coefficient) {
  const int64_t ignored = p.options.ignore_index;
  for (int64_t i = global_thread(); i < p.num_rows; i += grid_threads()) {
    const int64_t label = p.labels[i];
    assert((label == ignored || (label >= 0 && label < p.num_classes)) &&
           "compat_loss_backward: label is not in [0, C)");
    exclude[i] = label == ignored ? -1 : label;
    const T grad = static_cast<const T*>(b.grad_loss)[b.per_row ? i : 0];
    // State is zero where a row does not count, but the gradient that comes may be infinite.
    coefficient[i] = label == ignored
                         ? T(0)
                         : grad * static_cast<const T*>(b.state)[kStateOther * p.num_rows + i];
  }
}

// smooth [D] = sum over rows of their even part. A block owns 32 columns.
template <typename S>
__global__ void __launch_bounds__(kWarp* kSmoothRows)
    smooth_kernel(CompatProblem p, CompatBackward b, const int64_t* exclude, double* smooth) {
  using T = typename Accumulate<S>::type;
  __shared__ double sums[kSmoothRows][kWarp];
  const int lane = threadIdx.x % kWarp;
  const int part = threadIdx.x / kWarp;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  const S* rows = static_cast<const S*>(p.embeddings);
  const double even = p.options.label_smoothing / static_cast<double>(p.num_classes);
  double sum = 0;
  for (int64_t i = part; i < p.num_rows; i += kSmoothRows) {
    if (exclude[i] < 0 || column >= p.dim) continue;
    const double weight = even * scaled_grad<T>(p, b, i) * state_of<T>(p, b, kStateWeight, i);
    sum = fma(weight, load_value<double>(rows + i * p.dim + column), sum);
  }
  sums[part][lane] = sum;
  __syncthreads();  // all sums are written
  if (part != 0 || column >= p.dim) return;
  sum = 0;
  for (int i = 0; i < kSmoothRows; ++i) sum += sums[i][lane];
  smooth[column] = sum;
}

// A warp per class.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    subtract_smooth_kernel(int64_t num_classes, int64_t dim, const double* smooth, T* grad) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t c = global_thread() / kWarp; c < num_classes; c += grid_threads() / kWarp) {
    for (int64_t d = lane; d < dim; d += kWarp) grad[c * dim + d] -= static_cast<T>(smooth[d]);
  }
}

// True if an earlier row has the label of row i. The nearest come first: with few classes one of
// them has it, with many the readout takes far longer than all of them.
__device__ __forceinline__ bool seen_before(const int64_t* exclude, int64_t i, int lane) {
  for (int64_t end = i; end > 0; end -= kWarp) {
    const int64_t j = end - 1 - lane;
    if (__any_sync(kAllLanes, j >= 0 && exclude[j] == exclude[i])) return true;
  }
  return false;
}

// A warp per row and panel of columns: the first row of a label adds all of that label.
template <typename S>
__global__ void __launch_bounds__(kTargetThreads)
    target_kernel(CompatProblem p, CompatBackward b, const int64_t* exclude,
                  typename Accumulate<S>::type* grad) {
  using T = typename Accumulate<S>::type;
  const S* rows = static_cast<const S*>(p.embeddings);
  const int lane = threadIdx.x % kWarp;
  const int64_t first_column = blockIdx.y * kTargetColumns + lane;
  for (int64_t i = global_thread() / kWarp; i < p.num_rows; i += grid_threads() / kWarp) {
    const int64_t label = exclude[i];
    if (label < 0 || seen_before(exclude, i, lane)) continue;
    double sums[kLaneColumns] = {};
    for (int64_t first = i; first < p.num_rows; first += kWarp) {
      unsigned same =
          __ballot_sync(kAllLanes, first + lane < p.num_rows && exclude[first + lane] == label);
      for (; same != 0; same &= same - 1) {
        const int64_t j = first + __ffs(static_cast<int>(same)) - 1;
        const double weight = scaled_grad<T>(p, b, j) * state_of<T>(p, b, kStateTarget, j);
#pragma unroll
        for (int k = 0; k < kLaneColumns; ++k) {
          const int64_t column = first_column + k * kWarp;
          if (column >= p.dim) continue;
          sums[k] = fma(weight, load_value<double>(rows + j * p.dim + column), sums[k]);
        }
      }
    }
#pragma unroll
    for (int k = 0; k < kLaneColumns; ++k) {
      const int64_t column = first_column + k * kWarp;
      if (column < p.dim) grad[label * p.dim + column] += static_cast<T>(sums[k]);
    }
  }
}

CompatBackwardScratch take_scratch(const CompatProblem& p, ScratchArrays& arrays) {
  const int64_t accumulate = p.dtype == Dtype::kFloat64 ? sizeof(double) : sizeof(float);
  CompatBackwardScratch s{};
  s.exclude = arrays.take<int64_t>(p.num_rows);
  s.coefficient = arrays.take_bytes(p.num_rows * accumulate);
  if (p.options.normalize) s.inverse_norms = arrays.take_bytes(p.num_classes * accumulate);
  if (p.options.label_smoothing > 0) s.smooth = arrays.take<double>(p.dim);
  return s;
}

}  // namespace

int64_t compat_backward_scratch_bytes(const CompatProblem& p) {
  ScratchArrays arrays(nullptr);
  take_scratch(p, arrays);
  return arrays.bytes();
}

CompatBackwardScratch compat_backward_scratch(const CompatProblem& p, void* memory) {
  ScratchArrays arrays(memory);
  return take_scratch(p, arrays);
}

ReadoutProblem compat_readout(const CompatProblem& p, const CompatBackwardScratch& s) {
  return {p.dtype, p.embeddings,  p.prototypes, p.prototypes,    s.exclude,      p.num_rows,
          p.dim,   p.num_classes, p.dim,        p.options.scale, s.inverse_norms};
}

ReadoutBackward compat_readout_backward(const CompatProblem&, const CompatBackward& b,
                                        const CompatBackwardScratch& s) {
  static_assert(kStateLogsumexp == 0);
  return {b.state, s.coefficient, nullptr};
}

void launch_compat_coefficients(const CompatProblem& p, const CompatBackward& b,
                                const CompatBackwardScratch& s, cudaStream_t stream) {
  if (p.options.normalize) {
    launch_inverse_norms(kOp, p.dtype, p.prototypes, p.num_classes, p.dim, s.inverse_norms, stream);
  }
  dispatch_dtype(p.dtype, [&](auto tag) {
    using T = typename Accumulate<typename decltype(tag)::type>::type;
    launch(kOp, coefficient_kernel<T>, {stride_blocks(p.num_rows, kThreads)}, kThreads, stream, p,
           b, s.exclude, static_cast<T*>(s.coefficient));
  });
}

void launch_compat_targets(const CompatProblem& p, const CompatBackward& b,
                           const CompatBackwardScratch& s, void* grad, cudaStream_t stream) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulate<S>::type;
    T* to = static_cast<T*>(grad);
    launch(kOp, target_kernel<S>,
           {stride_blocks(p.num_rows, kTargetThreads / kWarp), divide_up(p.dim, kTargetColumns)},
           kTargetThreads, stream, p, b, s.exclude, to);
    if (s.smooth == nullptr) return;
    launch(kOp, smooth_kernel<S>, {divide_up(p.dim, kWarp)}, kWarp * kSmoothRows, stream, p, b,
           s.exclude, s.smooth);
    launch(kOp, subtract_smooth_kernel<T>, {stride_blocks(p.num_classes, kThreads / kWarp)},
           kThreads, stream, p.num_classes, p.dim, s.smooth, to);
  });
  if (p.options.normalize) launch_readout_unscale(compat_readout(p, s), grad, stream);
}

}  // namespace fcl::ops::cuda
