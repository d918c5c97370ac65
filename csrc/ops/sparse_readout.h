// SPDX-License-Identifier: Apache-2.0
// sparse_readout: the softmax readout of row i over the set of bank rows that its label y_i names,
//   lse_i  = log sum_{e in set(y_i)} exp(s x_i . F_{col_e} + log w_e)      [N]
//   mean_i = sum_e softmax_e(...) F_{col_e}                                [N, D]
// with the sets as CSR over labels (crow [L + 1], col [E], log weights [E] or none = 0). It gives
// the positive part of an instance-level pseudo classifier, hard (the rows of one's class) or
// weighted by a random walk. Gradients: dx = s g mean; the bank's is computed row by row from the
// transposed CSR, so no two threads ever add to one row.
#pragma once

#include <optional>

#include "common/checks.h"

namespace fcl::ops {

struct SparseReadoutShape {
  Dtype dtype;
  int64_t num_queries, dim, num_rows, num_labels, num_edges;
};

inline void check_int64_vector(const char* op, const char* name, const Tensor& t,
                               const char* letters, int64_t size, const Tensor& reference) {
  check_dtype(op, name, t, ScalarType::Long);
  check_shape(op, name, t, letters, {size});
  check_same_device(op, name, t, reference);
}

inline SparseReadoutShape check_sparse_bank(const char* op, const Tensor& embeddings,
                                            const Tensor& rows, double scale) {
  const Dtype dtype = check_floating(op, "embeddings", embeddings);
  check_shape(op, "embeddings", embeddings, "[N, D]", {-1, -1});
  check_dtype(op, "rows", rows, embeddings.scalar_type());
  check_shape(op, "rows", rows, "[R, D]", {-1, embeddings.size(1)});
  check_same_device(op, "rows", rows, embeddings);
  check_scale(op, scale);
  return {dtype, embeddings.size(0), embeddings.size(1), rows.size(0), 0, 0};
}

inline SparseReadoutShape check_sparse_readout(const Tensor& embeddings, const Tensor& rows,
                                               const Tensor& labels, const Tensor& crow_indices,
                                               const Tensor& col_indices,
                                               const std::optional<Tensor>& log_weights,
                                               double scale) {
  const char* op = "sparse_readout";
  SparseReadoutShape shape = check_sparse_bank(op, embeddings, rows, scale);
  check_int64_vector(op, "labels", labels, "[N]", shape.num_queries, embeddings);
  check_int64_vector(op, "crow_indices", crow_indices, "[L + 1]", -1, embeddings);
  check_int64_vector(op, "col_indices", col_indices, "[E]", -1, embeddings);
  FCL_REQUIRE(crow_indices.size(0) > 0, "fcl::", op,
              ": expected crow_indices of shape [L + 1], got [0]");
  shape.num_labels = crow_indices.size(0) - 1;
  shape.num_edges = col_indices.size(0);
  if (log_weights.has_value()) {
    check_dtype(op, "log_weights", *log_weights, accumulate_type(shape.dtype));
    check_shape(op, "log_weights", *log_weights, "[E]", {shape.num_edges});
    check_same_device(op, "log_weights", *log_weights, embeddings);
  }
  return shape;
}

inline SparseReadoutShape check_sparse_readout_backward_rows(
    const Tensor& embeddings, const Tensor& rows, const Tensor& logsumexp,
    const Tensor& coefficient, const Tensor& row_crow, const Tensor& row_labels,
    const std::optional<Tensor>& row_log_weights, const Tensor& query_crow,
    const Tensor& query_index, double scale) {
  const char* op = "sparse_readout_backward_rows";
  SparseReadoutShape shape = check_sparse_bank(op, embeddings, rows, scale);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  check_dtype(op, "logsumexp", logsumexp, accumulate);
  check_shape(op, "logsumexp", logsumexp, "[N]", {shape.num_queries});
  check_same_device(op, "logsumexp", logsumexp, embeddings);
  check_dtype(op, "coefficient", coefficient, accumulate);
  check_shape(op, "coefficient", coefficient, "[N]", {shape.num_queries});
  check_same_device(op, "coefficient", coefficient, embeddings);
  check_int64_vector(op, "row_crow", row_crow, "[R + 1]", shape.num_rows + 1, embeddings);
  check_int64_vector(op, "row_labels", row_labels, "[E]", -1, embeddings);
  check_int64_vector(op, "query_crow", query_crow, "[L + 1]", -1, embeddings);
  check_int64_vector(op, "query_index", query_index, "[M]", -1, embeddings);
  FCL_REQUIRE(query_crow.size(0) > 0, "fcl::", op,
              ": expected query_crow of shape [L + 1], got [0]");
  shape.num_labels = query_crow.size(0) - 1;
  shape.num_edges = row_labels.size(0);
  if (row_log_weights.has_value()) {
    check_dtype(op, "row_log_weights", *row_log_weights, accumulate);
    check_shape(op, "row_log_weights", *row_log_weights, "[E]", {shape.num_edges});
    check_same_device(op, "row_log_weights", *row_log_weights, embeddings);
  }
  return shape;
}

}  // namespace fcl::ops
