// SPDX-License-Identifier: Apache-2.0
// compat_loss on CUDA: what happens to rows before and after the readout over the classes. A warp
// owns a row, in double: beside the classes it costs nothing. Sums have one order, so results are
// the same every time.
#include <limits>

#include "common/cuda_launch.cuh"
#include "common/cuda_scratch.h"
#include "ops/cuda/compat_loss_kernels.h"
#include "ops/cuda/inverse_norms.h"
#include "ops/cuda/row_norm.cuh"

namespace fcl::ops::cuda {
namespace {

constexpr const char* kOp = "compat_loss";
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kFinishThreads = 128;
// Blocks per multiprocessor to leave registers for; without a number the compiler spills.
constexpr int kFinishResident = 6;
constexpr int kSumThreads = 1024;

// Sum over the block, in thread 0.
template <int kCount, typename T>
__device__ __forceinline__ T block_sum(T value) {
  __shared__ T sums[kCount / kWarp];
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = value;
  __syncthreads();  // every warp's sum is written
  T total = 0;
  for (int i = 0; i < kCount / kWarp; ++i) total += sums[i];
  return total;
}

// The first block counts rows, the others prepare them.
template <typename S>
__global__ void __launch_bounds__(kThreads)
    prepare_kernel(CompatProblem p, CompatScratch scratch, S* unit) {
  const int64_t ignored = p.options.ignore_index;
  if (blockIdx.x == 0) {
    int64_t count = 0;
    for (int64_t i = threadIdx.x; i < p.num_rows; i += kThreads) count += p.labels[i] != ignored;
    count = block_sum<kThreads>(count);
    if (threadIdx.x == 0) *scratch.valid = count;
    return;
  }
  const int lane = threadIdx.x % kWarp;
  const int64_t first = (blockIdx.x - 1) * static_cast<int64_t>(kWarps) + threadIdx.x / kWarp;
  for (int64_t i = first; i < p.num_rows; i += (gridDim.x - 1) * static_cast<int64_t>(kWarps)) {
    const int64_t label = p.labels[i];
    assert((label == ignored || (label >= 0 && label < p.num_classes)) &&
           "compat_loss: label is not in [0, C)");
    if (lane == 0) scratch.exclude[i] = label == ignored ? -1 : label;
    if (!p.options.normalize) continue;
    const S* row = static_cast<const S*>(p.embeddings) + i * p.dim;
    const double norm = inverse_root(warp_dot(row, row, p.dim));
    if (lane == 0) scratch.row_norms[i] = norm;
    for (int64_t d = lane; d < p.dim; d += kWarp) {
      store_rounded(unit + i * p.dim + d, load_value<double>(row + d) * norm);
    }
  }
}

// After the readout, rows [N, D]: what it saw.
template <typename S>
__global__ void __launch_bounds__(kFinishThreads, kFinishResident)
    finish_kernel(CompatProblem p, CompatScratch scratch, CompatOutputs out, const S* rows,
                  Margin margin) {
  using T = typename Accumulate<S>::type;
  const CompatLossOptions& o = p.options;
  const int lane = threadIdx.x % kWarp;
  const double row_weight =
      o.reduction == Reduction::kMean
          ? 1 / static_cast<double>(max(*scratch.valid, static_cast<int64_t>(1)))
          : 1;
  for (int64_t i = global_thread() / kWarp; i < p.num_rows; i += grid_threads() / kWarp) {
    const int64_t label = scratch.exclude[i];
    T* grad = out.grad == nullptr ? nullptr : static_cast<T*>(out.grad) + i * p.dim;
    T* state = out.state == nullptr ? nullptr : static_cast<T*>(out.state) + i;
    T* loss = o.reduction == Reduction::kNone ? static_cast<T*>(out.loss) + i : nullptr;
    if (label < 0) {
      for (int64_t d = lane; grad != nullptr && d < p.dim; d += kWarp) grad[d] = 0;
      if (lane != 0) continue;
      for (int k = 0; state != nullptr && k < kStateRows; ++k) state[k * p.num_rows] = 0;
      // With its own logsumexp its probabilities, which the gradient to prototypes multiplies by
      // 0, are numbers.
      if (state != nullptr)
        state[kStateLogsumexp * p.num_rows] = static_cast<const T*>(scratch.logsumexp)[i];
      scratch.losses[i] = 0;
      if (loss != nullptr) *loss = 0;
      continue;
    }
    const S* row = rows + i * p.dim;
    const S* target = static_cast<const S*>(p.prototypes) + label * p.dim;
    const double target_norm = o.normalize ? inverse_root(warp_dot(target, target, p.dim)) : 1;
    const double target_logit = o.scale * target_norm * warp_dot(row, target, p.dim);
    const double smooth_logit =
        p.mean_prototype == nullptr ? 0 : o.scale * warp_dot(row, p.mean_prototype, p.dim);
    const double logsumexp = static_cast<double>(static_cast<const T*>(scratch.logsumexp)[i]);
    const MarginLogit shifted = apply_margin(target_logit, margin);
    const CompatRow result = compat_row(logsumexp, target_logit, shifted, smooth_logit,
                                        o.label_smoothing, static_cast<double>(p.num_classes));
    if (lane == 0) {
      scratch.losses[i] = result.loss;
      if (loss != nullptr) *loss = static_cast<T>(result.loss);
      if (state != nullptr) {
        state[kStateLogsumexp * p.num_rows] = static_cast<T>(logsumexp);
        state[kStateOther * p.num_rows] = static_cast<T>(result.other * row_weight);
        state[kStateTarget * p.num_rows] = static_cast<T>(result.target * row_weight);
        state[kStateWeight * p.num_rows] = static_cast<T>(row_weight);
      }
    }
    if (grad == nullptr) continue;
    const double factor = o.scale * row_weight;
    const double of_target = result.target * target_norm;
    double along = 0;
    for (int64_t d = lane; d < p.dim; d += kWarp) {
      double value =
          result.other * static_cast<double>(grad[d]) + of_target * load_value<double>(target + d);
      if (p.mean_prototype != nullptr) value -= o.label_smoothing * p.mean_prototype[d];
      grad[d] = static_cast<T>(factor * value);
      along = fma(static_cast<double>(grad[d]), load_value<double>(row + d), along);
    }
    if (!o.normalize) continue;
    // Through the norm of the row as given.
    along = warp_sum(along);
    const double norm = scratch.row_norms[i];
    for (int64_t d = lane; d < p.dim; d += kWarp) {
      const double across = static_cast<double>(grad[d]) - along * load_value<double>(row + d);
      grad[d] = static_cast<T>(norm * across);
    }
  }
}

// Losses of the rows -> their sum or mean, by one block. No row that counts: 0 / 0, as torch has
// it.
template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    sum_losses_kernel(int64_t num_rows, const double* losses, const int64_t* valid, bool is_mean,
                      T* loss) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < num_rows; i += kSumThreads) sum += losses[i];
  sum = block_sum<kSumThreads>(sum);
  if (threadIdx.x != 0) return;
  *loss = static_cast<T>(is_mean ? sum / static_cast<double>(*valid) : sum);
}

