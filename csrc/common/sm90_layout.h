// SPDX-License-Identifier: Apache-2.0
// Where Hopper's copy engine (TMA) puts the elements of a matrix and where its tensor cores (wgmma)
// look for them. A tile of 16-bit values lies in shared memory as panels of 64 columns: within a
// panel a row is 128 bytes, the next row follows, and the eight 16-byte chunks of a row are
// permuted (the 128-byte swizzle, with a period of eight rows). One such tile serves as
//   K-major operand:  the columns are summed over (tile row = row or column of the product),
//   MN-major operand: the rows are summed over (tile column = column of the product).
// Free of torch and CUDA: tests/sm90/layouts.cpp checks these maps against the PTX ISA's tables.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FCL_HOST_DEVICE __host__ __device__
#define FCL_DEVICE __device__ __forceinline__
#else
#define FCL_HOST_DEVICE
#define FCL_DEVICE inline
#endif

namespace fcl::sm90 {

inline constexpr int kWarpgroup = 128;      // threads that issue one wgmma
inline constexpr int kProductRows = 64;     // rows of every wgmma
inline constexpr int kProductDepth = 16;    // terms of every wgmma of 16-bit values
inline constexpr int kPanelColumns = 64;    // 16-bit values in a swizzled row
inline constexpr int kRowBytes = 128;       // one row of a panel
inline constexpr int kPatternBytes = 1024;  // period of the swizzle: bases are multiples of it

// The swizzle works on addresses: bits 4-6 (the chunk) meet bits 7-9 (the row within eight).
FCL_HOST_DEVICE constexpr uint32_t swizzle(uint32_t address) {
  return address ^ ((address >> 3) & 0x70);
}

// Byte offset of an element of a tile whose panels have `rows` rows, from a base that is a multiple
// of kPatternBytes.
FCL_HOST_DEVICE constexpr uint32_t tile_offset(int rows, int row, int column) {
  const uint32_t panel = static_cast<uint32_t>(column / kPanelColumns * rows * kRowBytes);
  return swizzle(panel + static_cast<uint32_t>(row * kRowBytes + column % kPanelColumns * 2));
}

// From the offset of an element in the first 16-byte chunk of a row to the same place `chunk`
// chunks (of 8 columns each) further in the panel.
FCL_HOST_DEVICE constexpr uint32_t chunk_offset(uint32_t offset, int chunk) {
  return offset ^ static_cast<uint32_t>(chunk * 16);
}

// Matrix descriptor: address, leading and stride byte offsets in units of 16 bytes, and 1 for the
// 128-byte swizzle.
FCL_HOST_DEVICE constexpr uint64_t make_descriptor(uint32_t address, uint32_t leading,
                                                   uint32_t stride) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) |
         static_cast<uint64_t>((leading & 0x3ffff) >> 4) << 16 |
         static_cast<uint64_t>((stride & 0x3ffff) >> 4) << 32 | uint64_t{1} << 62;
}
// The operand starts at `address`, the first byte of one row's 16-column step in an eight-row
// group. The leading offset is not used (taken as one unit).
FCL_HOST_DEVICE constexpr uint64_t k_major_descriptor(uint32_t address) {
  return make_descriptor(address, 16, 8 * kRowBytes);
}
// The operand starts at `address`, the first byte of an eight-row group; `rows` as in tile_offset.
FCL_HOST_DEVICE constexpr uint64_t mn_major_descriptor(uint32_t address, int rows) {
  return make_descriptor(address, static_cast<uint32_t>(rows * kRowBytes), 8 * kRowBytes);
}

// Descriptors of the steps of a product's sum: 16 columns (K-major) or 16 rows (MN-major) each.
FCL_HOST_DEVICE constexpr uint32_t k_major_step(int rows, int step) {
  const int in_panel = kPanelColumns / kProductDepth;
  return static_cast<uint32_t>(step / in_panel * rows * kRowBytes +
                               step % in_panel * kProductDepth * 2);
}
FCL_HOST_DEVICE constexpr uint32_t mn_major_step(int step) {
  return static_cast<uint32_t>(step * kProductDepth * kRowBytes);
}
// A descriptor moved by a multiple of 16 bytes. The address never leaves its 14 bits: shared memory
// is smaller than 256 KiB.
FCL_HOST_DEVICE constexpr uint64_t advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

// Accumulator i of a thread of the warpgroup. Rows repeat with period 4, so a thread has two.
FCL_HOST_DEVICE constexpr int accumulator_row(int thread, int i) {
  return thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8;
}
FCL_HOST_DEVICE constexpr int accumulator_column(int thread, int i) {
  return i / 4 * 8 + thread % 4 * 2 + i % 2;
}

// Value i (of 8, in 4 registers, the lower half first) of the left operand in registers. A thread
// holds accumulators 8 k ... 8 k + 7 of a product where the left operand of step k of the next one
// wants them: packing neighbours makes the operand.
FCL_HOST_DEVICE constexpr int operand_row(int thread, int i) {
  return thread / 32 * 16 + thread % 32 / 4 + i % 4 / 2 * 8;
}
FCL_HOST_DEVICE constexpr int operand_column(int thread, int i) {
  return i / 4 * 8 + thread % 4 * 2 + i % 2;
}

}  // namespace fcl::sm90
