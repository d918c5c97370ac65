// SPDX-License-Identifier: Apache-2.0
// CPU kernels of random_walk, compiled once per ISA by random_walk_<isa>.cpp.
//
// A step gathers rows of the state from anywhere in memory, so it is bound by cache misses: a row
// of the result is summed in registers over its edges, in panels of up to eight vectors, while the
// rows of later edges are prefetched.
#pragma once

#include "common/simd.h"
#include "ops/cpu/random_walk_bf16.h"
#include "ops/cpu/random_walk_kernels.h"
#include "ops/cpu/random_walk_tuning.h"

namespace fcl::ops::cpu {
namespace {

template <typename T, typename Index>
struct TypedStep {
  const int64_t* crow;
  const Index* col;
  const T* values;
  const T* state;
  const T* restart;
  T* out;
  int64_t dim;
  T damping, restart_weight;
  int64_t last_edge, ahead;  // edges to prefetch ahead, staying below last_edge
};

// Elements [offset, offset + (kVectors - 1) L) and the vector at last_offset of one row. The last
// vector may overlap the one before: both then hold the same numbers, and no tail is needed.
template <typename T, typename Index, int kVectors>
inline void row_panel(const TypedStep<T, Index>& s, int64_t row, int64_t offset,
                      int64_t last_offset) {
  constexpr int L = kLanes<T>;
  int64_t at[kVectors];
  for (int v = 0; v + 1 < kVectors; ++v) at[v] = v * L;
  at[kVectors - 1] = last_offset - offset;
  const T* state = s.state + offset;
  Vec<T> total[kVectors] = {};
  const int64_t row_end = s.crow[row + 1];
  for (int64_t begin = s.crow[row]; begin < row_end; begin += kFlush) {
    const int64_t end = begin + kFlush < row_end ? begin + kFlush : row_end;
    Vec<T> sum[kVectors] = {};
    for (int64_t e = begin; e < end; ++e) {
      if (e + s.ahead < s.last_edge) {
        const char* next = reinterpret_cast<const char*>(state + s.col[e + s.ahead] * s.dim);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
          if (v * kVectorBytes % 64 == 0) __builtin_prefetch(next + v * kVectorBytes);
        }
        __builtin_prefetch(next + (at[kVectors - 1] + L - 1) * static_cast<int64_t>(sizeof(T)));
      }
      const int64_t col = s.col[e];
      if (col < 0) continue;
      const T* from = state + col * s.dim;
      const Vec<T> weight = broadcast(s.values[e]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sum[v] += weight * load(from + at[v]);
    }
    if (begin == s.crow[row] && end == row_end) {
      for (int v = 0; v < kVectors; ++v) total[v] = sum[v];
    } else {
      for (int v = 0; v < kVectors; ++v) total[v] += sum[v];
    }
  }
  T* out = s.out + row * s.dim + offset;
  for (int v = 0; v < kVectors; ++v) {
    Vec<T> result = s.damping * total[v];
    if (s.restart != nullptr) {
      result += s.restart_weight * load(s.restart + row * s.dim + offset + at[v]);
    }
    store(out + at[v], result);
  }
}

template <typename T, typename Index, int kVectors = kPanelVectors>
inline void row_vectors(const TypedStep<T, Index>& s, int64_t row, int64_t offset,
                        int64_t last_offset, int64_t vectors) {
  if (vectors == kVectors) return row_panel<T, Index, kVectors>(s, row, offset, last_offset);
  if constexpr (kVectors > 1) {
    row_vectors<T, Index, kVectors - 1>(s, row, offset, last_offset, vectors);
  }
}

// Rows shorter than a vector.
template <typename T, typename Index>
void short_row(const TypedStep<T, Index>& s, int64_t row) {
  T total[kLanes<T>] = {};
  for (int64_t begin = s.crow[row]; begin < s.crow[row + 1]; begin += kFlush) {
    const int64_t end = begin + kFlush < s.crow[row + 1] ? begin + kFlush : s.crow[row + 1];
    T sum[kLanes<T>] = {};
    for (int64_t e = begin; e < end; ++e) {
      if (s.col[e] < 0) continue;
      const T* from = s.state + s.col[e] * s.dim;
      for (int64_t d = 0; d < s.dim; ++d) sum[d] += s.values[e] * from[d];
    }
    for (int64_t d = 0; d < s.dim; ++d) total[d] += sum[d];
  }
  // As a vector, so that the compiler fuses the same multiplication as in row_panel: how wide a
  // panel is must not show in the last bit.
  Vec<T> result = s.damping * load(total);
  if (s.restart != nullptr) {
    T restart[kLanes<T>] = {};
    for (int64_t d = 0; d < s.dim; ++d) restart[d] = s.restart[row * s.dim + d];
    result += s.restart_weight * load(restart);
  }
  for (int64_t d = 0; d < s.dim; ++d) s.out[row * s.dim + d] = result[d];
}

template <typename T, typename Index>
void step_typed(const WalkStep& p, int64_t begin, int64_t end) {
  constexpr int L = kLanes<T>;
  const int64_t panel = p.dim < kPanelVectors * L ? p.dim : kPanelVectors * L;
  const int64_t ahead = kBytesAhead / (panel * static_cast<int64_t>(sizeof(T)) + 1) + 1;
  const TypedStep<T, Index> s{p.crow,
                              static_cast<const Index*>(p.col),
                              static_cast<const T*>(p.values),
                              static_cast<const T*>(p.state),
                              static_cast<const T*>(p.restart),
                              static_cast<T*>(p.out),
                              p.dim,
                              static_cast<T>(p.damping),
                              static_cast<T>(1 - p.damping),
                              p.crow[end],
                              ahead < 64 ? ahead : 64};
  for (int64_t row = begin; row < end; ++row) {
    if (p.dim < L) {
      short_row(s, row);
      continue;
    }
    for (int64_t offset = 0; offset < p.dim; offset += kPanelVectors * L) {
      const int64_t left = p.dim - offset;
      if (left >= kPanelVectors * L) {
        row_panel<T, Index, kPanelVectors>(s, row, offset, offset + (kPanelVectors - 1) * L);
      } else {
        row_vectors(s, row, offset, p.dim - L, (left + L - 1) / L);
      }
    }
  }
}

template <typename T>
inline T magnitude(T x) {
  return x < 0 ? -x : x;
}

template <typename T>
double largest_typed(const T* a, const T* b, int64_t count) {
  constexpr int L = kLanes<T>;
  Vec<T> most{};
  int64_t i = 0;
  for (; i + L <= count; i += L) {
    const Vec<T> x = b == nullptr ? load(a + i) : load(a + i) - load(b + i);
    const Vec<T> size = x < 0 ? -x : x;
    // The second comparison takes in a NaN, which then never leaves: nothing is larger.
    most = (size > most) | (size != size) ? size : most;
  }
  T result = 0;
  auto take = [&](T size) { result = size > result || size != size ? size : result; };
  for (int lane = 0; lane < L; ++lane) take(most[lane]);
  for (; i < count; ++i) take(magnitude(b == nullptr ? a[i] : a[i] - b[i]));
  return static_cast<double>(result);
}

template <typename T>
void add_columns_typed(const T* a, const T* b, int64_t rows, int64_t dim, double* sums) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t d = 0; d < dim; ++d) {
      const int64_t at = i * dim + d;
      sums[d] += static_cast<double>(magnitude(b == nullptr ? a[at] : a[at] - b[at]));
    }
  }
}

template <typename F>
void with_type(Dtype dtype, const F& f) {
  if (dtype == Dtype::kFloat64) {
    f(0.0);
  } else {
    f(0.0f);
  }
}

void step(const WalkStep& p, int64_t begin, int64_t end) {
  with_type(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    p.wide ? step_typed<T, int64_t>(p, begin, end) : step_typed<T, int32_t>(p, begin, end);
  });
}
double largest(Dtype dtype, const void* a, const void* b, int64_t count) {
  double result = 0;
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    result = largest_typed(static_cast<const T*>(a), static_cast<const T*>(b), count);
  });
  return result;
}
void add_columns(Dtype dtype, const void* a, const void* b, int64_t rows, int64_t dim,
                 double* sums) {
  with_type(dtype, [&](auto zero) {
    using T = decltype(zero);
    add_columns_typed(static_cast<const T*>(a), static_cast<const T*>(b), rows, dim, sums);
  });
}

}  // namespace

const RandomWalkKernels FCL_RANDOM_WALK_KERNELS = {step, step_bf16, largest, add_columns};

}  // namespace fcl::ops::cpu
