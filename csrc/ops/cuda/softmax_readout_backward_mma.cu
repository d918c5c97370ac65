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

template <class Shape, template <class> class Feed, ReadoutGradient kWhich, bool kThroughMean,
          bool kStored>
__global__ void __launch_bounds__(kMmaThreads, 1)
    mma_gradient_kernel(MmaTask<typename Shape::S> task, MmaGradient gradient,
                        StoredWeights<typename Shape::S> stored) {
  GradientWork<Shape, kWhich, kThroughMean, kStored> work(gradient, stored);
  mma_tile_loop<decltype(work), Feed>(task, work);
}

// One way to run a kernel.
template <typename S>
struct Variant {
  void (*kernel)(MmaTask<S>, MmaGradient, StoredWeights<S>);
  int rights, width, shared_bytes;
  bool stores;
};

// Split floats need more registers and shared memory.
template <typename S>
constexpr bool kSplits = sizeof(S) == 4;
template <typename S>
using Wide = MmaShape<S, kSplits<S> ? 32 : 64, 256>;

// Of a sum of `width` columns, by a kernel that streams its operands.
template <class Shape, ReadoutGradient kWhich, bool kThroughMean>
Variant<typename Shape::S> streaming(int64_t width) {
  using S = typename Shape::S;
  if constexpr (!std::is_same_v<S, Float16>) {
    if (width > Shape::kWidth) {
      return {mma_gradient_kernel<Wide<S>, StreamFeed, kWhich, kThroughMean, true>,
              Wide<S>::kRights, Wide<S>::kWidth, StreamFeed<Wide<S>>::kSharedBytes, true};
    }
  }
  return {mma_gradient_kernel<Shape, StreamFeed, kWhich, kThroughMean, false>, Shape::kRights,
          Shape::kWidth, StreamFeed<Shape>::kSharedBytes, false};
}
template <class Shape, ReadoutGradient kWhich, bool kThroughMean>
Variant<typename Shape::S> resident() {
  constexpr int kBytes = ResidentFeed<Shape>::shared_bytes(kThroughMean ? 2 : 1);
  static_assert(kBytes <= kMmaMostShared);
  return {mma_gradient_kernel<Shape, ResidentFeed, kWhich, kThroughMean, false>, Shape::kRights,
          Shape::kWidth, kBytes, false};
}

template <typename S>
Variant<S> variant(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which) {
  using enum ReadoutGradient;
  using TwoProducts = MmaShape<S, 32, kSplits<S> ? 128 : 256>;
  const bool through_mean = b.grad_mean != nullptr;
  if (which == kValues) return streaming<Wide<S>, kValues, false>(p.value_dim);
  if (which == kEmbeddings) {
    if (!through_mean) return streaming<Wide<S>, kEmbeddings, false>(p.dim);
    if constexpr (!kSplits<S>) {
      if (p.values == p.prototypes && p.dim <= 128) {
        return resident<MmaShape<S, 32, 128>, kEmbeddings, true>();
      }
    }
    return streaming<TwoProducts, kEmbeddings, true>(p.dim);
  }
  if (through_mean) return streaming<TwoProducts, kPrototypes, true>(p.dim);
  if (p.dim <= 128) return resident<MmaShape<S, Wide<S>::kRights, 128>, kPrototypes, false>();
  if constexpr (!kSplits<S>) {
    if (p.dim <= 256) return resident<MmaShape<S, 32, 256>, kPrototypes, false>();
  }
  return streaming<Wide<S>, kPrototypes, false>(p.dim);
}

// How a launch is cut, and where its scratch holds what: grad_mean as an operand (half types), the
// scales of its rows, partial gradients, stored weights.
template <typename S>
struct Plan {
  Variant<S> variant;
  int64_t left, width;
  ReadoutSplit split;
  ChunkPlan chunks;  // of stored weights
  int64_t scale_at, partial_at, weights_at, bytes;

  Plan(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which,
       const CudaDevice& device)
      : variant(cuda::variant<S>(p, b, which)),
        left(which == ReadoutGradient::kEmbeddings ? p.num_rows : p.num_classes),
        width(which == ReadoutGradient::kValues ? p.value_dim : p.dim),
        split(split_waves(left, kMmaRows, num_right(p, which), variant.rights,
                          divide_up(width, variant.width), device.multiprocessors)),
        chunks(left, num_right(p, which), variant.rights, sizeof(S), device.multiprocessors) {
    if (variant.stores) split = chunks.split;
    const bool rounds = sizeof(S) == 2 && b.grad_mean != nullptr;
    scale_at = rounds ? round_up(p.num_rows * p.value_dim * 2, 16) : 0;
    partial_at = scale_at + (rounds ? round_up(p.num_rows * 4, 16) : 0);
    weights_at =
        round_up(partial_at + (split.splits > 1 ? split.splits * left * width * 4 : 0), 16);
    bytes = weights_at + (variant.stores ? chunks.weights() * static_cast<int64_t>(sizeof(S)) : 0);
  }

 private:
  static int64_t num_right(const ReadoutProblem& p, ReadoutGradient which) {
    return which == ReadoutGradient::kEmbeddings ? p.num_classes : p.num_rows;
  }
};

