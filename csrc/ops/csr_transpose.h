// SPDX-License-Identifier: Apache-2.0
// csr_transpose: CSR (N, M) -> CSR (M, N) by a stable counting sort, so the result is unique:
//   crow [N + 1], col [E] -> crow [M + 1], col [E] (rows of the input), edge_order [E],
// where edge e of the transpose was edge edge_order[e]. Padding edges (column -1) stay padding and
// come last, at the end of the last row: E does not change, so no shape depends on data.
// Also the shape checks of every op that takes a graph in CSR.
#pragma once

#include "common/checks.h"

namespace fcl::ops {

struct CsrShape {
  int64_t num_rows, num_edges;
  bool wide;  // columns are int64, else int32
};

// crow int64 [N + 1], col int32 or int64 [E], on one device. Entries are checked on the CPU only.
inline CsrShape check_csr(const char* op, const Tensor& crow_indices, const Tensor& col_indices) {
  check_dtype(op, "crow_indices", crow_indices, ScalarType::Long);
  FCL_REQUIRE(crow_indices.dim() == 1 && crow_indices.size(0) > 0, "fcl::", op,
              ": expected crow_indices of shape [N + 1], got ", shape_string(crow_indices));
  const ScalarType index = col_indices.scalar_type();
  FCL_REQUIRE(index == ScalarType::Int || index == ScalarType::Long, "fcl::", op,
              ": expected col_indices of dtype int32 or int64, got ", dtype_name(index));
  check_shape(op, "col_indices", col_indices, "[E]", {-1});
  check_same_device(op, "col_indices", col_indices, crow_indices);
  return {crow_indices.size(0) - 1, col_indices.size(0), index == ScalarType::Long};
}

inline CsrShape check_csr_transpose(const Tensor& crow_indices, const Tensor& col_indices,
                                    int64_t num_columns) {
  const char* op = "csr_transpose";
  const CsrShape shape = check_csr(op, crow_indices, col_indices);
  FCL_REQUIRE(num_columns >= 0, "fcl::", op, ": expected num_columns >= 0, got ", num_columns);
  FCL_REQUIRE(num_columns > 0 || shape.num_edges == 0, "fcl::", op,
              ": expected no edges in a matrix without columns, got ", shape.num_edges);
  FCL_REQUIRE(shape.wide || shape.num_rows <= INT32_MAX, "fcl::", op,
              ": expected at most 2^31 - 1 rows with int32 col_indices, got ", shape.num_rows);
  return shape;
}

}  // namespace fcl::ops
