// SPDX-License-Identifier: Apache-2.0
// Interface between the driver of edge_dot on the CPU and its per-ISA kernels. Torch-free.
#pragma once

#include <cstdint>

#include "common/half.h"

namespace fcl::ops::cpu {

struct EdgeDotProblem {
  Dtype dtype;          // kFloat32 or kFloat64, of left, right and out
  const int64_t* crow;  // [N + 1]
  const void* col;      // [E]
  bool wide;            // col is int64, else int32
  const void* left;     // [N, dim]
  const void* right;    // [M, dim]
  int64_t dim;
  double factor;
  bool accumulate;
  void* out;  // [E]
};

struct EdgeDotKernels {
  // The edges of rows [begin, end).
  void (*rows)(const EdgeDotProblem&, int64_t begin, int64_t end);
};

extern const EdgeDotKernels edge_dot_portable;
extern const EdgeDotKernels edge_dot_avx2;
extern const EdgeDotKernels edge_dot_avx512;

}  // namespace fcl::ops::cpu