template <typename S>
MmaTask<S> make_task(const ReadoutProblem& p, const void* grad_mean, ReadoutGradient which,
                     const Plan<S>& plan) {
  const bool by_row = which == ReadoutGradient::kEmbeddings;
  const bool is_values = which == ReadoutGradient::kValues;
  const Matrix<S> rows = matrix<S>(p.embeddings, p.num_rows, p.dim);
  const Matrix<S> classes = matrix<S>(p.prototypes, p.num_classes, p.dim);
  const Matrix<S> values = matrix<S>(p.values, p.num_classes, p.value_dim);
  const Matrix<S> means = matrix<S>(grad_mean, p.num_rows, p.value_dim);
  MmaTask<S> task = {};
  task.left[0] = by_row ? rows : classes;
  task.right[0] = by_row ? classes : rows;
  task.left[1] = by_row ? means : values;
  task.right[1] = by_row ? values : means;
  task.summed = is_values ? means : task.right[0];
  task.num_right = task.right[0].rows;
  task.per_split = task.chunk = static_cast<int>(plan.split.per_split);
  task.products = !is_values && grad_mean != nullptr ? 2 : 1;
  task.sums = !plan.variant.stores;
  return task;
}

// The gradient by stored weights.
template <typename S>
void sum_stored(const char* op, const Plan<S>& plan, MmaTask<S> task, const MmaGradient& gradient,
                S* memory, cudaStream_t stream) {
  const ChunkPlan& chunks = plan.chunks;
  const StoredWeights<S> stored = {memory, nullptr, static_cast<int>(chunks.left_rows),
                                   chunks.chunk, chunks.tiles};
  MmaTask<S> second = task;
  second.left[0] = matrix<S>(memory, chunks.split.splits * stored.rows, stored.columns);
  second.sums = true;
  StoredSum sum = {gradient.out, plan.left, plan.width, gradient.out_factor, false};
  chunks.run(plan.left, [&](Grid grid, int64_t left_begin, int chunk_begin) {
    for (MmaTask<S>* part : {&task, &second}) {
      part->left_begin = left_begin;
      part->chunk_begin = chunk_begin;
      part->chunk = chunks.chunk;
    }
    sum.adds = chunk_begin > 0 || gradient.accumulate;
    launch(op, plan.variant.kernel, grid, Block(kMmaThreads, plan.variant.shared_bytes), stream,
           task, gradient, stored);
    grid.z = divide_up(plan.width, Wide<S>::kWidth);
    launch(op, mma_stored_sum_kernel<Wide<S>>, grid,
           Block(kMmaThreads, WeightFeed<Wide<S>>::kSharedBytes), stream, second, stored, sum);
  });
}

template <typename S>
void backward_typed(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which,
                    bool accumulate, void* scratch, void* out, const CudaDevice& device,
                    cudaStream_t stream) {
  const char* op = "softmax_readout_backward";
  const Plan<S> plan(p, b, which, device);
  const int64_t elements = plan.left * plan.width;
  const bool splits = plan.split.splits > 1;
  if (which != ReadoutGradient::kEmbeddings && p.num_rows == 0) {
    if (!accumulate) check_cuda(cudaMemsetAsync(out, 0, elements * sizeof(float), stream), op);
    return;
  }
  char* memory = static_cast<char*>(scratch);
  const void* grad_mean = b.grad_mean;
  MmaGradient gradient = {};
  if constexpr (sizeof(S) == 2) {
    if (grad_mean != nullptr) {
      float* scale = reinterpret_cast<float*>(memory + plan.scale_at);
      launch(op, round_rows_kernel<S>, {stride_blocks(p.num_rows, kRoundThreads / kWarp)},
             kRoundThreads, stream, static_cast<const float*>(b.grad_mean), p.num_rows, p.value_dim,
             reinterpret_cast<S*>(memory), scale);
      gradient.mean_scale = scale;
      grad_mean = memory;
    }
  }
  float* partial = reinterpret_cast<float*>(memory + plan.partial_at);
  gradient.logsumexp = static_cast<const float*>(b.logsumexp);
  gradient.coefficient = static_cast<const float*>(b.coefficient);
  gradient.exclude = p.exclude;
  gradient.inverse_norms = static_cast<const float*>(p.inverse_norms);
  gradient.num_rows = p.num_rows;
  gradient.num_classes = p.num_classes;
  gradient.shared_values = p.values == p.prototypes;
  gradient.accumulate = accumulate && !splits;
  gradient.scale = static_cast<float>(p.scale * kLog2E);
  gradient.out_factor = which == ReadoutGradient::kValues ? 1.0f : static_cast<float>(p.scale);
  gradient.out = splits ? partial : static_cast<float*>(out);
  gradient.width = plan.width;
  const MmaTask<S> task = make_task<S>(p, grad_mean, which, plan);
  if (plan.variant.stores) {
    sum_stored(op, plan, task, gradient, reinterpret_cast<S*>(memory + plan.weights_at), stream);
  } else {
    launch(op, plan.variant.kernel, plan.split.grid(),
           Block(kMmaThreads, plan.variant.shared_bytes), stream, task, gradient,
           StoredWeights<S>{});
  }
  if (!splits) return;
  sum_splits(op, partial, plan.split.splits, elements, accumulate, static_cast<float*>(out),
             stream);
}

int64_t backward_scratch(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which,
                         const CudaDevice& device) {
  int64_t bytes = 0;
  dispatch_mma(p.dtype, [&](auto tag) {
    bytes = Plan<typename decltype(tag)::type>(p, b, which, device).bytes;
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
      return has_mma_kernels(p);
    },
    backward_scratch, backward};

}  // namespace fcl::ops::cuda
