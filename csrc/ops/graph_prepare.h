// SPDX-License-Identifier: Apache-2.0
// graph_prepare: renumbers the nodes of a graph so that rows that gather the same columns stand
// together, and sorts columns inside rows:
//   crow [N + 1], col [E], order [N] or none -> order [N], crow [N + 1], col [E], edge_order [E],
// where new node i was node order[i] and new edge e was edge edge_order[e]. Padding edges
// (column -1) stay padding and come last in their row. Without an order the kernel finds one.
#pragma once

#include <optional>

#include "ops/csr_transpose.h"

namespace fcl::ops {

inline CsrShape check_graph_prepare(const Tensor& crow_indices, const Tensor& col_indices,
                                    const std::optional<Tensor>& order) {
  const char* op = "graph_prepare";
  const CsrShape shape = check_csr(op, crow_indices, col_indices);
  FCL_REQUIRE(shape.num_rows <= INT32_MAX, "fcl::", op, ": expected at most 2^31 - 1 nodes, got ",
              shape.num_rows);
  if (order.has_value()) {
    check_dtype(op, "order", *order, ScalarType::Long);
    check_shape(op, "order", *order, "[N]", {shape.num_rows});
    check_same_device(op, "order", *order, crow_indices);
  }
  return shape;
}

}  // namespace fcl::ops
