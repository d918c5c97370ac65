// SPDX-License-Identifier: Apache-2.0
// sparse_readout on CUDA: torch binding. Indices out of range are device assertions.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/cuda_stream.h"
#include "ops/cuda/sparse_readout_kernels.h"
#include "ops/sparse_readout.h"

namespace fcl::ops::cuda {
namespace {

using fcl::cuda::contiguous;
using fcl::cuda::CudaScope;
using fcl::cuda::data_or_null;
using torch::stable::contiguous;

std::tuple<Tensor, Tensor> sparse_readout(Tensor embeddings, Tensor rows, Tensor labels,
                                          Tensor crow_indices, Tensor col_indices,
                                          std::optional<Tensor> log_weights, double scale,
                                          bool need_mean, bool normalize) {
  const SparseReadoutShape shape =
      check_sparse_readout(embeddings, rows, labels, crow_indices, col_indices, log_weights, scale);
  const CudaScope scope(embeddings);
  for (Tensor* t : {&embeddings, &rows, &labels, &crow_indices, &col_indices}) {
    *t = contiguous(*t);
  }
  log_weights = contiguous(log_weights);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  Tensor logsumexp = torch::stable::new_empty(embeddings, {shape.num_queries}, accumulate);
  Tensor mean = torch::stable::new_empty(embeddings, {need_mean ? shape.num_queries : 0, shape.dim},
                                         accumulate);
  const SparseReadoutProblem p{shape.dtype,
                               embeddings.const_data_ptr(),
                               rows.const_data_ptr(),
                               labels.const_data_ptr<int64_t>(),
                               crow_indices.const_data_ptr<int64_t>(),
                               col_indices.const_data_ptr<int64_t>(),
                               data_or_null(log_weights),
                               shape.num_queries,
                               shape.dim,
                               shape.num_rows,
                               shape.num_labels,
                               shape.num_edges,
                               scale,
                               normalize};
  launch_sparse_readout(p, logsumexp.mutable_data_ptr(),
                        need_mean ? mean.mutable_data_ptr() : nullptr, scope.stream());
  return {logsumexp, mean};
}

Tensor sparse_readout_backward_rows(Tensor embeddings, Tensor rows, Tensor logsumexp,
                                    Tensor coefficient, Tensor row_crow, Tensor row_labels,
                                    std::optional<Tensor> row_log_weights, Tensor query_crow,
                                    Tensor query_index, double scale, bool normalize) {
  const SparseReadoutShape shape = check_sparse_readout_backward_rows(
      embeddings, rows, logsumexp, coefficient, row_crow, row_labels, row_log_weights, query_crow,
      query_index, scale);
  const CudaScope scope(embeddings);
  for (Tensor* t : {&embeddings, &rows, &logsumexp, &coefficient, &row_crow, &row_labels,
                    &query_crow, &query_index}) {
    *t = contiguous(*t);
  }
  row_log_weights = contiguous(row_log_weights);
  Tensor grad = torch::stable::new_empty(embeddings, {shape.num_rows, shape.dim},
                                         accumulate_type(shape.dtype));
  const SparseReadoutBackward p{shape.dtype,
                                embeddings.const_data_ptr(),
                                rows.const_data_ptr(),
                                logsumexp.const_data_ptr(),
                                coefficient.const_data_ptr(),
                                row_crow.const_data_ptr<int64_t>(),
                                row_labels.const_data_ptr<int64_t>(),
                                data_or_null(row_log_weights),
                                query_crow.const_data_ptr<int64_t>(),
                                query_index.const_data_ptr<int64_t>(),
                                shape.num_queries,
                                shape.dim,
                                shape.num_rows,
                                shape.num_labels,
                                shape.num_edges,
                                query_index.size(0),
                                scale,
                                normalize};
  launch_sparse_readout_backward(p, grad.mutable_data_ptr(), scope.stream());
  return grad;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CUDA, m) {
  m.impl("sparse_readout", TORCH_BOX(&sparse_readout));
  m.impl("sparse_readout_backward_rows", TORCH_BOX(&sparse_readout_backward_rows));
}

}  // namespace fcl::ops::cuda
