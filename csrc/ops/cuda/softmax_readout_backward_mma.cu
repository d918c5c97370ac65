// SPDX-License-Identifier: Apache-2.0
// Gradients of softmax_readout on tensor cores (compute capability 8.0 and up): products are
// computed again, tile by tile, and each gradient's rows stay where they are summed. Where inputs
// are half types, grad_mean is rounded to them, each row times a power of two.
#include "common/cuda_launch.cuh"
#include "ops/cuda/readout_combine.cuh"
#include "ops/cuda/readout_mma_gradient.cuh"
#include "ops/cuda/readout_mma_operands.cuh"
#include "ops/cuda/readout_path.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

constexpr int kRoundThreads = 128;

// A warp per row: to = from / scale in S, with scale a power of two that brings the largest entry
// near 1.
template <typename S>
__global__ void __launch_bounds__(kRoundThreads)
    round_rows_kernel(const float* from, int64_t rows, int64_t columns, S* to, float* scale) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = global_thread() / kWarp; i < rows; i += grid_threads() / kWarp) {
    float top = 0;
    for (int64_t d = lane; d < columns; d += kWarp) top = fmaxf(top, fabsf(from[i * columns + d]));
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, offset));
    }
    int exponent = static_cast<int>(__float_as_uint(top) >> 23) - 127;
    if (exponent < -126 || exponent > 126) exponent = 0;  // zero, infinite and NaN stay so
    const float down = __uint_as_float(static_cast<uint32_t>(127 - exponent) << 23);
    for (int64_t d = lane; d < columns; d += kWarp) {
      to[i * columns + d].bits =
          static_cast<uint16_t>(pack_pair<S>(from[i * columns + d] * down, 0.0f));
    }
    if (lane == 0) scale[i] = __uint_as_float(static_cast<uint32_t>(127 + exponent) << 23);
  }
}

template <class Shape, template <class> class Feed, ReadoutGradient kWhich, bool kThroughMean>
__global__ void __launch_bounds__(kMmaThreads, 1)
    mma_gradient_kernel(MmaTask<typename Shape::S> task, MmaGradient gradient) {
  GradientWork<Shape, kWhich, kThroughMean> work(gradient);
  mma_tile_loop<decltype(work), Feed>(task, work);
}

// One way to run a kernel.
template <typename S>
struct Variant {
  void (*kernel)(MmaTask<S>, MmaGradient);
  int rights, width, shared_bytes;
};

template <class Shape, ReadoutGradient kWhich, bool kThroughMean>
Variant<typename Shape::S> streaming() {
  return {mma_gradient_kernel<Shape, StreamFeed, kWhich, kThroughMean>, Shape::kRights,
          Shape::kWidth, StreamFeed<Shape>::kSharedBytes};
}
template <class Shape, ReadoutGradient kWhich, bool kThroughMean>
Variant<typename Shape::S> resident() {
  constexpr int kBytes = ResidentFeed<Shape>::shared_bytes(kThroughMean ? 2 : 1);
  static_assert(kBytes <= kMmaMostShared);
  return {mma_gradient_kernel<Shape, ResidentFeed, kWhich, kThroughMean>, Shape::kRights,
          Shape::kWidth, kBytes};
}

template <typename S>
Variant<S> variant(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which) {
  using enum ReadoutGradient;
  constexpr bool kSplit = sizeof(S) == 4;  // split floats need more registers and shared memory
  constexpr int kRights = kSplit ? 32 : 64;
  using Wide = MmaShape<S, kRights, 256>;
  using Narrow = MmaShape<S, kRights, 128>;
  using TwoProducts = MmaShape<S, 32, kSplit ? 128 : 256>;
  const bool through_mean = b.grad_mean != nullptr;
  if (which == kValues) return streaming<Wide, kValues, false>();
  if (which == kEmbeddings) {
    if (!through_mean) return streaming<Wide, kEmbeddings, false>();
    if constexpr (!kSplit) {
      if (p.values == p.prototypes && p.dim <= 128) {
        return resident<MmaShape<S, 32, 128>, kEmbeddings, true>();
      }
    }
    return streaming<TwoProducts, kEmbeddings, true>();
  }
  if (through_mean) return streaming<TwoProducts, kPrototypes, true>();
  if (p.dim <= 128) return resident<Narrow, kPrototypes, false>();
  if constexpr (!kSplit) {
    if (p.dim <= 256) return resident<MmaShape<S, 32, 256>, kPrototypes, false>();
  }
  return streaming<Wide, kPrototypes, false>();
}

// How a launch is cut, and what its scratch holds: grad_mean as an operand (half types), the scales
// of its rows, partial gradients.
template <typename S>
struct Plan {
  Variant<S> variant;
  ReadoutSplit split;
  int64_t elements;  // of the gradient
  int64_t operand_bytes, scale_bytes, partial_bytes;

