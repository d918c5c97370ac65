// SPDX-License-Identifier: Apache-2.0
// Takes the place of csrc/common/cuda_tma.h: what the copy engine of tests/sm90/host_sm90.h knows
// of a matrix.
#pragma once

#include <cstdint>

#include "common/half.h"
#include "host_sm90.h"

using CUtensorMap = host_sm90::Matrix;

namespace fcl::cuda {

inline bool can_encode_tensor_maps() { return true; }

inline bool is_tensor_map_matrix(const void* data, int64_t columns) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns % 8 == 0;
}

inline CUtensorMap encode_tensor_map(const char*, Dtype, const void* data, int64_t rows,
                                     int64_t columns, int box_rows) {
  if (!is_tensor_map_matrix(data, columns) || box_rows < 1 || box_rows > 256) {
    host_sm90::fail("a matrix that the copy engine does not take");
  }
  return {static_cast<const uint16_t*>(data), rows, columns, box_rows};
}

}  // namespace fcl::cuda
