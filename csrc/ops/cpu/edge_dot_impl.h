// SPDX-License-Identifier: Apache-2.0
// CPU kernel of edge_dot, compiled once per ISA by edge_dot_<isa>.cpp.
#pragma once

#include "common/simd.h"
#include "ops/cpu/edge_dot_kernels.h"

namespace fcl::ops::cpu {
namespace {

// Bytes to prefetch ahead (see random_walk_impl.h): a row of `right` comes from anywhere in memory.
constexpr int64_t kBytesAhead = 12288;

template <typename T>
T dot(const T* a, const T* b, int64_t dim) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[4] = {};
  int64_t d = 0;
  for (; d + 4 * L <= dim; d += 4 * L) {
    for (int v = 0; v < 4; ++v) sum[v] += load(a + d + v * L) * load(b + d + v * L);
  }
  for (; d + L <= dim; d += L) sum[0] += load(a + d) * load(b + d);
  T total = reduce_add<T>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; d < dim; ++d) total += a[d] * b[d];
  return total;
}

template <typename T, typename Index>
void rows_typed(const EdgeDotProblem& p, int64_t begin, int64_t end) {
  const T* left = static_cast<const T*>(p.left);
  const T* right = static_cast<const T*>(p.right);
  const Index* col = static_cast<const Index*>(p.col);
  T* out = static_cast<T*>(p.out);
  const T factor = static_cast<T>(p.factor);
  const int64_t last = p.crow[end];
  const int64_t row_bytes = p.dim * static_cast<int64_t>(sizeof(T));
  const int64_t wanted = kBytesAhead / (row_bytes + 1) + 1;
  const int64_t ahead = wanted < 64 ? wanted : 64;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t e = p.crow[row]; e < p.crow[row + 1]; ++e) {
      if (e + ahead < last) {
        const char* next = reinterpret_cast<const char*>(right + col[e + ahead] * p.dim);
        for (int64_t b = 0; b < row_bytes; b += 64) {
          __builtin_prefetch(next + b);
        }
      }
      const T value =
          col[e] < 0 ? T(0) : factor * dot(left + row * p.dim, right + col[e] * p.dim, p.dim);
      out[e] = p.accumulate ? out[e] + value : value;
    }
  }
}

void rows(const EdgeDotProblem& p, int64_t begin, int64_t end) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    p.wide ? rows_typed<T, int64_t>(p, begin, end) : rows_typed<T, int32_t>(p, begin, end);
  };
  if (p.dtype == Dtype::kFloat64) {
    run(0.0);
  } else {
    run(0.0f);
  }
}

}  // namespace

const EdgeDotKernels FCL_EDGE_DOT_KERNELS = {rows};

}  // namespace fcl::ops::cpu
