// SPDX-License-Identifier: Apache-2.0
// softmax_readout forward on tensor cores (compute capability 8.0 and up), for any sizes. Products
// are made of bfloat16 or float16 operands as they are, of float32 ones as three of tf32; weights
// are rounded to the operands' type. float64 has no such path.
#include "common/cuda_launch.cuh"
#include "ops/cuda/readout_combine.cuh"
#include "ops/cuda/readout_mma_forward.cuh"
#include "ops/cuda/readout_mma_operands.cuh"
#include "ops/cuda/readout_path.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

template <class Shape, template <class> class Feed, MmaMean kMean>
__global__ void __launch_bounds__(kMmaThreads, 1)
    mma_forward_kernel(MmaTask<typename Shape::S> task, ReadoutProblem p, ForwardPartials out,
                       StoredWeights<typename Shape::S> stored) {
  ForwardWork<Shape, kMean> work(p, out, stored);
  mma_tile_loop<decltype(work), Feed>(task, work);
}

// One way to run the kernel.
template <typename S>
struct Variant {
  void (*kernel)(MmaTask<S>, ReadoutProblem, ForwardPartials, StoredWeights<S>);
  int rights, shared_bytes;
  MmaMean mean;
};

template <class Shape, MmaMean kMean>
Variant<typename Shape::S> streaming() {
  return {mma_forward_kernel<Shape, StreamFeed, kMean>, Shape::kRights,
          StreamFeed<Shape>::kSharedBytes, kMean};
}
template <class Shape>
Variant<typename Shape::S> resident() {
  static_assert(ResidentFeed<Shape>::shared_bytes(1) <= kMmaMostShared);
  return {mma_forward_kernel<Shape, ResidentFeed, MmaMean::kSummed>, Shape::kRights,
          ResidentFeed<Shape>::shared_bytes(1), MmaMean::kSummed};
}

// Split floats need more registers and shared memory.
template <typename S>
constexpr bool kSplits = sizeof(S) == 4;
template <typename S>
using Wide = MmaShape<S, kSplits<S> ? 32 : 64, 256>;

template <typename S>
Variant<S> variant(const ReadoutProblem& p, bool need_mean) {
  if (!need_mean) return streaming<Wide<S>, MmaMean::kNone>();
  if (p.value_dim > Wide<S>::kWidth) return streaming<Wide<S>, MmaMean::kStored>();
  const bool is_shared = p.values == p.prototypes;
  if (is_shared && p.dim <= 128) return resident<MmaShape<S, Wide<S>::kRights, 128>>();
  if constexpr (!kSplits<S>) {
    if (is_shared) return resident<MmaShape<S, 32, 256>>();
  }
  return streaming<Wide<S>, MmaMean::kSummed>();
}

// How a launch is cut, and where its scratch holds what.
template <typename S>
struct Plan {
  Variant<S> variant;
  ReadoutSplit split;
  ChunkPlan chunks;  // of stored weights
  int64_t mean_at, max_at, weights_at, keep_at, bytes;

  Plan(const ReadoutProblem& p, bool need_mean, const CudaDevice& device)
      : variant(cuda::variant<S>(p, need_mean)),
        split(split_waves(p.num_rows, kMmaRows, p.num_classes, variant.rights, 1,
                          device.multiprocessors)),
        chunks(p.num_rows, p.num_classes, variant.rights, sizeof(S), device.multiprocessors) {
    const bool stores = variant.mean == MmaMean::kStored;
    if (stores) split = chunks.split;
    const int64_t partials = split.splits * p.num_rows;
    mean_at = partials * 8;
    max_at = mean_at + (need_mean && split.splits > 1 ? partials * p.value_dim * 4 : 0);
    weights_at = round_up(max_at + partials * 4, 16);
    keep_at = weights_at + (stores ? chunks.weights() * static_cast<int64_t>(sizeof(S)) : 0);
    bytes = keep_at + (stores ? chunks.keeps() * 4 : 0);
  }
};

