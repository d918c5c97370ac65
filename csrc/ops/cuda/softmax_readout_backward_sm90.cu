// SPDX-License-Identifier: Apache-2.0
// Gradient of softmax_readout to prototypes on Hopper, where no gradient comes through the mean: a
// block of classes at a time, weights of the embeddings are computed again and stored, and
// embeddings summed by them. Every class is summed by one block, or by a few whose results are
// added in their order. bfloat16 alone: weights may be of any size.
#include "ops/cuda/readout_path.h"
#include "ops/cuda/readout_sm90_kernels.h"

#ifndef FCL_CUDA_SM90

namespace fcl::ops::cuda {
namespace {

bool supports(const ReadoutProblem&, const ReadoutBackward&, ReadoutGradient) { return false; }
int64_t scratch_bytes(const ReadoutProblem&, const ReadoutBackward&, ReadoutGradient,
                      const CudaDevice&) {
  return 0;
}
void backward(const ReadoutProblem&, const ReadoutBackward&, ReadoutGradient, bool, void*, void*,
              const CudaDevice&, cudaStream_t) {}

}  // namespace
}  // namespace fcl::ops::cuda

#else

#include "common/cuda_device.cuh"
#include "common/cuda_scratch.h"
#include "ops/cuda/readout_combine.cuh"
#include "ops/cuda/readout_sm90_launch.cuh"
#include "ops/cuda/readout_sm90_weighers.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

bool supports(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which) {
  return which == ReadoutGradient::kPrototypes && b.grad_mean == nullptr &&
         p.dtype == Dtype::kBfloat16 && readout_sm90_supported(p);
}

Sm90StoredPlan plan_of(const ReadoutProblem& p, const CudaDevice& device) {
  return plan_sm90_stored({p.num_classes, p.num_rows, p.dim, p.dim, true}, device.multiprocessors);
}

struct Scratch {
  uint16_t* weights;  // [class of the block][row of the chunk]
  float* partial;     // [split][C][D], null for a single one
};

Scratch take_scratch(const ReadoutProblem& p, const Sm90StoredPlan& plan, ScratchArrays& arrays) {
  Scratch s{};
  s.weights = arrays.take<uint16_t>(plan.left_rows() * plan.columns());
  if (plan.sum_splits > 1) {
    s.partial = arrays.take<float>(plan.sum_splits * p.num_classes * p.dim);
  }
  return s;
}

int64_t scratch_bytes(const ReadoutProblem& p, const ReadoutBackward&, ReadoutGradient,
                      const CudaDevice& device) {
  ScratchArrays arrays(nullptr);
  take_scratch(p, plan_of(p, device), arrays);
  return arrays.bytes();
}

void backward(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient, bool accumulate,
              void* memory, void* out, const CudaDevice& device, cudaStream_t stream) {
  const char* op = "softmax_readout_backward";
  float* grad = static_cast<float*>(out);
  const int64_t elements = p.num_classes * p.dim;
  if (p.num_rows == 0) {
    if (!accumulate) check_cuda(cudaMemsetAsync(grad, 0, elements * sizeof(float), stream), op);
    return;
  }
  const Sm90StoredPlan plan = plan_of(p, device);
  ScratchArrays arrays(memory);
  const Scratch scratch = take_scratch(p, plan, arrays);
  const bool is_partial = scratch.partial != nullptr;
  const Sm90StoredGradient task{static_cast<const float*>(b.logsumexp),
                                static_cast<const float*>(b.coefficient),
                                p.exclude,
                                static_cast<const float*>(p.inverse_norms),
                                p.num_rows,
                                p.num_classes,
                                static_cast<float>(p.scale * kLog2E)};
  Sm90StoredSums sums = {};
  sums.factor = static_cast<float>(p.scale);
  sums.mean = is_partial ? scratch.partial : grad;
  const Sm90Matrix rows{p.embeddings, p.num_rows, p.dim};
  const Sm90Matrix classes{p.prototypes, p.num_classes, p.dim};
  const Sm90StoredLaunch<BFloat16> launch(op, p.dtype, plan, stream, classes, rows, rows,
                                          scratch.weights);
  plan.run(p.num_classes, p.num_rows, [&](const Sm90Chunk& chunk, int number, int row_tiles) {
    launch.weigh<GradientWeigher<Sm90, BFloat16> >(chunk, row_tiles, task);
    sums.adds = number > 0 || (accumulate && !is_partial);
    launch.sum(chunk, row_tiles, sums);
  });
  if (is_partial)
    sum_splits(op, scratch.partial, plan.sum_splits, elements, accumulate, grad, stream);
}

}  // namespace
}  // namespace fcl::ops::cuda

#endif

namespace fcl::ops::cuda {

const ReadoutBackwardPath kReadoutBackwardSm90 = {
    "sm90",
    [](const CudaDevice& device) { return readout_sm90_built() && device.capability == 90; },
    supports, scratch_bytes, backward};

}  // namespace fcl::ops::cuda
