// SPDX-License-Identifier: Apache-2.0
// Steps of random_walk on CUDA, and the sets of kernels for them (common/cuda_path.h: how one is
// chosen). `simt` takes contiguous float or double; `gather` everything. docs/walk_cuda.md has what
// they do and what they should take.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>

#include "common/cuda_path.h"
#include "common/half.h"
#include "ops/cuda/graph_kernels.h"

namespace fcl::ops::cuda {

// Row i has its columns from data + i * stride on. `columns` of them are memory of this matrix, at
// least as many as take part in a step: the others may be read, or written, and count nothing.
struct WalkRows {
  void* data;
  Dtype dtype;
  int64_t stride, columns;
};

// out = damping P state + (1 - damping) restart; no second term if restart.data is null. Sums are
// float, or double where the state is. values: float, or double.
struct WalkStep {
  CsrGraph graph;
  const void* values;
  WalkRows state, restart, out;
  int64_t dim;
  double damping;
  bool streams;  // out is too large to stay in the second-level cache
};

struct WalkPath {
  const char* name;
  bool (*runs_on)(const fcl::cuda::CudaDevice&);
  bool (*supports)(int64_t dim);
  void (*launch)(const WalkStep&, cudaStream_t);
  // Takes iterates of any dtype and columns of a wider matrix, and writes every dtype.
  bool is_general;
};

extern const WalkPath kWalkGather;
extern const WalkPath kWalkSimt;

// The path for steps over `dim` columns. `op` is for messages.
const WalkPath& walk_path(const char* op, int64_t dim);

// Bytes of the second-level cache that iterates may fill: FCL_CUDA_CACHE_BYTES if set, otherwise
// three fifths of what the device has, because edges, the restart and results stream by.
int64_t walk_cache_bytes(const char* op);

// Columns that a walk of [num_rows, dim] takes at a time: a panel that stays in `cache_bytes` for
// all steps, or dim where whole rows are better.
int64_t walk_panel_columns(int64_t num_rows, int64_t dim, int64_t element_bytes, int64_t num_steps,
                           int64_t cache_bytes);

// False if op, "random_walk" or "random_walk_union", has no such path.
bool set_walk_verified(std::string_view op, std::string_view path, bool is_verified);

}  // namespace fcl::ops::cuda