  Plan(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which,
       const CudaDevice& device)
      : variant(cuda::variant<S>(p, b, which)) {
    const bool by_row = which == ReadoutGradient::kEmbeddings;
    const int64_t left = by_row ? p.num_rows : p.num_classes;
    const int64_t width = which == ReadoutGradient::kValues ? p.value_dim : p.dim;
    split = split_waves(left, kMmaRows, by_row ? p.num_classes : p.num_rows, variant.rights,
                        divide_up(width, variant.width), device.multiprocessors);
    elements = left * width;
    const auto aligned = [](int64_t bytes) { return divide_up(bytes, 16) * 16; };
    const bool rounds = sizeof(S) == 2 && b.grad_mean != nullptr;
    operand_bytes = rounds ? aligned(p.num_rows * p.value_dim * 2) : 0;
    scale_bytes = rounds ? aligned(p.num_rows * 4) : 0;
    partial_bytes = split.splits > 1 ? split.splits * elements * 4 : 0;
  }
};

template <typename S>
void backward_typed(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which,
                    bool accumulate, void* scratch, void* out, const CudaDevice& device,
                    cudaStream_t stream) {
  const char* op = "softmax_readout_backward";
  const Plan<S> plan(p, b, which, device);
  const bool by_row = which == ReadoutGradient::kEmbeddings;
  const bool splits = plan.split.splits > 1;
  if (!by_row && p.num_rows == 0) {
    if (!accumulate) check_cuda(cudaMemsetAsync(out, 0, plan.elements * sizeof(float), stream), op);
    return;
  }
  char* memory = static_cast<char*>(scratch);
  const void* operand = b.grad_mean;
  float* scale = nullptr;
  if constexpr (sizeof(S) == 2) {
    if (b.grad_mean != nullptr) {
      operand = memory;
      scale = reinterpret_cast<float*>(memory + plan.operand_bytes);
      launch(op, round_rows_kernel<S>, {stride_blocks(p.num_rows, kRoundThreads / kWarp)},
             kRoundThreads, stream, static_cast<const float*>(b.grad_mean), p.num_rows, p.value_dim,
             reinterpret_cast<S*>(memory), scale);
    }
  }
  float* partial = reinterpret_cast<float*>(memory + plan.operand_bytes + plan.scale_bytes);
  const Matrix<S> rows = matrix<S>(p.embeddings, p.num_rows, p.dim);
  const Matrix<S> classes = matrix<S>(p.prototypes, p.num_classes, p.dim);
  const Matrix<S> values = matrix<S>(p.values, p.num_classes, p.value_dim);
  const Matrix<S> grad_mean = matrix<S>(operand, p.num_rows, p.value_dim);
  MmaTask<S> task = {};
  task.left[0] = by_row ? rows : classes;
  task.right[0] = by_row ? classes : rows;
  task.left[1] = by_row ? grad_mean : values;
  task.right[1] = by_row ? values : grad_mean;
  task.summed = which == ReadoutGradient::kValues ? grad_mean : task.right[0];
  task.num_right = task.right[0].rows;
  task.per_split = static_cast<int>(plan.split.per_split);
  task.products = which != ReadoutGradient::kValues && b.grad_mean != nullptr ? 2 : 1;
  task.sums = true;
  MmaGradient gradient = {};
  gradient.logsumexp = static_cast<const float*>(b.logsumexp);
  gradient.coefficient = static_cast<const float*>(b.coefficient);
  gradient.mean_scale = scale;
  gradient.exclude = p.exclude;
  gradient.inverse_norms = static_cast<const float*>(p.inverse_norms);
  gradient.num_rows = p.num_rows;
  gradient.num_classes = p.num_classes;
  gradient.shared_values = p.values == p.prototypes;
  gradient.accumulate = accumulate && !splits;
  gradient.scale = static_cast<float>(p.scale * kLog2E);
  gradient.out_factor = which == ReadoutGradient::kValues ? 1.0f : static_cast<float>(p.scale);
  gradient.out = splits ? partial : static_cast<float*>(out);
  gradient.width = task.summed.columns;
  launch(op, plan.variant.kernel, plan.split.grid(), Block(kMmaThreads, plan.variant.shared_bytes),
         stream, task, gradient);
  if (!splits) return;
  sum_splits(op, partial, plan.split.splits, plan.elements, accumulate, static_cast<float*>(out),
             stream);
}

int64_t backward_scratch(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which,
                         const CudaDevice& device) {
  int64_t bytes = 0;
  dispatch_mma(p.dtype, [&](auto tag) {
    const Plan<typename decltype(tag)::type> plan(p, b, which, device);
    bytes = plan.operand_bytes + plan.scale_bytes + plan.partial_bytes;
  });
  return bytes;
}

void backward(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which,
              bool accumulate, void* scratch, void* out, const CudaDevice& device,
              cudaStream_t stream) {
  dispatch_mma(p.dtype, [&](auto tag) {
    backward_typed<typename decltype(tag)::type>(p, b, which, accumulate, scratch, out, device,
                                                 stream);
  });
}

}  // namespace

const ReadoutBackwardPath kReadoutBackwardMma = {
    "mma", [](const CudaDevice& device) { return device.capability >= 80; },
    [](const ReadoutProblem& p, const ReadoutBackward&, ReadoutGradient) {
      return p.dtype != Dtype::kFloat64;
    },
    backward_scratch, backward};

}  // namespace fcl::ops::cuda
