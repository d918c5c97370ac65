// SPDX-License-Identifier: Apache-2.0
// Interface between the driver of random_walk on the CPU and its per-ISA kernels. Torch-free.
#pragma once

#include <cstdint>

#include "common/half.h"

namespace fcl::ops::cpu {

// One step: out = damping P state + (1 - damping) restart.
struct WalkStep {
  Dtype dtype;          // kFloat32 or kFloat64, of all arrays below
  const int64_t* crow;  // [N + 1]
  const void* col;      // [E]
  bool wide;            // col is int64, else int32
  const void* values;   // [E]
  const void* state;    // [N, dim]
  const void* restart;  // [N, dim] or null: no restart
  void* out;            // [N, dim]
  int64_t dim;
  double damping;
};

struct RandomWalkKernels {
  // Rows [begin, end) of out.
  void (*step)(const WalkStep&, int64_t begin, int64_t end);
  // The same with a state of bfloat16 and an out of bfloat16 or float32; the rest is float32.
  void (*step_bf16)(const WalkStep&, bool float_out, int64_t begin, int64_t end);
  // Largest |a - b| over `count` elements (|a| if b is null); NaN if there is one.
  double (*largest)(Dtype dtype, const void* a, const void* b, int64_t count);
  // sums[d] += |a - b| over rows of `dim` (|a| if b is null).
  void (*add_columns)(Dtype dtype, const void* a, const void* b, int64_t rows, int64_t dim,
                      double* sums);
};

extern const RandomWalkKernels random_walk_portable;
extern const RandomWalkKernels random_walk_avx2;
extern const RandomWalkKernels random_walk_avx512;

}  // namespace fcl::ops::cpu
