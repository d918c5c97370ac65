// SPDX-License-Identifier: Apache-2.0
// edge_dot on the CPU: threads over ranges of rows with equal numbers of edges.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "common/cpu_isa.h"
#include "common/host.h"
#include "ops/cpu/csr_host.h"
#include "ops/cpu/edge_dot_kernels.h"
#include "ops/edge_dot.h"

namespace fcl::ops::cpu {
namespace {

const EdgeDotKernels& kernels() {
#ifdef FCL_X86
  return select_by_isa(edge_dot_portable, edge_dot_avx2, edge_dot_avx512);
#else
  return edge_dot_portable;
#endif
}

Tensor edge_dot(Tensor crow_indices, Tensor col_indices, Tensor left, Tensor right) {
  const EdgeDotShape shape = check_edge_dot(crow_indices, col_indices, left, right);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  crow_indices = torch::stable::contiguous(crow_indices);
  col_indices = torch::stable::contiguous(col_indices);
  left = torch::stable::contiguous(torch::stable::to(left, accumulate));
  right = torch::stable::contiguous(torch::stable::to(right, accumulate));
  check_csr_entries("edge_dot", crow_indices, col_indices, shape.num_columns);
  const Tensor out = torch::stable::new_empty(left, {shape.csr.num_edges});
  edge_dots(crow_indices, col_indices, left, right, 1.0, false, out);
  return out;
}

}  // namespace

void edge_dots(const Tensor& crow, const Tensor& col, const Tensor& left, const Tensor& right,
               double factor, bool accumulate, const Tensor& out) {
  const bool is_double = left.scalar_type() == ScalarType::Double;
  const EdgeDotProblem p{is_double ? Dtype::kFloat64 : Dtype::kFloat32,
                         crow.const_data_ptr<int64_t>(),
                         col.const_data_ptr(),
                         col.scalar_type() == ScalarType::Long,
                         left.const_data_ptr(),
                         right.const_data_ptr(),
                         left.size(1),
                         factor,
                         accumulate,
                         out.mutable_data_ptr()};
  const std::vector<int64_t> bounds = balanced_rows(crow);
  parallel_over(static_cast<int64_t>(bounds.size()) - 1, 1,
                [&](int64_t begin, int64_t end) { kernels().rows(p, bounds[begin], bounds[end]); });
}

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) { m.impl("edge_dot", TORCH_BOX(&edge_dot)); }

}  // namespace fcl::ops::cpu
