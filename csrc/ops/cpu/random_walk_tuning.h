// SPDX-License-Identifier: Apache-2.0
// Constants the CPU kernels of random_walk share, for float states and for bfloat16 ones.
#pragma once

#include <cstdint>

namespace fcl::ops::cpu {
namespace {

// Vectors of sums that a row keeps in registers at a time.
constexpr int kPanelVectors = 8;
// Bytes to prefetch ahead: enough misses in flight, measured at rows of 256 and 512 bytes.
constexpr int64_t kBytesAhead = 12288;
// A hub's sum moves to a second accumulator this often: one running float sum over a million edges
// would lose three digits.
constexpr int64_t kFlush = 512;

}  // namespace
}  // namespace fcl::ops::cpu
