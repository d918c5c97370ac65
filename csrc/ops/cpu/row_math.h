// SPDX-License-Identifier: Apache-2.0
// What a loss does to single rows before and after the readout, in double. Internal to each ISA
// unit: a batch of 64 rows against a hundred classes spends a third of its time here, if it is not
// vectors of the processor's own width that do it.
#pragma once

#include "ops/cpu/softmax_readout_kernels.h"

namespace fcl::ops::cpu {
namespace {

template <typename A, typename B>
double dot_typed(const A* a, const B* b, int64_t dim) {
  // Sixteen sums at a time: few would wait for their own last addition.
  constexpr int64_t kSums = 16;
  double sums[kSums] = {};
  int64_t d = 0;
  for (; d + kSums <= dim; d += kSums) {
    for (int64_t j = 0; j < kSums; ++j) {
      sums[j] += load_as<double>(a + d + j) * load_as<double>(b + d + j);
    }
  }
  for (; d < dim; ++d) sums[0] += load_as<double>(a + d) * load_as<double>(b + d);
  for (int64_t half = kSums / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

inline double row_dot(Row a, Row b, int64_t dim) {
  double dot = 0;
  dispatch_dtype(a.dtype, [&](auto of_a) {
    using A = typename decltype(of_a)::type;
    dispatch_dtype(b.dtype, [&](auto of_b) {
      using B = typename decltype(of_b)::type;
      dot = dot_typed(static_cast<const A*>(a.data), static_cast<const B*>(b.data), dim);
    });
  });
  return dot;
}

template <typename T>
void row_sum_typed(double a, Row x, double b, Row y, int64_t dim, T* to) {
  dispatch_dtype(x.dtype, [&](auto of_x) {
    const auto* from_x = static_cast<const typename decltype(of_x)::type*>(x.data);
    if (b == 0) {
      for (int64_t d = 0; d < dim; ++d) to[d] = static_cast<T>(a * load_as<double>(from_x + d));
      return;
    }
    dispatch_dtype(y.dtype, [&](auto of_y) {
      const auto* from_y = static_cast<const typename decltype(of_y)::type*>(y.data);
      for (int64_t d = 0; d < dim; ++d) {
        to[d] = static_cast<T>(a * load_as<double>(from_x + d) + b * load_as<double>(from_y + d));
      }
    });
  });
}

inline void row_sum(double a, Row x, double b, Row y, int64_t dim, bool to_double, void* to) {
  if (to_double) return row_sum_typed(a, x, b, y, dim, static_cast<double*>(to));
  row_sum_typed(a, x, b, y, dim, static_cast<float*>(to));
}

}  // namespace
}  // namespace fcl::ops::cpu
