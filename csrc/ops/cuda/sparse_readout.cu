// SPDX-License-Identifier: Apache-2.0
// sparse_readout on CUDA. A block owns one query (forward) or one bank row (backward) and one panel
// of columns. It takes the rows of the set a few at a time: each warp computes dot products, then
// every thread adds the weighted rows to its own columns. Nothing is shared between blocks, so
// there is nothing to combine. Wider rows than one panel recompute the dot products.
#include "common/cuda_device.cuh"
#include "common/cuda_launch.cuh"
#include "common/cuda_limits.h"
#include "ops/cuda/sparse_readout_kernels.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

constexpr int kThreads = 128;
// Blocks per multiprocessor to leave registers for; without a number the compiler spills.
constexpr int kResident = 4;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSet = 32;  // rows taken at a time
constexpr int kColumnsPerThread = 4;
constexpr int64_t kPanel = kThreads * kColumnsPerThread;

// a . b over the lanes of a warp; the result is in every lane.
template <typename T, typename S>
__device__ __forceinline__ T warp_dot(const S* a, const S* b, int64_t dim) {
  T sum = 0;
  for (int64_t d = threadIdx.x % kWarp; d < dim; d += kWarp) {
    sum = multiply_add(load_value<T>(a + d), load_value<T>(b + d), sum);
  }
  return warp_sum(sum);
}

// 1 / |row|, in every lane; a zero row stays zero.
template <typename T, typename S>
__device__ __forceinline__ T inverse_norm(const S* row, int64_t dim) {
  const T norm = sqrt(warp_dot<T>(row, row, dim));
  const T smallest = static_cast<T>(1e-12);  // F.normalize's eps
  return T(1) / (norm > smallest ? norm : smallest);
}

template <typename T>
struct Set {
  T logits[kSet];
  T weights[kSet];
  T norms[kSet];  // 1 / |row| where bank rows are normalised, else 1
  int64_t row[kSet];
};

// sums += weights . rows, for this thread's columns.
template <typename T, typename S>
__device__ __forceinline__ void add_rows(const Set<T>& set, const S* rows, int count, int64_t dim,
                                         int64_t first, T (&sums)[kColumnsPerThread]) {
  for (int e = 0; e < count; ++e) {
    const T weight = set.weights[e];
    const S* row = rows + set.row[e] * dim;
#pragma unroll
    for (int j = 0; j < kColumnsPerThread; ++j) {
      const int64_t column = first + threadIdx.x + j * kThreads;
      if (column < dim) sums[j] = multiply_add(weight, load_value<T>(row + column), sums[j]);
    }
  }
}

template <typename T>
struct Running {
  T max = -infinity<T>();
  double sum = 0;
  T columns[kColumnsPerThread] = {};
};