CompatScratch take_scratch(const CompatProblem& p, ScratchArrays& arrays) {
  const int64_t accumulate = p.dtype == Dtype::kFloat64 ? sizeof(double) : sizeof(float);
  CompatScratch s{};
  s.exclude = arrays.take<int64_t>(p.num_rows);
  s.valid = arrays.take<int64_t>(1);
  s.losses = arrays.take<double>(p.num_rows);
  s.logsumexp = arrays.take_bytes(p.num_rows * accumulate);
  if (p.options.normalize) {
    s.row_norms = arrays.take<double>(p.num_rows);
    s.inverse_norms = arrays.take_bytes(p.num_classes * accumulate);
  }
  return s;
}

}  // namespace

int64_t compat_scratch_bytes(const CompatProblem& p) {
  ScratchArrays arrays(nullptr);
  take_scratch(p, arrays);
  return arrays.bytes();
}

CompatScratch compat_scratch(const CompatProblem& p, void* memory) {
  ScratchArrays arrays(memory);
  return take_scratch(p, arrays);
}

ReadoutProblem compat_readout(const CompatProblem& p, const CompatScratch& s,
                              const CompatOutputs& out) {
  return {p.dtype,        p.options.normalize ? out.unit : p.embeddings,
          p.prototypes,   p.prototypes,
          s.exclude,      p.num_rows,
          p.dim,          p.num_classes,
          p.dim,          p.options.scale,
          s.inverse_norms};
}

void launch_compat_prepare(const CompatProblem& p, const CompatScratch& s, const CompatOutputs& out,
                           cudaStream_t stream) {
  if (p.options.normalize) {
    launch_inverse_norms(kOp, p.dtype, p.prototypes, p.num_classes, p.dim, s.inverse_norms, stream);
  }
  dispatch_dtype(p.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    launch(kOp, prepare_kernel<S>, {1 + stride_blocks(p.num_rows, kWarps)}, kThreads, stream, p, s,
           static_cast<S*>(out.unit));
  });
}

void launch_compat_finish(const CompatProblem& p, const CompatScratch& s, const CompatOutputs& out,
                          cudaStream_t stream) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulate<S>::type;
    const void* rows = p.options.normalize ? out.unit : p.embeddings;
    const double tiny = static_cast<double>(std::numeric_limits<T>::epsilon());
    launch(kOp, finish_kernel<S>, {stride_blocks(p.num_rows, kFinishThreads / kWarp)},
           kFinishThreads, stream, p, s, out, static_cast<const S*>(rows),
           make_margin(p.options, tiny));
    if (p.options.reduction == Reduction::kNone) return;
    launch(kOp, sum_losses_kernel<T>, {1}, kSumThreads, stream, p.num_rows, s.losses, s.valid,
           p.options.reduction == Reduction::kMean, static_cast<T*>(out.loss));
  });
}

}  // namespace fcl::ops::cuda
