// SPDX-License-Identifier: Apache-2.0
// CPU kernels of sparse_readout, compiled once per ISA by sparse_readout_<isa>.cpp. One query at a
// time: dot products with the rows of its set, their softmax, and the weighted sum of the rows.
#pragma once

#include "common/simd.h"
#include "ops/cpu/sparse_readout_kernels.h"

namespace fcl::ops::cpu {
namespace {

// Terms added in float before the sum moves to the next accumulator (see kReadoutFlush).
constexpr int64_t kFlush = 8192;
constexpr double kLog2E = 1.4426950408889634;

template <typename T, typename S>
Vec<T> load_vector(const S* p) {
  Vec<T> v;
  for (int lane = 0; lane < kLanes<T>; ++lane) v[lane] = load_as<T>(p + lane);
  return v;
}
template <>
[[maybe_unused]] Vec<float> load_vector<float, float>(const float* p) {
  return load(p);
}
template <>
[[maybe_unused]] Vec<double> load_vector<double, double>(const double* p) {
  return load(p);
}

template <typename T, typename A, typename B>
T dot(const A* a, const B* b, int64_t dim) {
  constexpr int L = kLanes<T>;
  Vec<T> sum0{};
  Vec<T> sum1{};
  int64_t d = 0;
  for (; d + 2 * L <= dim; d += 2 * L) {
    sum0 += load_vector<T>(a + d) * load_vector<T>(b + d);
    sum1 += load_vector<T>(a + d + L) * load_vector<T>(b + d + L);
  }
  T sum = reduce_add<T>(sum0 + sum1);
  for (; d < dim; ++d) sum += load_as<T>(a + d) * load_as<T>(b + d);
  return sum;
}

// to += weight * from
template <typename T, typename S>
void add_scaled(T weight, const S* from, int64_t dim, T* to) {
  constexpr int L = kLanes<T>;
  int64_t d = 0;
  for (; d + L <= dim; d += L) store(to + d, load(to + d) + weight * load_vector<T>(from + d));
  for (; d < dim; ++d) to[d] += weight * load_as<T>(from + d);
}

// 1 / |row|; a zero row stays zero.
template <typename T, typename S>
T inverse_norm(const S* row, int64_t dim) {
  const T smallest = static_cast<T>(1e-12);  // F.normalize's eps
  const T norm = __builtin_sqrt(dot<T>(row, row, dim));
  return T(1) / (norm > smallest ? norm : smallest);
}

template <typename T>
void move_sum(T* sum, T* total, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) {
    total[d] += sum[d];
    sum[d] = 0;
  }
}

template <typename T>
T infinity() {
  return static_cast<T>(__builtin_inf());
}

// Natural logarithm of a positive sum, without <cmath> (whose inline functions must stay out).
inline double log_of(double x) { return __builtin_log(x); }

template <typename S>
void query_typed(const SparseReadoutProblem& p, int64_t query, void* scratch, void* logsumexp_out,
                 void* mean_out) {
  using T = typename Accumulate<S>::type;
  T* logsumexp = static_cast<T*>(logsumexp_out) + query;
  T* mean = mean_out == nullptr ? nullptr : static_cast<T*>(mean_out) + query * p.dim;
  if (mean != nullptr) __builtin_memset(mean, 0, sizeof(T) * p.dim);
  const int64_t label = p.labels[query];
  const int64_t begin = label < 0 ? 0 : p.crow[label];
  const int64_t count = label < 0 ? 0 : p.crow[label + 1] - begin;
  T* logits = static_cast<T*>(scratch);
  T* norms = logits + count + kLanes<T>;
  T* sum_row = norms + count;
  const S* x = static_cast<const S*>(p.embeddings) + query * p.dim;
  const S* rows = static_cast<const S*>(p.rows);
  const T* log_weights = static_cast<const T*>(p.log_weights);
  const T factor = static_cast<T>(p.scale * kLog2E);
  T max = -infinity<T>();
  for (int64_t e = 0; e < count; ++e) {
    const S* row = rows + p.col[begin + e] * p.dim;
    norms[e] = p.normalize ? inverse_norm<T>(row, p.dim) : T(1);
    T z = factor * norms[e] * dot<T>(x, row, p.dim);
    if (log_weights != nullptr) z += log_weights[begin + e] * static_cast<T>(kLog2E);
    logits[e] = z;
    max = z > max ? z : max;
  }
  if (max == -infinity<T>()) {
    // No row, none with weight, or only NaN logits, which the comparison above never takes.
    *logsumexp = max;
    for (int64_t e = 0; e < count; ++e) *logsumexp += logits[e] == logits[e] ? T(0) : logits[e];
    return;
  }
  double total = 0;
  // The scratch has room for a last, partly used vector.
  for (int64_t e = 0; e < count; e += kLanes<T>) {
    store(logits + e, exp2(load(logits + e) - max));
    for (int64_t j = e; j < count && j < e + kLanes<T>; ++j) {
      total += static_cast<double>(logits[j]);
    }
  }
  *logsumexp = max == infinity<T>()
                   ? max
                   : static_cast<T>(static_cast<double>(max) / kLog2E + log_of(total));
  if (mean == nullptr) return;
  __builtin_memset(sum_row, 0, sizeof(T) * p.dim);
  for (int64_t e = 0; e < count; ++e) {
    add_scaled<T>(norms[e] * static_cast<T>(static_cast<double>(logits[e]) / total),
                  rows + p.col[begin + e] * p.dim, p.dim, sum_row);
    if ((e + 1) % kFlush == 0) move_sum(sum_row, mean, p.dim);
  }
  move_sum(sum_row, mean, p.dim);
}

template <typename S>
void bank_row_typed(const SparseReadoutBackward& p, int64_t row, void* scratch, void* grad_out) {
  using T = typename Accumulate<S>::type;
  T* grad = static_cast<T*>(grad_out) + row * p.dim;
  T* sum = static_cast<T*>(scratch);
  __builtin_memset(grad, 0, sizeof(T) * p.dim);
  __builtin_memset(sum, 0, sizeof(T) * p.dim);
  const S* embeddings = static_cast<const S*>(p.embeddings);
  const S* bank = static_cast<const S*>(p.rows) + row * p.dim;
  const T* logsumexp = static_cast<const T*>(p.logsumexp);
  const T* coefficient = static_cast<const T*>(p.coefficient);
  const T* log_weights = static_cast<const T*>(p.row_log_weights);
  const T norm = p.normalize ? inverse_norm<T>(bank, p.dim) : T(1);
  const T factor = static_cast<T>(p.scale * kLog2E) * norm;
  int64_t terms = 0;
  for (int64_t e = p.row_crow[row]; e < p.row_crow[row + 1]; ++e) {
    const int64_t label = p.row_labels[e];
    const T bias = log_weights == nullptr ? T(0) : log_weights[e] * static_cast<T>(kLog2E);
    for (int64_t q = p.query_crow[label]; q < p.query_crow[label + 1]; ++q) {
      const int64_t i = p.query_index[q];
      const S* x = embeddings + i * p.dim;
      const T z = factor * dot<T>(x, bank, p.dim) + bias - logsumexp[i] * static_cast<T>(kLog2E);
      const T weight = static_cast<T>(p.scale) * coefficient[i] * exp2_scalar<T>(z);
      add_scaled<T>(weight, x, p.dim, sum);
      if (++terms % kFlush == 0) move_sum(sum, grad, p.dim);
    }
  }
  move_sum(sum, grad, p.dim);
  if (!p.normalize) return;
  // Through the normalisation u = norm * bank: norm (g - u (u . g)).
  const T along = norm * norm * dot<T>(bank, grad, p.dim);
  for (int64_t d = 0; d < p.dim; ++d) {
    grad[d] = norm * (grad[d] - along * load_as<T>(bank + d));
  }
}

void query(const SparseReadoutProblem& p, int64_t i, void* scratch, void* logsumexp, void* mean) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    query_typed<typename decltype(tag)::type>(p, i, scratch, logsumexp, mean);
  });
}
void bank_row(const SparseReadoutBackward& p, int64_t row, void* scratch, void* grad) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    bank_row_typed<typename decltype(tag)::type>(p, row, scratch, grad);
  });
}

}  // namespace

const SparseReadoutKernels FCL_SPARSE_READOUT_KERNELS = {query, bank_row};

}  // namespace fcl::ops::cpu