// Brings sums to a new maximum.
template <typename T>
__device__ __forceinline__ void rebase(Running<T>& running, T max) {
  const T keep = exp2_of(running.max - finite_base(max));
  running.max = max;
  running.sum *= static_cast<double>(keep);
#pragma unroll
  for (int j = 0; j < kColumnsPerThread; ++j) running.columns[j] *= keep;
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResident)
    query_kernel(SparseReadoutProblem p, typename Accumulate<S>::type* logsumexp,
                 typename Accumulate<S>::type* mean) {
  using T = typename Accumulate<S>::type;
  __shared__ Set<T> set;
  const int64_t query = blockIdx.x;
  const int64_t first = blockIdx.y * kPanel;
  const int64_t label = p.labels[query];
  assert(label < p.num_labels && "sparse_readout: label is not below L");
  const int64_t begin = label < 0 ? 0 : p.crow[label];
  const int64_t end = label < 0 ? 0 : p.crow[label + 1];
  assert(begin >= 0 && begin <= end && end <= p.num_edges &&
         "sparse_readout: crow_indices decrease or leave [0, E]");
  const S* x = static_cast<const S*>(p.embeddings) + query * p.dim;
  const S* rows = static_cast<const S*>(p.rows);
  const T* log_weights = static_cast<const T*>(p.log_weights);
  const T factor = static_cast<T>(p.scale * kLog2E);
  const int t = threadIdx.x;
  Running<T> total;
  for (int64_t run = begin; run < end; run += kFlush) {
    const int64_t run_end = min(run + kFlush, end);
    Running<T> running;
    for (int64_t e = run; e < run_end; e += kSet) {
      const int count = static_cast<int>(min(run_end - e, static_cast<int64_t>(kSet)));
      __syncthreads();  // the last readers of the set are done
      for (int i = t / kWarp; i < count; i += kWarps) {
        const int64_t row = p.col[e + i];
        assert(row >= 0 && row < p.num_rows && "sparse_readout: col_indices leave [0, R)");
        const T norm = p.normalize ? inverse_norm<T>(rows + row * p.dim, p.dim) : T(1);
        T z = factor * norm * warp_dot<T>(x, rows + row * p.dim, p.dim);
        if (log_weights != nullptr) z += log_weights[e + i] * static_cast<T>(kLog2E);
        if (t % kWarp == 0) {
          set.logits[i] = z;
          set.norms[i] = norm;
          set.row[i] = row;
        }
      }
      __syncthreads();  // logits are written
      T max = running.max;
      for (int i = 0; i < count; ++i) max = set.logits[i] > max ? set.logits[i] : max;
      rebase(running, max);
      if (t < count) set.weights[t] = exp2_of(set.logits[t] - finite_base(max));
      __syncthreads();  // weights are written
      T sum = 0;
      for (int i = 0; i < count; ++i) sum += set.weights[i];
      running.sum += static_cast<double>(sum);
      if (mean == nullptr) continue;
      __syncthreads();  // every thread has added up the weights
      if (t < count) set.weights[t] *= set.norms[t];
      __syncthreads();  // norms are part of the weights
      add_rows(set, rows, count, p.dim, first, running.columns);
    }
    const T max = running.max > total.max ? running.max : total.max;
    rebase(running, max);
    rebase(total, max);
    total.sum += running.sum;
#pragma unroll
    for (int j = 0; j < kColumnsPerThread; ++j) total.columns[j] += running.columns[j];
  }
  if (t == 0 && blockIdx.y == 0) {
    const double base = static_cast<double>(finite_base(total.max));
    logsumexp[query] = static_cast<T>((base + log2(total.sum)) * kLn2);
  }
  if (mean == nullptr) return;
#pragma unroll
  for (int j = 0; j < kColumnsPerThread; ++j) {
    const int64_t column = first + t + j * kThreads;
    if (column >= p.dim) continue;
    mean[query * p.dim + column] =
        total.sum == 0 ? T(0) : static_cast<T>(static_cast<double>(total.columns[j]) / total.sum);
  }
}

