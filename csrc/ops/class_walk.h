// SPDX-License-Identifier: Apache-2.0
// class_walk: H = (1 - l) (I - l P)^-1 Y with Y the one-hot labels, rows kept sparse:
//   crow [N + 1], col [E], values [E] of P, labels [N] -> CSR (N, C) of H.
// H_ic is the probability that a walk from node i ends in class c. From H_0 = 0,
//   H_{t+1} = cut(l P H_t + (1 - l) Y),
// where cut takes the smallest entries out of each row, at most `drop` in sum. P and Y are not
// negative, so H_t never exceeds H, and where the rows of P sum to at most 1, row i of H - H_T sums
// to at most l^T + drop / (1 - l).
#pragma once

#include "ops/csr_transpose.h"

namespace fcl::ops {

inline CsrShape check_class_walk(const Tensor& crow_indices, const Tensor& col_indices,
                                 const Tensor& values, const Tensor& labels, int64_t num_classes,
                                 double damping, double drop, int64_t num_steps) {
  const char* op = "class_walk";
  const CsrShape shape = check_csr(op, crow_indices, col_indices);
  check_dtype(op, "values", values, ScalarType::Float);
  check_shape(op, "values", values, "[E]", {shape.num_edges});
  check_same_device(op, "values", values, crow_indices);
  check_dtype(op, "labels", labels, ScalarType::Long);
  check_shape(op, "labels", labels, "[N]", {shape.num_rows});
  check_same_device(op, "labels", labels, crow_indices);
  FCL_REQUIRE(num_classes >= 0 && num_classes <= INT32_MAX, "fcl::", op,
              ": expected num_classes in [0, 2^31), got ", num_classes);
  FCL_REQUIRE(damping > 0 && damping < 1, "fcl::", op,
              ": expected damping in the open interval (0, 1), got ", damping);
  FCL_REQUIRE(drop >= 0 && drop < 1, "fcl::", op, ": expected drop in [0, 1), got ", drop);
  FCL_REQUIRE(num_steps >= 0, "fcl::", op, ": expected num_steps >= 0, got ", num_steps);
  return shape;
}

}  // namespace fcl::ops
