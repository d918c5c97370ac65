// SPDX-License-Identifier: Apache-2.0
// Panels: up to 128 bytes of each of some consecutive rows of a matrix, in shared memory. The eight
// 16-byte chunks of a panel's row are permuted by its number, so that eight rows' chunks of one
// column, which the loads of mma_product.cuh take at once, lie in different banks. Panels start at
// multiples of 128 bytes.
#pragma once

#include <cstdint>

#include "common/cuda_mma.cuh"

namespace fcl::cuda {

inline constexpr int kPanelBytes = 128;  // of a row
inline constexpr int kChunkBytes = 16;
inline constexpr int kPanelChunks = kPanelBytes / kChunkBytes;
template <typename S>
inline constexpr int kPanelColumns = kPanelBytes / static_cast<int>(sizeof(S));

namespace {

__device__ __forceinline__ uint32_t chunk_offset(int row, int chunk) {
  return static_cast<uint32_t>(row * kPanelBytes + ((chunk ^ (row & 7)) * kChunkBytes));
}

// A row-major matrix in global memory.
template <typename S>
struct Matrix {
  const S* data;
  int64_t rows, columns;
  bool wide;  // rows are multiples of 16 bytes, as is the address
};

// Starts the copy of a panel: kRows rows from `row`, columns from `column`; zeros past the matrix.
template <int kRows, int kThreads, typename S>
__device__ __forceinline__ void copy_panel(uint32_t to, const Matrix<S>& from, int64_t row,
                                           int64_t column) {
  const int thread = opaque(threadIdx.x);
  const int64_t rows_left = from.rows - row;
  const int64_t columns_left = from.columns - column;
  const S* data = from.data + row * from.columns + column;
  if (from.wide) {
    constexpr int kAtOnce = kThreads / kPanelChunks;
    static_assert(kRows % kAtOnce == 0 && kAtOnce % 8 == 0);
    const int chunk = thread % kPanelChunks;
    const int first = thread / kPanelChunks;
    const int skip = chunk * (kChunkBytes / static_cast<int>(sizeof(S)));
    const S* p = data + first * from.columns + skip;
    to += chunk_offset(first, chunk);
#pragma unroll
    for (int r = 0; r < kRows; r += kAtOnce) {
      const bool inside = skip < columns_left && first + r < rows_left;
      copy_async(to + r * kPanelBytes, inside ? p : from.data, inside);
      p += kAtOnce * from.columns;
    }
  } else {
    constexpr int kWords = kPanelBytes / 4;
#pragma unroll 1
    for (int i = thread; i < kRows * kWords; i += kThreads) {
      const int r = i / kWords;
      const int column = i % kWords * (4 / static_cast<int>(sizeof(S)));
      const S* p = data + r * from.columns + column;
      uint32_t word = 0;
      if constexpr (sizeof(S) == 4) {
        if (r < rows_left && column < columns_left) word = __float_as_uint(*p);
      } else if (r < rows_left) {
        if (column < columns_left) word = p[0].bits;
        if (column + 1 < columns_left) word |= static_cast<uint32_t>(p[1].bits) << 16;
      }
      const int chunk = i % kWords / 4;
      store_shared(to + chunk_offset(r, chunk) + static_cast<uint32_t>(i % 4 * 4), word);
    }
  }
}

}  // namespace
}  // namespace fcl::cuda
