// SPDX-License-Identifier: Apache-2.0
// Tiled products of a thread block, in the accumulation type. A block of 256 threads (16 x 16)
// holds
//   logits[64 left rows][64 or 32 right rows] = left . right^T,      four rows each,
//   sums[64 left rows][256 or 128 columns] += weights . values,
// the second number for double: shared memory stays below the 48 KiB every device gives.
#pragma once

#include "common/cuda_device.cuh"

namespace fcl::cuda {

inline constexpr int kTileThreads = 256;
inline constexpr int kTileSide = 16;  // threads along each side of a tile
inline constexpr int kTileRows = 64;
inline constexpr int kTileDepth = 16;
inline constexpr int kThreadRows = kTileRows / kTileSide;
template <typename T>
inline constexpr int kTileColumns = sizeof(T) == 8 ? 32 : 64;
template <typename T>
inline constexpr int kTileWidth = sizeof(T) == 8 ? 128 : 256;
template <typename T>
inline constexpr int kThreadColumns = kTileColumns<T> / kTileSide;
template <typename T>
inline constexpr int kThreadWidth = kTileWidth<T> / kTileSide;
// Blocks resident on a multiprocessor for which registers must suffice, 0 for the compiler's
// choice: for double it would choose two on some devices, and spill the sums.
template <typename T>
inline constexpr int kTileResident = sizeof(T) == 8 ? 1 : 0;
// Keeps rows 16-byte aligned and moves them to other banks.
inline constexpr int kTilePad = 4;

template <typename T>
struct TileShared {
  union {
    struct {
      T left[kTileDepth][kTileRows + kTilePad];
      T right[kTileDepth][kTileColumns<T> + kTilePad];
    } product;
    T values[kTileDepth][kTileWidth<T>];
  };
  T weights[kTileColumns<T>][kTileRows + kTilePad];
};

namespace {

__device__ __forceinline__ int tile_x() { return threadIdx.x % kTileSide; }
__device__ __forceinline__ int tile_y() { return threadIdx.x / kTileSide; }
// Rows and columns of a tile that belong to this thread. Columns are a stride apart, so that
// neighbouring threads touch neighbouring addresses.
__device__ __forceinline__ int tile_row(int i) { return tile_y() * kThreadRows + i; }
__device__ __forceinline__ int tile_column(int j) { return tile_x() + kTileSide * j; }

// Part of up to kWidth rows, depth first: to[k][row] = from[row][begin + k], zero past the ends.
template <typename T, int kWidth, typename S>
__device__ __forceinline__ void load_transposed(const S* from, int rows, int64_t dim, int64_t begin,
                                                T (*to)[kWidth + kTilePad]) {
  for (int at = threadIdx.x; at < kWidth * kTileDepth; at += kTileThreads) {
    const int row = at / kTileDepth;
    const int k = at % kTileDepth;
    const bool inside = row < rows && begin + k < dim;
    to[k][row] = inside ? load_value<T>(from + row * dim + begin + k) : T(0);
  }
}

// logits = left . right^T, for `rows` and `columns` valid rows of the two.
template <typename T, typename L, typename R>
__device__ __forceinline__ void tile_product(TileShared<T>& shared, const L* left, int rows,
                                             const R* right, int columns, int64_t dim,
                                             T (&logits)[kThreadRows][kThreadColumns<T>]) {
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < kThreadColumns<T>; ++j) logits[i][j] = 0;
  }
  for (int64_t begin = 0; begin < dim; begin += kTileDepth) {
    __syncthreads();  // the last readers of shared.product or shared.values are done
    load_transposed<T, kTileRows>(left, rows, dim, begin, shared.product.left);
    load_transposed<T, kTileColumns<T>>(right, columns, dim, begin, shared.product.right);
    __syncthreads();  // it is loaded
#pragma unroll
    for (int k = 0; k < kTileDepth; ++k) {
      T a[kThreadRows];
      T b[kThreadColumns<T>];
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) a[i] = shared.product.left[k][tile_row(i)];
#pragma unroll
      for (int j = 0; j < kThreadColumns<T>; ++j) b[j] = shared.product.right[k][tile_column(j)];
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadColumns<T>; ++j) {
          logits[i][j] = multiply_add(a[i], b[j], logits[i][j]);
        }
      }
    }
  }
}

template <typename T>
__device__ __forceinline__ void clear_sums(T (&sums)[kThreadRows][kThreadWidth<T>]) {
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
#pragma unroll
    for (int j = 0; j < kThreadWidth<T>; ++j) sums[i][j] = 0;
  }
}

// sums += shared.weights^T . values[0 .. count), columns [first, first + kTileWidth) of width.
// Weights past `count` meet zeros and must be finite.
template <typename T, typename S>
__device__ __forceinline__ void tile_accumulate(TileShared<T>& shared, const S* values, int count,
                                                int64_t width, int64_t first,
                                                T (&sums)[kThreadRows][kThreadWidth<T>]) {
  for (int begin = 0; begin < count; begin += kTileDepth) {
    __syncthreads();  // weights are written, the last readers of shared.values are done
    for (int at = threadIdx.x; at < kTileDepth * kTileWidth<T>; at += kTileThreads) {
      const int k = at / kTileWidth<T>;
      const int column = at % kTileWidth<T>;
      const bool inside = begin + k < count && first + column < width;
      shared.values[k][column] =
          inside ? load_value<T>(values + (begin + k) * width + first + column) : T(0);
    }
    __syncthreads();  // it is loaded
#pragma unroll 4
    for (int k = 0; k < kTileDepth; ++k) {
      T a[kThreadRows];
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) a[i] = shared.weights[begin + k][tile_row(i)];
#pragma unroll
      for (int j = 0; j < kThreadWidth<T>; ++j) {
        const T b = shared.values[k][tile_column(j)];
#pragma unroll
        for (int i = 0; i < kThreadRows; ++i) sums[i][j] = multiply_add(a[i], b, sums[i][j]);
      }
    }
  }
}

}  // namespace
}  // namespace fcl::cuda