template <typename S>
void sum_stored(const char* op, const Plan<S>& plan, const ReadoutProblem& p, MmaTask<S> task,
                ForwardPartials out, StoredWeights<S> stored, cudaStream_t stream) {
  const ChunkPlan& chunks = plan.chunks;
  stored.rows = static_cast<int>(chunks.left_rows);
  stored.columns = chunks.chunk;
  stored.tiles = chunks.tiles;
  MmaTask<S> second = task;
  second.left[0] = matrix<S>(stored.at, chunks.split.splits * stored.rows, stored.columns);
  second.sums = true;
  StoredSum sum = {out.mean, p.num_rows, p.value_dim, 1, false};
  chunks.run(p.num_rows, [&](Grid grid, int64_t left_begin, int chunk_begin) {
    for (MmaTask<S>* part : {&task, &second}) {
      part->left_begin = left_begin;
      part->chunk_begin = chunk_begin;
      part->chunk = chunks.chunk;
    }
    out.resumes = sum.adds = chunk_begin > 0;
    launch(op, plan.variant.kernel, grid, Block(kMmaThreads, plan.variant.shared_bytes), stream,
           task, p, out, stored);
    grid.z = divide_up(p.value_dim, Wide<S>::kWidth);
    launch(op, mma_stored_sum_kernel<Wide<S>>, grid,
           Block(kMmaThreads, WeightFeed<Wide<S>>::kSharedBytes), stream, second, stored, sum);
  });
}

template <typename S>
void forward_typed(const ReadoutProblem& p, void* scratch, void* logsumexp, void* mean,
                   const CudaDevice& device, cudaStream_t stream) {
  const char* op = "softmax_readout";
  const bool need_mean = mean != nullptr;
  const Plan<S> plan(p, need_mean, device);
  char* memory = static_cast<char*>(scratch);
  ForwardPartials out = {};
  out.sum = reinterpret_cast<double*>(memory);
  out.max = reinterpret_cast<float*>(memory + plan.max_at);
  out.mean = need_mean && plan.split.splits > 1 ? reinterpret_cast<float*>(memory + plan.mean_at)
                                                : static_cast<float*>(mean);
  out.scale = static_cast<float>(p.scale * kLog2E);
  out.headroom = p.inverse_norms == nullptr ? WeightRange<S>::kHeadroom : 0;
  MmaTask<S> task = {};
  task.left[0] = matrix<S>(p.embeddings, p.num_rows, p.dim);
  task.right[0] = matrix<S>(p.prototypes, p.num_classes, p.dim);
  task.summed = matrix<S>(p.values, p.num_classes, p.value_dim);
  task.num_right = p.num_classes;
  task.per_split = task.chunk = static_cast<int>(plan.split.per_split);
  task.products = 1;
  task.sums = plan.variant.mean == MmaMean::kSummed;
  StoredWeights<S> stored = {};
  if (plan.variant.mean == MmaMean::kStored) {
    stored.at = reinterpret_cast<S*>(memory + plan.weights_at);
    stored.keep = reinterpret_cast<float*>(memory + plan.keep_at);
    sum_stored(op, plan, p, task, out, stored, stream);
  } else {
    launch(op, plan.variant.kernel, plan.split.grid(),
           Block(kMmaThreads, plan.variant.shared_bytes), stream, task, p, out, stored);
  }
  combine_splits<float>(op, p.num_rows, p.value_dim, plan.split.splits, out.max, out.sum,
                        {plan.split.splits, out.max, out.mean}, static_cast<float*>(logsumexp),
                        static_cast<float*>(mean), stream);
}

int64_t forward_scratch(const ReadoutProblem& p, bool need_mean, const CudaDevice& device) {
  int64_t bytes = 0;
  dispatch_mma(p.dtype, [&](auto tag) {
    bytes = Plan<typename decltype(tag)::type>(p, need_mean, device).bytes;
  });
  return bytes;
}

void forward(const ReadoutProblem& p, void* scratch, void* logsumexp, void* mean,
             const CudaDevice& device, cudaStream_t stream) {
  if (p.num_rows == 0) return;
  dispatch_mma(p.dtype, [&](auto tag) {
    forward_typed<typename decltype(tag)::type>(p, scratch, logsumexp, mean, device, stream);
  });
}

}  // namespace

const ReadoutForwardPath kReadoutForwardMma = {
    "mma", [](const CudaDevice& device) { return device.capability >= 80; },
    [](const ReadoutProblem& p) { return has_mma_kernels(p); }, forward_scratch, forward};

}  // namespace fcl::ops::cuda
