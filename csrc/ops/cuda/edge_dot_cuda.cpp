// SPDX-License-Identifier: Apache-2.0
// edge_dot on CUDA: torch binding. Bad offsets and columns are device assertions.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "ops/cuda/csr_cuda.h"
#include "ops/edge_dot.h"

namespace fcl::ops::cuda {
namespace {

using fcl::cuda::CudaScope;
using torch::stable::contiguous;

Tensor edge_dot(Tensor crow_indices, Tensor col_indices, Tensor left, Tensor right) {
  const EdgeDotShape shape = check_edge_dot(crow_indices, col_indices, left, right);
  const CudaScope scope(crow_indices);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  crow_indices = contiguous(crow_indices);
  col_indices = contiguous(col_indices);
  left = contiguous(torch::stable::to(left, accumulate));
  right = contiguous(torch::stable::to(right, accumulate));
  const CsrGraph graph = csr_graph(crow_indices, col_indices, shape.num_columns);
  launch_check_csr("edge_dot", graph, scope.stream());
  Tensor out = torch::stable::new_empty(left, {shape.csr.num_edges});
  launch_edge_dot(graph, accumulate == ScalarType::Double, left.const_data_ptr(),
                  right.const_data_ptr(), shape.dim, 1.0, false, out.mutable_data_ptr(),
                  scope.stream());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CUDA, m) { m.impl("edge_dot", TORCH_BOX(&edge_dot)); }

}  // namespace fcl::ops::cuda
