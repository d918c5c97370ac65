// SPDX-License-Identifier: Apache-2.0
// edge_dot: the dot product at every edge of a graph (sampled dense-dense product),
//   out_e = left[row of e] . right[col of e]     left [N, D], right [M, D] -> out [E].
// Padding edges give 0. It is the gradient of a sparse product to its values.
#pragma once

#include "ops/csr_transpose.h"

namespace fcl::ops {

struct EdgeDotShape {
  CsrShape csr;
  Dtype dtype;
  int64_t num_columns, dim;
};

inline EdgeDotShape check_edge_dot(const Tensor& crow_indices, const Tensor& col_indices,
                                   const Tensor& left, const Tensor& right) {
  const char* op = "edge_dot";
  const CsrShape csr = check_csr(op, crow_indices, col_indices);
  const Dtype dtype = check_floating(op, "left", left);
  check_shape(op, "left", left, "[N, D]", {csr.num_rows, -1});
  check_same_device(op, "left", left, crow_indices);
  check_dtype(op, "right", right, left.scalar_type());
  check_shape(op, "right", right, "[M, D]", {-1, left.size(1)});
  check_same_device(op, "right", right, crow_indices);
  return {csr, dtype, right.size(0), left.size(1)};
}

}  // namespace fcl::ops
