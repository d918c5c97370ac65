// SPDX-License-Identifier: Apache-2.0
// All steps of a walk by the paths that take any dtype and stride: a panel of columns at a time,
// each through two buffers that only it fills. No step converts or copies: the first reads the
// features as they are, the last writes the result in its dtype, rounded once. Work is queued on
// one stream and memory comes from torch, so a walk can be captured in a CUDA graph.
#pragma once

#include <algorithm>
#include <utility>

#include "common/checks.h"
#include "common/cuda_stream.h"
#include "ops/cuda/walk_path.h"
#include "ops/random_walk.h"

namespace fcl::ops::cuda {

struct WalkSteps {
  Tensor state, restart;  // [N, D], contiguous, of any dtypes
  double damping;
  int64_t num_steps;       // >= 1
  int64_t num_bf16_steps;  // the first ones, whose results are stored as bfloat16
  ScalarType result;       // of the last step, whichever it is
};

// Columns from `begin` on, of which `columns` may be touched. The operator has checked the dtype.
inline WalkRows columns_of(const Tensor& t, int64_t begin, int64_t columns) {
  // Only results are written, and they are nobody else's memory yet.
  void* data = const_cast<void*>(t.const_data_ptr());
  return {static_cast<char*>(data) + begin * static_cast<int64_t>(t.element_size()),
          storage_dtype(t.scalar_type()).value(), t.size(1), columns};
}

// `step` launches what a WalkStep without graph and values says. cache_bytes: walk_cache_bytes().
template <typename Step>
Tensor walk_loop(const WalkSteps& walk, bool in_panels, int64_t cache_bytes, const Step& step) {
  const int64_t num_rows = walk.restart.size(0);
  const int64_t dim = walk.restart.size(1);
  const Tensor out = torch::stable::new_empty(walk.restart, {num_rows, dim}, walk.result);
  const bool is_double = walk.restart.scalar_type() == ScalarType::Double;
  const Dtype full = is_double ? Dtype::kFloat64 : Dtype::kFloat32;
  const int64_t full_bytes = is_double ? 8 : 4;
  const int64_t iterate_bytes = walk.num_bf16_steps > 0 ? 2 : full_bytes;
  const int64_t width =
      in_panels ? walk_panel_columns(num_rows, dim, iterate_bytes, walk.num_steps, cache_bytes)
                : dim;
  // Rows of the buffers are whole vectors, so that no step but the first meets unaligned ones.
  const int64_t stride = (width + 7) / 8 * 8;
  Tensor buffers[2];
  for (int64_t i = 0; i < std::min<int64_t>(walk.num_steps - 1, 2); ++i) {
    buffers[i] = fcl::cuda::device_scratch(walk.restart, num_rows * stride * full_bytes);
  }
  for (int64_t begin = 0; begin < dim; begin += width) {
    const int64_t columns = std::min(width, dim - begin);
    WalkRows state = columns_of(walk.state, begin, dim - begin);
    const WalkRows restart = columns_of(walk.restart, begin, dim - begin);
    for (int64_t t = 0; t < walk.num_steps; ++t) {
      const bool is_last = t + 1 == walk.num_steps;
      const Dtype dtype = t < walk.num_bf16_steps ? Dtype::kBfloat16 : full;
      const int64_t bytes = dtype == Dtype::kBfloat16 ? 2 : full_bytes;
      const WalkRows to = is_last
                              ? columns_of(out, begin, columns)
                              : WalkRows{buffers[t % 2].mutable_data_ptr(), dtype, stride, stride};
      step(WalkStep{{},
                    nullptr,
                    state,
                    restart,
                    to,
                    columns,
                    walk.damping,
                    num_rows * columns * bytes > cache_bytes});
      state = to;
    }
  }
  return out;
}

}  // namespace fcl::ops::cuda
