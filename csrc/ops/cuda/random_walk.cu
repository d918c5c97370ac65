// SPDX-License-Identifier: Apache-2.0
// One step of the random walk on CUDA (the path `simt`), and the norms its stopping rule needs. A
// group of lanes owns a row and goes through its edges; each lane keeps its own columns, 16 bytes
// at a time, so that the gather of a neighbour is one coalesced read and no sum crosses threads.
#include "common/cuda_launch.cuh"
#include "common/cuda_limits.h"
#include "common/cuda_vector.cuh"
#include "ops/cuda/graph_kernels.h"
#include "ops/cuda/walk_path.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

constexpr int kThreads = 256;

template <typename T, typename Index, int kSize>
__global__ void __launch_bounds__(kThreads)
    step_kernel(CsrGraph graph, int lanes, const T* __restrict__ values,
                const T* __restrict__ state, const T* __restrict__ restart, int64_t dim, T damping,
                T* __restrict__ out) {
  const Index* __restrict__ col = static_cast<const Index*>(graph.col);
  const int64_t row = global_thread() / lanes;
  const int lane = static_cast<int>(global_thread() % lanes);
  if (row >= graph.num_rows) return;
  const int64_t begin = graph.crow[row];
  const int64_t end = graph.crow[row + 1];
  for (int64_t d = lane * kSize; d < dim; d += lanes * kSize) {
    Vector<T, kSize> total = {};
    for (int64_t run = begin; run < end; run += kFlush) {
      const int64_t run_end = min(run + kFlush, end);
      Vector<T, kSize> sum = {};
#pragma unroll 4
      for (int64_t e = run; e < run_end; ++e) {
        const int64_t column = col[e];
        const T value = values[e];
        // Padding reads a row that exists and drops it: without a branch, loads overlap.
        const bool counts = column >= 0;
        const Vector<T, kSize> x = load_vector<kSize>(state + (counts ? column : row) * dim + d);
#pragma unroll
        for (int i = 0; i < kSize; ++i) {
          sum.at[i] = counts ? multiply_add(value, x.at[i], sum.at[i]) : sum.at[i];
        }
      }
#pragma unroll
      for (int i = 0; i < kSize; ++i) total.at[i] += sum.at[i];
    }
    Vector<T, kSize> start = {};
    if (restart != nullptr) start = load_vector<kSize>(restart + row * dim + d);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      total.at[i] = damping * total.at[i] + (T(1) - damping) * start.at[i];
    }
    store_vector<kSize>(out + row * dim + d, total);
  }
}

template <typename T, typename Index>
void step_typed(const CsrGraph& graph, const void* values, const void* state, const void* restart,
                int64_t dim, double damping, void* out, cudaStream_t stream) {
  const bool wide = rows_are_wide<T>(dim, {state, restart, out});
  const int64_t vectors = wide ? dim / kWide<T> : dim;
  int lanes = 1;
  while (lanes < kWarp && lanes < vectors) lanes *= 2;
  launch("random_walk", wide ? step_kernel<T, Index, kWide<T>> : step_kernel<T, Index, 1>,
         {divide_up(graph.num_rows * lanes, kThreads)}, kThreads, stream, graph, lanes,
         static_cast<const T*>(values), static_cast<const T*>(state),
         static_cast<const T*>(restart), dim, static_cast<T>(damping), static_cast<T*>(out));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const T* values, const int64_t* order, int64_t count, T* out) {
  for (int64_t e = global_thread(); e < count; e += grid_threads()) out[e] = values[order[e]];
}

template <typename T, typename Index>
__global__ void __launch_bounds__(kThreads)
    row_sums_kernel(CsrGraph graph, const T* values, double* out) {
  const Index* col = static_cast<const Index*>(graph.col);
  const int lane = threadIdx.x % kWarp;
  const int64_t row = global_thread() / kWarp;
  if (row >= graph.num_rows) return;
  double sum = 0;
  for (int64_t e = graph.crow[row] + lane; e < graph.crow[row + 1]; e += kWarp) {
    if (col[e] >= 0) sum += fabs(static_cast<double>(values[e]));
  }
  sum = warp_sum(sum);
  if (lane == 0) out[row] = sum;
}

// Largest of two, NaN if there is one.
__device__ __forceinline__ double larger(double a, double b) { return b > a || b != b ? b : a; }

template <typename T>
__device__ __forceinline__ double distance(const T* a, const T* b, int64_t i) {
  const T difference = b == nullptr ? a[i] : a[i] - b[i];
  return fabs(static_cast<double>(difference));
}

constexpr int kNormColumns = 32;
constexpr int kNormRows = kThreads / kNormColumns;
constexpr int64_t kNormBlocks = 256;

int64_t norm_blocks(int64_t rows) { return std::min(divide_up(rows, kNormRows), kNormBlocks); }

