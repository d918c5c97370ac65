// SPDX-License-Identifier: Apache-2.0
// random_walk_union on CUDA: torch binding. Offsets or columns that leave what they point into are
// device assertions.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "ops/cuda/walk_loop.h"
#include "ops/cuda/walk_union.h"
#include "ops/walk_windows.h"

namespace fcl::ops::cuda {
namespace {

using fcl::cuda::CudaScope;
using torch::stable::contiguous;

Tensor random_walk_union(Tensor window_crow, Tensor window_col, Tensor chunk_crow, Tensor positions,
                         Tensor values, Tensor features, double damping, int64_t num_steps,
                         int64_t num_bf16_steps) {
  const WalkWindows t{contiguous(window_crow), contiguous(window_col), contiguous(chunk_crow),
                      contiguous(positions), contiguous(values)};
  const WalkShape shape = check_random_walk_union(t, features, damping, num_steps, num_bf16_steps);
  const CudaScope scope(window_crow);
  const WalkUnion windows{t.window_crow.const_data_ptr<int64_t>(),
                          t.window_col.const_data_ptr<int32_t>(),
                          t.chunk_crow.const_data_ptr<int64_t>(),
                          t.positions.const_data_ptr<uint8_t>(),
                          t.values.const_data_ptr<float>(),
                          shape.csr.num_rows,
                          t.window_col.size(0),
                          shape.csr.num_edges};
  launch_check_windows(windows, scope.stream());
  const Tensor restart = contiguous(features);
  if (num_steps == 0) return torch::stable::clone(restart);
  // Tensor cores take float and bfloat16 here; with bfloat16 iterates the first is rounded too.
  Tensor start = restart;
  if (num_bf16_steps > 0) {
    start = torch::stable::to(restart, ScalarType::BFloat16);
  } else if (shape.dtype == Dtype::kFloat16) {
    start = torch::stable::to(restart, ScalarType::Float);
  }
  // Whole rows: a window reads each row of the state once, and its weights once per panel.
  return walk_loop({start, restart, damping, num_steps, num_bf16_steps, features.scalar_type()},
                   false, walk_cache_bytes("random_walk_union"),
                   [&](const WalkStep& step) { launch_walk_union(windows, step, scope.stream()); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CUDA, m) {
  m.impl("random_walk_union", TORCH_BOX(&random_walk_union));
}

}  // namespace fcl::ops::cuda
