// SPDX-License-Identifier: Apache-2.0
// Interface between the torch bindings of the graph ops (csr_transpose, edge_dot, random_walk) and
// their CUDA kernels. Torch-free. Matrices are contiguous, float or double; columns int32 or int64.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace fcl::ops::cuda {

struct CsrGraph {
  const int64_t* crow;  // [N + 1]
  const void* col;      // [E]
  bool wide;            // col is int64
  int64_t num_rows, num_edges, num_columns;
};

// Device assertions that crow runs from 0 to E without decreasing and that columns are in
// [-1, num_columns). One pass over the graph, so that the kernels need no checks of their own.
void launch_check_csr(const char* op, const CsrGraph& graph, cudaStream_t stream);

// Transpose of `graph` (ops/csr_transpose.h), for checked graphs.
size_t csr_transpose_scratch(const CsrGraph& graph);
void launch_csr_transpose(const CsrGraph& graph, void* scratch, int64_t* out_crow, void* out_col,
                          int64_t* edge_order, cudaStream_t stream);

// out_e = factor left[row] . right[col], added to what out holds if accumulate.
void launch_edge_dot(const CsrGraph& graph, bool is_double, const void* left, const void* right,
                     int64_t dim, double factor, bool accumulate, void* out, cudaStream_t stream);

// out_e = values[order_e]
void launch_gather(bool is_double, const void* values, const int64_t* order, int64_t count,
                   void* out, cudaStream_t stream);

// Per row, the sum of the absolute values of its edges, [N] double.
void launch_absolute_row_sums(const CsrGraph& graph, bool is_double, const void* values,
                              double* out, cudaStream_t stream);

// Of |a - b| [N, D] (|a| if b is null): the largest entry, or the largest column sum. NaN if there
// is one, 0 if there is nothing. Waits for the stream.
size_t norm_scratch(int64_t rows, int64_t dim);
double norm_of_difference(bool is_double, bool sum_columns, const void* a, const void* b,
                          int64_t rows, int64_t dim, void* scratch, cudaStream_t stream);

}  // namespace fcl::ops::cuda
