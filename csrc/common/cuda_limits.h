// SPDX-License-Identifier: Apache-2.0
// How CUDA kernels cut their work. Constants, not properties of the device: results must not depend
// on the machine. The host emulation of the tests has smaller ones, so that small shapes reach
// them.
#pragma once

#include <cstdint>

namespace fcl::cuda {

// Sums in float run over at most this many terms before they move to the next accumulator: one
// running sum over a million classes would lose three digits.
inline constexpr int64_t kFlush = 8192;
// Rows with more edges than this are shared by a block, in segments of so many.
inline constexpr int64_t kWalkHub = 2048;
inline constexpr int64_t kWalkSegment = 1024;
// Blocks wanted in a launch (two for each multiprocessor of the largest devices); work is split
// until there are that many.
inline constexpr int64_t kBlocks = 264;
// Fewest terms worth a split of their own.
inline constexpr int64_t kFewestPerSplit = 512;
// Memory for weights between two kernels: what stays in the second-level cache of most devices.
inline constexpr int64_t kWeightBytes = 16 << 20;
// Fewest columns of such weights that are worth a launch.
inline constexpr int64_t kFewestStored = 512;
// Such memory on Hopper, and with the right rows that both kernels read: with the sums, what its
// second-level cache (50 MB) holds.
inline constexpr int64_t kSm90WeightBytes = 24 << 20;
inline constexpr int64_t kSm90CachedBytes = 32 << 20;

// knn_graph's filter: columns that every row meets without it, so that its list has an end to
// compare with (at least so many, and so many for each neighbour); survivors that a warp's queue
// holds, and how many make a batch of sums worth while.
inline constexpr int64_t kKnnFirst = 256;
inline constexpr int64_t kKnnFirstPerNeighbour = 16;
inline constexpr int kKnnQueue = 256;
inline constexpr int kKnnBatch = 96;

}  // namespace fcl::cuda
