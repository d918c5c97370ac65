// SPDX-License-Identifier: Apache-2.0
// Interface of the path `union` of the walk: a step over windows of 16 rows (ops/walk_windows.h).
#pragma once

#include "ops/cuda/walk_path.h"

namespace fcl::ops::cuda {

struct WalkUnion {
  const int64_t* window_crow;
  const int32_t* window_col;
  const int64_t* chunk_crow;
  const uint8_t* positions;
  const float* values;
  int64_t num_rows, num_slots, num_edges;
};

// Device assertions that offsets and columns stay inside what they point into.
void launch_check_windows(const WalkUnion& windows, cudaStream_t stream);

// One step; of `step`, graph and values do not count. State: float or bfloat16. Throws where the
// device has no such tensor cores.
void launch_walk_union(const WalkUnion& windows, const WalkStep& step, cudaStream_t stream);

}  // namespace fcl::ops::cuda
