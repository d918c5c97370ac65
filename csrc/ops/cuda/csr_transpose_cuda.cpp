// SPDX-License-Identifier: Apache-2.0
// csr_transpose on CUDA: torch binding. Bad offsets and columns are device assertions.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "ops/csr_transpose.h"
#include "ops/cuda/csr_cuda.h"

namespace fcl::ops::cuda {

using fcl::cuda::CudaScope;
using torch::stable::contiguous;

CsrGraph csr_graph(const Tensor& crow, const Tensor& col, int64_t num_columns) {
  return {crow.const_data_ptr<int64_t>(),
          col.const_data_ptr(),
          col.scalar_type() == ScalarType::Long,
          crow.size(0) - 1,
          col.size(0),
          num_columns};
}

TransposedCsr transpose_csr(const Tensor& crow, const Tensor& col, int64_t num_columns,
                            cudaStream_t stream) {
  TransposedCsr out{torch::stable::new_empty(crow, {num_columns + 1}),
                    torch::stable::new_empty(col, {col.size(0)}),
                    torch::stable::new_empty(crow, {col.size(0)})};
  const CsrGraph graph = csr_graph(crow, col, num_columns);
  const Tensor scratch =
      fcl::cuda::device_scratch(crow, static_cast<int64_t>(csr_transpose_scratch(graph)));
  launch_csr_transpose(graph, scratch.mutable_data_ptr(), out.crow.mutable_data_ptr<int64_t>(),
                       out.col.mutable_data_ptr(), out.edge_order.mutable_data_ptr<int64_t>(),
                       stream);
  return out;
}

namespace {

std::tuple<Tensor, Tensor, Tensor> csr_transpose(Tensor crow_indices, Tensor col_indices,
                                                 int64_t num_columns) {
  check_csr_transpose(crow_indices, col_indices, num_columns);
  const CudaScope scope(crow_indices);
  crow_indices = contiguous(crow_indices);
  col_indices = contiguous(col_indices);
  launch_check_csr("csr_transpose", csr_graph(crow_indices, col_indices, num_columns),
                   scope.stream());
  TransposedCsr out = transpose_csr(crow_indices, col_indices, num_columns, scope.stream());
  return {out.crow, out.col, out.edge_order};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CUDA, m) { m.impl("csr_transpose", TORCH_BOX(&csr_transpose)); }

}  // namespace fcl::ops::cuda
