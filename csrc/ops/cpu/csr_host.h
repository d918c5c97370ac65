// SPDX-License-Identifier: Apache-2.0
// What the CPU drivers of the graph ops share.
#pragma once

#include <cstdint>
#include <vector>

#include "common/checks.h"

namespace fcl::ops::cpu {

// Offsets that start at 0, never decrease and end at E; columns in [-1, num_columns).
void check_csr_entries(const char* op, const Tensor& crow, const Tensor& col, int64_t num_columns);

// Bounds of row ranges with about equal work: edges plus a constant per row. They depend on the
// graph alone, so that sums over ranges do not depend on the number of threads.
std::vector<int64_t> balanced_rows(const Tensor& crow);

struct TransposedCsr {
  Tensor crow, col, edge_order;
};
TransposedCsr transpose_csr(const Tensor& crow, const Tensor& col, int64_t num_columns);

// out_e = factor left[row] . right[col], or += if accumulate; contiguous, one floating dtype.
void edge_dots(const Tensor& crow, const Tensor& col, const Tensor& left, const Tensor& right,
               double factor, bool accumulate, const Tensor& out);

}  // namespace fcl::ops::cpu
