// SPDX-License-Identifier: Apache-2.0
// walk_windows: a graph cut into windows of 16 rows, each with the columns that its rows gather,
// every one once:
//   crow [N + 1], col [E] -> window_crow [W + 1], window_col [S], chunk_crow [S / 16 + 1],
//                            positions [P], edge_order [P],
// where window w has the slots window_crow[w] to window_crow[w + 1], a multiple of 16 of them.
// Slot s stands for row window_col[s] of the state, or for none (-1, at the end of a window).
// Chunk c is the slots 16 c ... 16 c + 15; its edges are those from chunk_crow[c] to
// chunk_crow[c + 1]: number i was edge edge_order[i] and belongs to row positions[i] / 16 of the
// window and slot positions[i] % 16 of the chunk. No two edges of a chunk have one position: a row
// that lists a column twice gives it two slots. Padding edges have none.
// W = N / 16 rounded up, P <= E. Slots of a window are sorted by column.
//
// random_walk_union: exactly num_steps of the walk over such windows, of values [P] in their order;
// the first num_bf16_steps with results stored as bfloat16 (as random_walk_resume).
#pragma once

#include "ops/random_walk.h"

namespace fcl::ops {

inline constexpr int64_t kWindowRows = 16;
inline constexpr int64_t kChunkSlots = 16;

inline CsrShape check_walk_windows(const Tensor& crow_indices, const Tensor& col_indices) {
  const char* op = "walk_windows";
  const CsrShape shape = check_csr(op, crow_indices, col_indices);
  FCL_REQUIRE(shape.num_rows <= INT32_MAX, "fcl::", op, ": expected at most 2^31 - 1 nodes, got ",
              shape.num_rows);
  return shape;
}

// As the kernels see them; contiguous.
struct WalkWindows {
  Tensor window_crow, window_col, chunk_crow, positions, values;
};

inline WalkShape check_random_walk_union(const WalkWindows& windows, const Tensor& features,
                                         double damping, int64_t num_steps,
                                         int64_t num_bf16_steps) {
  const char* op = "random_walk_union";
  const Dtype dtype = check_floating(op, "features", features);
  FCL_REQUIRE(dtype != Dtype::kFloat64, "fcl::", op,
              ": expected features of dtype float32, bfloat16 or float16, got ",
              dtype_name(features.scalar_type()));
  check_shape(op, "features", features, "[N, D]", {-1, -1});
  const int64_t num_rows = features.size(0);
  check_dtype(op, "window_crow", windows.window_crow, ScalarType::Long);
  check_shape(op, "window_crow", windows.window_crow, "[N / 16 rounded up + 1]",
              {(num_rows + kWindowRows - 1) / kWindowRows + 1});
  check_dtype(op, "window_col", windows.window_col, ScalarType::Int);
  check_shape(op, "window_col", windows.window_col, "[S]", {-1});
  const int64_t slots = windows.window_col.size(0);
  FCL_REQUIRE(slots % kChunkSlots == 0, "fcl::", op,
              ": expected window_col of shape [S] with S a multiple of 16, got ",
              shape_string(windows.window_col));
  check_dtype(op, "chunk_crow", windows.chunk_crow, ScalarType::Long);
  check_shape(op, "chunk_crow", windows.chunk_crow, "[S / 16 + 1]", {slots / kChunkSlots + 1});
  check_dtype(op, "positions", windows.positions, ScalarType::Byte);
  check_shape(op, "positions", windows.positions, "[P]", {-1});
  const int64_t num_edges = windows.positions.size(0);
  check_dtype(op, "values", windows.values, ScalarType::Float);
  check_shape(op, "values", windows.values, "[P]", {num_edges});
  check_same_device(op, "window_col", windows.window_col, windows.window_crow);
  check_same_device(op, "chunk_crow", windows.chunk_crow, windows.window_crow);
  check_same_device(op, "positions", windows.positions, windows.window_crow);
  check_same_device(op, "values", windows.values, windows.window_crow);
  check_same_device(op, "features", features, windows.window_crow);
  FCL_REQUIRE(damping > 0 && damping < 1, "fcl::", op,
              ": expected damping in the open interval (0, 1), got ", damping);
  check_num_steps(op, num_steps);
  FCL_REQUIRE(num_bf16_steps >= 0 && num_bf16_steps <= num_steps, "fcl::", op,
              ": expected num_bf16_steps in [0, num_steps = ", num_steps, "], got ",
              num_bf16_steps);
  return {{num_rows, num_edges, false}, dtype, features.size(1)};
}

}  // namespace fcl::ops
