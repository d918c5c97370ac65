// SPDX-License-Identifier: Apache-2.0
// Interface between the torch binding of sparse_readout and its CUDA kernels. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/half.h"

namespace fcl::ops::cuda {

struct SparseReadoutProblem {
  Dtype dtype;
  const void* embeddings;   // [N, D]
  const void* rows;         // [R, D]
  const int64_t* labels;    // [N]
  const int64_t* crow;      // [L + 1]
  const int64_t* col;       // [E]
  const void* log_weights;  // [E] in the accumulation type, or null
  int64_t num_queries, dim, num_rows, num_labels, num_edges;
  double scale;
  bool normalize;  // bank rows count at unit length
};

struct SparseReadoutBackward {
  Dtype dtype;
  const void* embeddings;       // [N, D]
  const void* rows;             // [R, D]
  const void* logsumexp;        // [N], like the rest in the accumulation type
  const void* coefficient;      // [N]
  const int64_t* row_crow;      // [R + 1]
  const int64_t* row_labels;    // [E]
  const void* row_log_weights;  // [E] or null
  const int64_t* query_crow;    // [L + 1]
  const int64_t* query_index;   // [M]
  int64_t num_queries, dim, num_rows, num_labels, num_edges, num_indices;
  double scale;
  bool normalize;  // bank rows count at unit length
};

// logsumexp [N] and mean [N, D] (or null).
void launch_sparse_readout(const SparseReadoutProblem& p, void* logsumexp, void* mean,
                           cudaStream_t stream);

// grad [R, D], overwritten.
void launch_sparse_readout_backward(const SparseReadoutBackward& p, void* grad,
                                    cudaStream_t stream);

}  // namespace fcl::ops::cuda