template <typename S>
__global__ void __launch_bounds__(kThreads, kResident)
    bank_row_kernel(SparseReadoutBackward p, typename Accumulate<S>::type* grad) {
  using T = typename Accumulate<S>::type;
  __shared__ Set<T> set;
  const int64_t bank_row = blockIdx.x;
  const int64_t first = blockIdx.y * kPanel;
  const S* embeddings = static_cast<const S*>(p.embeddings);
  const S* bank = static_cast<const S*>(p.rows) + bank_row * p.dim;
  const T* logsumexp = static_cast<const T*>(p.logsumexp);
  const T* coefficient = static_cast<const T*>(p.coefficient);
  const T* log_weights = static_cast<const T*>(p.row_log_weights);
  const T norm = p.normalize ? inverse_norm<T>(bank, p.dim) : T(1);
  const T factor = static_cast<T>(p.scale * kLog2E) * norm;
  const int t = threadIdx.x;
  const int64_t edge_begin = p.row_crow[bank_row];
  const int64_t edge_end = p.row_crow[bank_row + 1];
  assert(edge_begin >= 0 && edge_begin <= edge_end && edge_end <= p.num_edges &&
         "sparse_readout_backward_rows: row_crow decreases or leaves [0, E]");
  T sums[kColumnsPerThread] = {};
  T totals[kColumnsPerThread] = {};
  int64_t terms = 0;
  for (int64_t e = edge_begin; e < edge_end; ++e) {
    const int64_t label = p.row_labels[e];
    assert(label >= 0 && label < p.num_labels &&
           "sparse_readout_backward_rows: row_labels leave [0, L)");
    const T bias = log_weights == nullptr ? T(0) : log_weights[e] * static_cast<T>(kLog2E);
    const int64_t begin = p.query_crow[label];
    const int64_t end = p.query_crow[label + 1];
    assert(begin >= 0 && begin <= end && end <= p.num_indices &&
           "sparse_readout_backward_rows: query_crow decreases or leaves [0, M]");
    for (int64_t q = begin; q < end; q += kSet) {
      const int count = static_cast<int>(min(end - q, static_cast<int64_t>(kSet)));
      __syncthreads();  // the last readers of the set are done
      for (int i = t / kWarp; i < count; i += kWarps) {
        const int64_t query = p.query_index[q + i];
        assert(query >= 0 && query < p.num_queries &&
               "sparse_readout_backward_rows: query_index leaves [0, N)");
        const T z = factor * warp_dot<T>(embeddings + query * p.dim, bank, p.dim) + bias;
        if (t % kWarp == 0) {
          const T lse = logsumexp[query];
          const T probability =
              lse == -infinity<T>() ? T(0) : exp2_of(z - lse * static_cast<T>(kLog2E));
          set.weights[i] = static_cast<T>(p.scale) * coefficient[query] * probability;
          set.row[i] = query;
        }
      }
      __syncthreads();  // weights are written
      if (terms + count > kFlush) {
        terms = 0;
#pragma unroll
        for (int j = 0; j < kColumnsPerThread; ++j) {
          totals[j] += sums[j];
          sums[j] = 0;
        }
      }
      terms += count;
      add_rows(set, embeddings, count, p.dim, first, sums);
    }
  }
#pragma unroll
  for (int j = 0; j < kColumnsPerThread; ++j) {
    const int64_t column = first + t + j * kThreads;
    if (column < p.dim) grad[bank_row * p.dim + column] = totals[j] + sums[j];
  }
}

// Gradient to unit rows u = norm * row -> gradient to the rows, in place: norm (g - u (u . g)).
template <typename S>
__global__ void __launch_bounds__(kThreads)
    unscale_kernel(SparseReadoutBackward p, typename Accumulate<S>::type* grad) {
  using T = typename Accumulate<S>::type;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= p.num_rows) return;
  const S* bank = static_cast<const S*>(p.rows) + row * p.dim;
  T* g = grad + row * p.dim;
  const T norm = inverse_norm<T>(bank, p.dim);
  T along = 0;
  for (int64_t d = threadIdx.x % kWarp; d < p.dim; d += kWarp) {
    along = multiply_add(load_value<T>(bank + d), g[d], along);
  }
  along = warp_sum(along) * norm * norm;
  for (int64_t d = threadIdx.x % kWarp; d < p.dim; d += kWarp) {
    g[d] = norm * (g[d] - along * load_value<T>(bank + d));
  }
}

}  // namespace

void launch_sparse_readout(const SparseReadoutProblem& p, void* logsumexp, void* mean,
                           cudaStream_t stream) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulate<S>::type;
    const int64_t panels = mean == nullptr ? 1 : std::max<int64_t>(divide_up(p.dim, kPanel), 1);
    launch("sparse_readout", query_kernel<S>, {p.num_queries, panels}, kThreads, stream, p,
           static_cast<T*>(logsumexp), static_cast<T*>(mean));
  });
}

void launch_sparse_readout_backward(const SparseReadoutBackward& p, void* grad,
                                    cudaStream_t stream) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulate<S>::type;
    launch("sparse_readout_backward_rows", bank_row_kernel<S>,
           {p.num_rows, divide_up(p.dim, kPanel)}, kThreads, stream, p, static_cast<T*>(grad));
    if (!p.normalize) return;
    launch("sparse_readout_backward_rows", unscale_kernel<S>, {divide_up(p.num_rows, kWarps)},
           kThreads, stream, p, static_cast<T*>(grad));
  });
}

}  // namespace fcl::ops::cuda
