// SPDX-License-Identifier: Apache-2.0
// Takes the place of csrc/common/cuda_limits.h: limits that small shapes reach.
#pragma once

#include <cstdint>

namespace fcl::cuda {

inline constexpr int64_t kFlush = 128;
inline constexpr int64_t kWalkHub = 40;
inline constexpr int64_t kWalkSegment = 16;
inline constexpr int64_t kBlocks = 6;
inline constexpr int64_t kFewestPerSplit = 64;
inline constexpr int64_t kWeightBytes = 256 << 10;
inline constexpr int64_t kFewestStored = 256;
inline constexpr int64_t kSm90WeightBytes = 256 << 10;
inline constexpr int64_t kSm90CachedBytes = 700 << 10;
inline constexpr int64_t kKnnFirst = 16;
inline constexpr int64_t kKnnFirstPerNeighbour = 1;
inline constexpr int kKnnQueue = 80;
inline constexpr int kKnnBatch = 40;

}  // namespace fcl::cuda
