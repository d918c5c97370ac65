// SPDX-License-Identifier: Apache-2.0
// What the torch bindings of the graph ops share.
#pragma once

#include "common/cuda_stream.h"
#include "ops/cuda/graph_kernels.h"

namespace fcl::ops::cuda {

// Contiguous crow and col as the kernels see them.
CsrGraph csr_graph(const Tensor& crow, const Tensor& col, int64_t num_columns);

struct TransposedCsr {
  Tensor crow, col, edge_order;
};
// Of a graph that launch_check_csr has seen.
TransposedCsr transpose_csr(const Tensor& crow, const Tensor& col, int64_t num_columns,
                            cudaStream_t stream);

}  // namespace fcl::ops::cuda
