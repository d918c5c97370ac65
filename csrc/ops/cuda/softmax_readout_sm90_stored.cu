// SPDX-License-Identifier: Apache-2.0
// softmax_readout forward on Hopper where a block cannot hold the sums of a row: chunk by chunk of
// the classes, weights are stored and rows summed by them (readout_sm90_weights.cuh,
// readout_sm90_sums.cuh).
#ifdef FCL_CUDA_SM90

#include "common/cuda_device.cuh"
#include "common/cuda_scratch.h"
#include "ops/cuda/readout_combine.cuh"
#include "ops/cuda/readout_sm90_kernels.h"
#include "ops/cuda/readout_sm90_launch.cuh"
#include "ops/cuda/readout_sm90_weighers.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

Sm90StoredPlan plan_of(const ReadoutProblem& p, bool need_mean, int multiprocessors) {
  return plan_sm90_stored({p.num_rows, p.num_classes, p.dim, p.value_dim, need_mean},
                          multiprocessors);
}

// Of a chunk and the one before: blocks of a launch read what others of the launch before wrote.
struct Two {
  float* at[2];
  float* after(int number) const { return at[number % 2]; }
  float* before(int number) const { return at[(number + 1) % 2]; }
};

struct Scratch {
  uint16_t* weights;  // [left row][column]
  double* sum;        // [weight split][N]
  Two max;            // [weight split][N]
  Two top;            // [sum split][N]
  float* mean;        // [sum split][N][Dv], null for a single one
  float* bases;       // [tile][left row]
};

Scratch take_scratch(const ReadoutProblem& p, bool need_mean, const Sm90StoredPlan& plan,
                     ScratchArrays& arrays) {
  Scratch s{};
  // First, where memory is aligned best.
  if (need_mean) s.weights = arrays.take<uint16_t>(plan.left_rows() * plan.columns());
  s.sum = arrays.take<double>(plan.weight_splits * p.num_rows);
  for (float*& max : s.max.at) max = arrays.take<float>(plan.weight_splits * p.num_rows);
  if (!need_mean) return s;
  for (float*& top : s.top.at) top = arrays.take<float>(plan.sum_splits * p.num_rows);
  if (plan.sum_splits > 1) {
    s.mean = arrays.take<float>(plan.sum_splits * p.num_rows * p.value_dim);
  }
  s.bases = arrays.take<float>(plan.chunk_tiles * plan.left_rows());
  return s;
}

template <typename S, bool kFactors, bool kStores>
void run(const ReadoutProblem& p, const Sm90StoredPlan& plan, const Scratch& scratch,
         Sm90StoredReadout task, Sm90StoredSums sums, cudaStream_t stream) {
  const Sm90StoredLaunch<S> launch("softmax_readout", p.dtype, plan, stream,
                                   {p.embeddings, p.num_rows, p.dim},
                                   {p.prototypes, p.num_classes, p.dim},
                                   {p.values, p.num_classes, p.value_dim}, scratch.weights);
  plan.run(p.num_rows, p.num_classes, [&](const Sm90Chunk& chunk, int number, int row_tiles) {
    task.readout.max = scratch.max.after(number);
    task.max_before = number == 0 ? nullptr : scratch.max.before(number);
    launch.template weigh<ReadoutWeigher<Sm90, S, kFactors, kStores> >(chunk, row_tiles, task);
    if constexpr (kStores) {
      sums.adds = number > 0;
      sums.top_before = scratch.top.before(number);
      sums.top_after = scratch.top.after(number);
      launch.sum(chunk, row_tiles, sums);
    }
  });
}

template <typename S>
void run(const ReadoutProblem& p, bool need_mean, const Sm90StoredPlan& plan,
         const Scratch& scratch, const Sm90StoredReadout& task, const Sm90StoredSums& sums,
         cudaStream_t stream) {
  const bool factors = p.inverse_norms != nullptr;
  const auto run_with = need_mean ? (factors ? run<S, true, true> : run<S, false, true>)
                                  : (factors ? run<S, true, false> : run<S, false, false>);
  run_with(p, plan, scratch, task, sums, stream);
}

}  // namespace

int64_t readout_sm90_stored_scratch(const ReadoutProblem& p, bool need_mean, int multiprocessors) {
  ScratchArrays arrays(nullptr);
  take_scratch(p, need_mean, plan_of(p, need_mean, multiprocessors), arrays);
  return arrays.bytes();
}

void launch_readout_sm90_stored(const ReadoutProblem& p, void* memory, void* logsumexp, void* mean,
                                int multiprocessors, cudaStream_t stream,
                                std::optional<double> fixed_shift) {
  const bool need_mean = mean != nullptr;
  const Sm90StoredPlan plan = plan_of(p, need_mean, multiprocessors);
  ScratchArrays arrays(memory);
  const Scratch scratch = take_scratch(p, need_mean, plan, arrays);
  Sm90StoredReadout task = {};
  task.readout.exclude = p.exclude;
  task.readout.factors = static_cast<const float*>(p.inverse_norms);
  task.readout.num_rows = p.num_rows;
  task.readout.num_classes = p.num_classes;
  task.readout.scale = static_cast<float>(p.scale * kLog2E);
  // Weights of float16 have not the range for it.
  task.readout.fixed_shift = fixed_shift.has_value() && p.dtype == Dtype::kBfloat16;
  task.readout.shift = static_cast<float>(fixed_shift.value_or(0) * kLog2E);
  task.readout.sum = scratch.sum;
  task.splits = plan.weight_splits;
  task.scale_weights = p.values == p.prototypes;
  task.bases = scratch.bases;
  Sm90StoredSums sums = {};
  sums.factor = 1;
  sums.bases = scratch.bases;
  sums.mean = scratch.mean == nullptr ? static_cast<float*>(mean) : scratch.mean;
  const auto run_with = p.dtype == Dtype::kBfloat16 ? run<BFloat16> : run<Float16>;
  run_with(p, need_mean, plan, scratch, task, sums, stream);
  const int last = static_cast<int>(divide_up(p.num_classes, plan.columns())) - 1;
  combine_splits<float>(
      "softmax_readout", p.num_rows, p.value_dim, plan.weight_splits, scratch.max.after(last),
      scratch.sum, {plan.sum_splits, scratch.top.after(last), sums.mean},
      static_cast<float*>(logsumexp), static_cast<float*>(mean), stream, p.exclude, p.num_classes);
}

}  // namespace fcl::ops::cuda

#endif
