// SPDX-License-Identifier: Apache-2.0
// The one matrix micro-kernel of the CPU ops: C[m][0:2L] (+)= sum_k A[m][k] B[k][0:2L], where L is
// the vector width. B is a packed panel of two vectors per k; A is read by broadcast, so it needs
// no packing and may be row- or column-major. Internal to each ISA unit.
#pragma once

#include <type_traits>

#include "common/simd.h"

namespace fcl {
namespace {

// Columns of a packed panel.
template <typename T>
inline constexpr int kPanel = 2 * kLanes<T>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// How operands of type T multiply and add up; other operand types specialise it.
template <typename T>
struct Multiply {
  using Sum = T;
  using Operand = Vec<T>;
  static Operand load_b(const T* b) { return load(b); }
  static void add(Vec<Sum>& sum, T a, Operand b) { sum += a * b; }
};

// Memory that a later step will read, brought into the L2 cache a little at a time while a product
// keeps the arithmetic units busy: reading it only then would leave them idle.
struct Prefetch {
  static constexpr int64_t kLine = 64;
  const char* at;
  const char* end;
  int64_t bytes_per_step;
  int64_t ranges;      // those left, this one included
  int64_t to_next;     // from the end of a range to the beginning of the next one
  int64_t range_size;  // bytes

  // `count` ranges of `bytes`, `stride` bytes from one to the next, in `steps` calls of step().
  Prefetch(const void* data, int64_t bytes, int64_t steps, int64_t count = 1, int64_t stride = 0)
      : at(static_cast<const char*>(data)),
        end(at + bytes),
        bytes_per_step(round_up(ceil_div(bytes * count, steps), kLine)),
        ranges(count),
        to_next(stride - bytes),
        range_size(bytes) {}

  void step() {
    if (at >= end && ranges > 1) {
      --ranges;
      at = end + to_next;
      end = at + range_size;
    }
    const char* last = end - at < bytes_per_step ? end : at + bytes_per_step;
    for (; at < last; at += kLine) __builtin_prefetch(at, 0, 2);
  }
};

// k runs over outer x inner, so that A may itself be a matrix packed in panels.
template <typename T>
struct TileA {
  const T* data;
  int64_t outer;              // number of panels of k
  int64_t inner;              // k per panel
  int64_t outer_stride;       // elements between panels
  int64_t inner_stride;       // elements between consecutive k
  Prefetch* ahead = nullptr;  // a step per outer panel, if there is one
};

// The sums of a tile, left in registers: sum[m] = sum_k A[m][k] B[k][0:2L]. kRowStride is the
// distance between rows of A: a constant, so that each row is an address offset.
template <typename T, int kRows, int kRowStride, typename Sum = typename Multiply<T>::Sum>
__attribute__((always_inline)) inline void tile_sums(const TileA<T>& a, const T* b,
                                                     Vec<Sum> (&sum)[kRows][2]) {
  constexpr int L = kLanes<Sum>;
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) sum[m][0] = sum[m][1] = Vec<Sum>{};
  for (int64_t outer = 0; outer < a.outer; ++outer) {
    const T* a_k = a.data + outer * a.outer_stride;
    if (a.ahead != nullptr) a.ahead->step();
    for (int64_t inner = 0; inner < a.inner; ++inner) {
      const auto b0 = Multiply<T>::load_b(b);
      const auto b1 = Multiply<T>::load_b(b + L);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const T a_mk = a_k[m * kRowStride];
        Multiply<T>::add(sum[m][0], a_mk, b0);
        Multiply<T>::add(sum[m][1], a_mk, b1);
      }
      a_k += a.inner_stride;
      b += 2 * L;
    }
  }
}

template <typename T, int kRows, int kRowStride, typename Sum = typename Multiply<T>::Sum>
inline void tile(const TileA<T>& a, const T* b, Sum* c, int64_t c_stride, bool accumulate) {
  constexpr int L = kLanes<Sum>;
  Vec<Sum> sum[kRows][2];
  tile_sums<T, kRows, kRowStride>(a, b, sum);
  // Unrolled, or the sums would go through the stack.
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    Sum* row = c + m * c_stride;
    if (accumulate) {
      sum[m][0] += load(row);
      sum[m][1] += load(row + L);
    }
    store(row, sum[m][0]);
    store(row + L, sum[m][1]);
  }
}