// Per block of rows and column: the largest |a - b|, or their sum. A block holds 8 x 32 threads.
template <typename T, bool kSum>
__global__ void __launch_bounds__(kThreads)
    column_kernel(const T* a, const T* b, int64_t rows, int64_t dim, double* partial) {
  __shared__ double shared[kNormRows][kNormColumns];
  const int x = threadIdx.x % kNormColumns;
  const int y = threadIdx.x / kNormColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kNormColumns + x;
  double value = 0;
  if (column < dim) {
    for (int64_t row = blockIdx.y * kNormRows + y; row < rows; row += gridDim.y * kNormRows) {
      const double d = distance(a, b, row * dim + column);
      value = kSum ? value + d : larger(value, d);
    }
  }
  shared[y][x] = value;
  __syncthreads();  // all rows of the block are in
  if (y != 0 || column >= dim) return;
  for (int i = 1; i < kNormRows; ++i) {
    value = kSum ? value + shared[i][x] : larger(value, shared[i][x]);
  }
  partial[blockIdx.y * dim + column] = value;
}

// One block: totals of the columns, then the largest.
template <bool kSum>
__global__ void __launch_bounds__(kThreads)
    largest_kernel(const double* partial, int64_t blocks, int64_t dim, double* out) {
  __shared__ double shared[kThreads];
  double most = 0;
  for (int64_t column = threadIdx.x; column < dim; column += kThreads) {
    double value = 0;
    for (int64_t i = 0; i < blocks; ++i) {
      const double v = partial[i * dim + column];
      value = kSum ? value + v : larger(value, v);
    }
    most = larger(most, value);
  }
  shared[threadIdx.x] = most;
  __syncthreads();  // all columns are in
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kThreads; ++i) most = larger(most, shared[i]);
  *out = most;
}

template <typename T, bool kSum>
double norm_typed(const void* a, const void* b, int64_t rows, int64_t dim, void* scratch,
                  cudaStream_t stream) {
  const char* op = "random_walk_tol";
  const int64_t blocks = norm_blocks(rows);
  double* result = static_cast<double*>(scratch);
  double* partial = result + 1;
  launch(op, column_kernel<T, kSum>, {divide_up(dim, kNormColumns), blocks}, kThreads, stream,
         static_cast<const T*>(a), static_cast<const T*>(b), rows, dim, partial);
  launch(op, largest_kernel<kSum>, {1}, kThreads, stream, partial, blocks, dim, result);
  double host = 0;
  check_cuda(cudaMemcpyAsync(&host, result, sizeof(host), cudaMemcpyDeviceToHost, stream), op);
  check_cuda(cudaStreamSynchronize(stream), op);
  return host;
}

// Calls f(T{}, Index{}) for the types named.
template <typename F>
void dispatch_graph(bool is_double, bool wide, const F& f) {
  auto with = [&](auto value) {
    if (wide) {
      f(value, int64_t{});
    } else {
      f(value, int32_t{});
    }
  };
  if (is_double) {
    with(0.0);
  } else {
    with(0.0f);
  }
}

}  // namespace

const WalkPath kWalkSimt = {
    "simt",
    [](const CudaDevice&) { return true; },
    [](int64_t) { return true; },
    [](const WalkStep& p, cudaStream_t stream) {
      if (p.dim == 0) return;
      dispatch_graph(p.state.dtype == Dtype::kFloat64, p.graph.wide, [&](auto value, auto index) {
        step_typed<decltype(value), decltype(index)>(
            p.graph, p.values, p.state.data, p.restart.data, p.dim, p.damping, p.out.data, stream);
      });
    },
    false,
};

void launch_gather(bool is_double, const void* values, const int64_t* order, int64_t count,
                   void* out, cudaStream_t stream) {
  dispatch_graph(is_double, false, [&](auto value, auto) {
    using T = decltype(value);
    launch("random_walk", gather_kernel<T>, {stride_blocks(count, kThreads)}, kThreads, stream,
           static_cast<const T*>(values), order, count, static_cast<T*>(out));
  });
}

void launch_absolute_row_sums(const CsrGraph& graph, bool is_double, const void* values,
                              double* out, cudaStream_t stream) {
  dispatch_graph(is_double, graph.wide, [&](auto value, auto index) {
    using T = decltype(value);
    launch("random_walk_tol", row_sums_kernel<T, decltype(index)>,
           {divide_up(graph.num_rows, kThreads / kWarp)}, kThreads, stream, graph,
           static_cast<const T*>(values), out);
  });
}

size_t norm_scratch(int64_t rows, int64_t dim) {
  return (1 + norm_blocks(rows) * dim) * sizeof(double);
}

double norm_of_difference(bool is_double, bool sum_columns, const void* a, const void* b,
                          int64_t rows, int64_t dim, void* scratch, cudaStream_t stream) {
  if (rows == 0 || dim == 0) return 0;
  double norm = 0;
  dispatch_graph(is_double, false, [&](auto value, auto) {
    using T = decltype(value);
    norm = sum_columns ? norm_typed<T, true>(a, b, rows, dim, scratch, stream)
                       : norm_typed<T, false>(a, b, rows, dim, scratch, stream);
  });
  return norm;
}

}  // namespace fcl::ops::cuda
