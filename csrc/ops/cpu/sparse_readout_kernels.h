// SPDX-License-Identifier: Apache-2.0
// Interface between the driver of sparse_readout on the CPU and its per-ISA kernels. Torch-free.
#pragma once

#include <cstdint>

#include "common/half.h"

namespace fcl::ops::cpu {

// The widest vector: kernels may touch this many elements past the last edge.
inline constexpr int64_t kSparseReadoutSlack = 16;

struct SparseReadoutProblem {
  Dtype dtype;
  const void* embeddings;   // [N, D]
  const void* rows;         // [R, D]
  const int64_t* labels;    // [N]
  const int64_t* crow;      // [L + 1]
  const int64_t* col;       // [E]
  const void* log_weights;  // [E] or null, accumulation type
  int64_t dim;
  double scale;
  bool normalize;  // bank rows count at unit length
};

struct SparseReadoutBackward {
  Dtype dtype;
  const void* embeddings;       // [N, D]
  const void* rows;             // [R, D]
  const void* logsumexp;        // [N], accumulation type
  const void* coefficient;      // [N], accumulation type
  const int64_t* row_crow;      // [R + 1]
  const int64_t* row_labels;    // [E]
  const void* row_log_weights;  // [E] or null, accumulation type
  const int64_t* query_crow;    // [L + 1]
  const int64_t* query_index;   // [M]
  int64_t dim;
  double scale;
  bool normalize;  // bank rows count at unit length
};

struct SparseReadoutKernels {
  // One query; scratch holds 2 x its edges + dim + kSparseReadoutSlack elements of the
  // accumulation type. mean may be null.
  void (*query)(const SparseReadoutProblem&, int64_t query, void* scratch, void* logsumexp,
                void* mean);
  // Gradient of one bank row; scratch holds dim elements.
  void (*bank_row)(const SparseReadoutBackward&, int64_t row, void* scratch, void* grad);
};

extern const SparseReadoutKernels sparse_readout_portable;
extern const SparseReadoutKernels sparse_readout_avx2;
extern const SparseReadoutKernels sparse_readout_avx512;

}  // namespace fcl::ops::cpu
