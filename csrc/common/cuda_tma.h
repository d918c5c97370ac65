// SPDX-License-Identifier: Apache-2.0
// Tensor maps: what the copy engine (TMA) of Hopper and later knows of a matrix it loads tiles of.
// The driver encodes them; its function is asked for at run time, so that no driver library is
// linked.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "common/half.h"

namespace fcl::cuda {

// False where the driver is missing or too old.
bool can_encode_tensor_maps();

// The copy engine wants addresses and rows that are multiples of 16 bytes.
bool is_tensor_map_matrix(const void* data, int64_t columns);

// Of a row-major matrix of 16-bit values: boxes of 64 columns x `box_rows` rows, written with the
// 128-byte swizzle of sm90_layout.h, zero past the matrix.
CUtensorMap encode_tensor_map(const char* op, Dtype dtype, const void* data, int64_t rows,
                              int64_t columns, int box_rows);

}  // namespace fcl::cuda
