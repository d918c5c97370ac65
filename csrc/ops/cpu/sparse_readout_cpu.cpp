// SPDX-License-Identifier: Apache-2.0
// sparse_readout on the CPU: value checks and threads over queries, or over bank rows.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "common/cpu_isa.h"
#include "common/host.h"
#include "ops/cpu/sparse_readout_kernels.h"
#include "ops/sparse_readout.h"

namespace fcl::ops::cpu {
namespace {

using torch::stable::contiguous;

const SparseReadoutKernels& kernels() {
#ifdef FCL_X86
  return select_by_isa(sparse_readout_portable, sparse_readout_avx2, sparse_readout_avx512);
#else
  return sparse_readout_portable;
#endif
}

// Monotone crow within [0, edges] and columns in range; returns the largest set.
int64_t check_sets(const char* op, const int64_t* crow, int64_t num_labels, const int64_t* col,
                   int64_t num_edges, int64_t num_columns) {
  FCL_REQUIRE(crow[0] >= 0 && crow[num_labels] == num_edges, "fcl::", op,
              ": expected crow_indices from 0 to ", num_edges, ", got ", crow[0], " to ",
              crow[num_labels]);
  int64_t largest = 0;
  for (int64_t l = 0; l < num_labels; ++l) {
    FCL_REQUIRE(crow[l] <= crow[l + 1], "fcl::", op,
                ": expected crow_indices to be non-decreasing, got ", crow[l], " then ",
                crow[l + 1], " at ", l);
    largest = std::max(largest, crow[l + 1] - crow[l]);
  }
  for (int64_t e = 0; e < num_edges; ++e) {
    FCL_REQUIRE(col[e] >= 0 && col[e] < num_columns, "fcl::", op, ": expected col_indices in [0, ",
                num_columns, "), got ", col[e], " at edge ", e);
  }
  return largest;
}

size_t accumulate_bytes(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : 4; }

std::tuple<Tensor, Tensor> sparse_readout(Tensor embeddings, Tensor rows, Tensor labels,
                                          Tensor crow_indices, Tensor col_indices,
                                          std::optional<Tensor> log_weights, double scale,
                                          bool need_mean, bool normalize) {
  const SparseReadoutShape shape =
      check_sparse_readout(embeddings, rows, labels, crow_indices, col_indices, log_weights, scale);
  embeddings = contiguous(embeddings);
  rows = contiguous(rows);
  labels = contiguous(labels);
  crow_indices = contiguous(crow_indices);
  col_indices = contiguous(col_indices);
  if (log_weights.has_value()) log_weights = contiguous(*log_weights);
  const SparseReadoutProblem p{shape.dtype,
                               embeddings.const_data_ptr(),
                               rows.const_data_ptr(),
                               labels.const_data_ptr<int64_t>(),
                               crow_indices.const_data_ptr<int64_t>(),
                               col_indices.const_data_ptr<int64_t>(),
                               log_weights.has_value() ? log_weights->const_data_ptr() : nullptr,
                               shape.dim,
                               scale,
                               normalize};
  const int64_t largest = check_sets("sparse_readout", p.crow, shape.num_labels, p.col,
                                     shape.num_edges, shape.num_rows);
  for (int64_t i = 0; i < shape.num_queries; ++i) {
    FCL_REQUIRE(p.labels[i] < shape.num_labels, "fcl::sparse_readout: expected labels below ",
                shape.num_labels, ", got ", p.labels[i], " in row ", i);
  }
  const ScalarType accumulate = accumulate_type(shape.dtype);
  Tensor logsumexp = torch::stable::new_empty(embeddings, {shape.num_queries}, accumulate);
  Tensor mean = torch::stable::new_empty(embeddings, {need_mean ? shape.num_queries : 0, shape.dim},
                                         accumulate);
  void* lse_data = logsumexp.mutable_data_ptr();
  void* mean_data = need_mean ? mean.mutable_data_ptr() : nullptr;
  parallel_over(shape.num_queries, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch((2 * largest + shape.dim + kSparseReadoutSlack) *
                          accumulate_bytes(shape.dtype));
    for (int64_t i = begin; i < end; ++i) {
      kernels().query(p, i, scratch.get(), lse_data, mean_data);
    }
  });
  return {logsumexp, mean};
}

Tensor sparse_readout_backward_rows(Tensor embeddings, Tensor rows, Tensor logsumexp,
                                    Tensor coefficient, Tensor row_crow, Tensor row_labels,
                                    std::optional<Tensor> row_log_weights, Tensor query_crow,
                                    Tensor query_index, double scale, bool normalize) {
  const char* op = "sparse_readout_backward_rows";
  const SparseReadoutShape shape = check_sparse_readout_backward_rows(
      embeddings, rows, logsumexp, coefficient, row_crow, row_labels, row_log_weights, query_crow,
      query_index, scale);
  for (Tensor* t : {&embeddings, &rows, &logsumexp, &coefficient, &row_crow, &row_labels,
                    &query_crow, &query_index}) {
    *t = contiguous(*t);
  }
  if (row_log_weights.has_value()) row_log_weights = contiguous(*row_log_weights);
  const SparseReadoutBackward p{
      shape.dtype,
      embeddings.const_data_ptr(),
      rows.const_data_ptr(),
      logsumexp.const_data_ptr(),
      coefficient.const_data_ptr(),
      row_crow.const_data_ptr<int64_t>(),
      row_labels.const_data_ptr<int64_t>(),
      row_log_weights.has_value() ? row_log_weights->const_data_ptr() : nullptr,
      query_crow.const_data_ptr<int64_t>(),
      query_index.const_data_ptr<int64_t>(),
      shape.dim,
      scale,
      normalize};
  check_sets(op, p.row_crow, shape.num_rows, p.row_labels, shape.num_edges, shape.num_labels);
  check_sets(op, p.query_crow, shape.num_labels, p.query_index, query_index.size(0),
             shape.num_queries);
  Tensor grad = torch::stable::new_empty(embeddings, {shape.num_rows, shape.dim},
                                         accumulate_type(shape.dtype));
  void* grad_data = grad.mutable_data_ptr();
  parallel_over(shape.num_rows, 64, [&](int64_t begin, int64_t end) {
    const Scratch scratch(shape.dim * accumulate_bytes(shape.dtype));
    for (int64_t row = begin; row < end; ++row) {
      kernels().bank_row(p, row, scratch.get(), grad_data);
    }
  });
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) {
  m.impl("sparse_readout", TORCH_BOX(&sparse_readout));
  m.impl("sparse_readout_backward_rows", TORCH_BOX(&sparse_readout_backward_rows));
}

}  // namespace fcl::ops::cpu
