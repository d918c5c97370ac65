// SPDX-License-Identifier: Apache-2.0
// Norms of the rows that count at unit length: ReadoutProblem::inverse_norms. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/half.h"

namespace fcl::ops::cuda {

// norms [num_rows] = 1 / max(|row|, 1e-12), in the accumulation type.
void launch_inverse_norms(const char* op, Dtype dtype, const void* rows, int64_t num_rows,
                          int64_t dim, void* norms, cudaStream_t stream);

}  // namespace fcl::ops::cuda