template <typename T, int kRowStride, int kRows = kTileRows>
inline void tile_rows(int64_t rows, const TileA<T>& a, const T* b, typename Multiply<T>::Sum* c,
                      int64_t c_stride, bool accumulate) {
  if (rows == kRows) return tile<T, kRows, kRowStride>(a, b, c, c_stride, accumulate);
  if constexpr (kRows > 1) {
    tile_rows<T, kRowStride, kRows - 1>(rows, a, b, c, c_stride, accumulate);
  }
}

// All `rows` rows of C, in groups as equal as possible: 128 rows in groups of 13 and 12 keep every
// register busy, where 9 groups of 14 would leave a group of 2 that waits for its own latency.
template <typename T, int kRowStride>
inline void tile_all_rows(int64_t rows, TileA<T> a, const T* b, typename Multiply<T>::Sum* c,
                          int64_t c_stride, bool accumulate) {
  const int64_t groups = ceil_div(rows, kTileRows);
  const T* base = a.data;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t begin = group * rows / groups;
    const int64_t end = (group + 1) * rows / groups;
    a.data = base + begin * kRowStride;
    tile_rows<T, kRowStride>(end - begin, a, b, c + begin * c_stride, c_stride, accumulate);
  }
}

// Part of a row, [begin, begin + kLanes), in the type that is computed in; zeros past its end.
template <typename T, typename S>
inline Vec<T> load_part(const S* row, int64_t begin, int64_t dim) {
  if (begin + kLanes<T> <= dim) {
    if constexpr (std::is_same_v<T, S>) return load(row + begin);
    alignas(kVectorBytes) T part[kLanes<T>];
    for (int j = 0; j < kLanes<T>; ++j) part[j] = load_as<T>(row + begin + j);
    return load(part);
  }
  alignas(kVectorBytes) T part[kLanes<T>];
  for (int j = 0; j < kLanes<T>; ++j)
    part[j] = begin + j < dim ? load_as<T>(row + begin + j) : T(0);
  return load(part);
}

// Rows [0, rows) of a row-major matrix -> panels [dim/kPanel][panel_rows][kPanel], dim padded with
// zeros: serves both as B (k = row) and, read by broadcast, as A (k = dim).
template <typename T, typename S>
inline void pack_rows(const S* source, int64_t rows, int64_t dim, int64_t panel_rows, T* packed) {
  for (int64_t row = 0; row < rows; ++row) {
    const S* from = source + row * dim;
    for (int64_t begin = 0; begin < dim; begin += kPanel<T>) {
      T* to = packed + begin * panel_rows + row * kPanel<T>;
      store(to, load_part<T>(from, begin, dim));
      store(to + kLanes<T>, load_part<T>(from, begin + kLanes<T>, dim));
    }
  }
}

// Rows [0, rows) -> transposed panels [rows/kPanel][padded_dim][kPanel] times a factor, padded with
// zeros: the B operand whose columns are rows of the source. The factor is a double, here two
// numbers of type T, because its own rounding would be an error that all products share. An
// infinite product stays one: the second number would make a NaN of it.
template <typename T, typename S>
inline void pack_columns(const S* source, int64_t rows, int64_t dim, int64_t padded_dim,
                         double factor, T* packed) {
  constexpr int L = kLanes<T>;
  const T high = static_cast<T>(factor);
  const T low = static_cast<T>(factor - static_cast<double>(high));
  for (int64_t begin = 0; begin < round_up(rows, kPanel<T>); begin += L) {
    T* to = packed + begin / kPanel<T> * kPanel<T> * padded_dim + begin % kPanel<T>;
    for (int64_t d = 0; d < padded_dim; d += L) {
      Vec<T> square[L];
      for (int64_t i = 0; i < L; ++i) {
        if (begin + i >= rows) {
          square[i] = Vec<T>{};
          continue;
        }
        const Vec<T> part = load_part<T>(source + (begin + i) * dim, d, dim);
        const Vec<T> product = part * high;
        square[i] = product + (product - product == Vec<T>{} ? part * low : Vec<T>{});
      }
      transpose<T>(square);
      for (int64_t j = 0; j < L; ++j) store(to + (d + j) * kPanel<T>, square[j]);
    }
  }
}

}  // namespace
}  // namespace fcl
