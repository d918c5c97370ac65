// SPDX-License-Identifier: Apache-2.0
// edge_dot on CUDA: a warp per row takes the edges of the row one by one, its lanes the columns.
#include "common/cuda_launch.cuh"
#include "common/cuda_vector.cuh"
#include "ops/cuda/graph_kernels.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

constexpr int kThreads = 256;

template <typename T, typename Index, int kSize>
__global__ void __launch_bounds__(kThreads)
    edge_dot_kernel(CsrGraph graph, const T* left, const T* right, int64_t dim, T factor,
                    bool accumulate, T* out) {
  const Index* col = static_cast<const Index*>(graph.col);
  const int lane = threadIdx.x % kWarp;
  const int64_t row = global_thread() / kWarp;
  if (row >= graph.num_rows) return;
  for (int64_t e = graph.crow[row]; e < graph.crow[row + 1]; ++e) {
    const int64_t column = col[e];
    T sum = 0;
    if (column >= 0) {
      for (int64_t d = lane * kSize; d < dim; d += kWarp * kSize) {
        const Vector<T, kSize> a = load_vector<kSize>(left + row * dim + d);
        const Vector<T, kSize> b = load_vector<kSize>(right + column * dim + d);
#pragma unroll
        for (int i = 0; i < kSize; ++i) sum = multiply_add(a.at[i], b.at[i], sum);
      }
    }
    sum = factor * warp_sum(sum);
    if (lane == 0) out[e] = accumulate ? out[e] + sum : sum;
  }
}

template <typename T, typename Index>
void edge_dot_typed(const CsrGraph& graph, const void* left, const void* right, int64_t dim,
                    double factor, bool accumulate, void* out, cudaStream_t stream) {
  const bool wide = rows_are_wide<T>(dim, {left, right});
  launch("edge_dot", wide ? edge_dot_kernel<T, Index, kWide<T>> : edge_dot_kernel<T, Index, 1>,
         {divide_up(graph.num_rows, kThreads / kWarp)}, kThreads, stream, graph,
         static_cast<const T*>(left), static_cast<const T*>(right), dim, static_cast<T>(factor),
         accumulate, static_cast<T*>(out));
}

}  // namespace

void launch_edge_dot(const CsrGraph& graph, bool is_double, const void* left, const void* right,
                     int64_t dim, double factor, bool accumulate, void* out, cudaStream_t stream) {
  auto run = [&](auto zero) {
    using T = decltype(zero);
    if (graph.wide) {
      edge_dot_typed<T, int64_t>(graph, left, right, dim, factor, accumulate, out, stream);
    } else {
      edge_dot_typed<T, int32_t>(graph, left, right, dim, factor, accumulate, out, stream);
    }
  };
  if (is_double) {
    run(0.0);
  } else {
    run(0.0f);
  }
}

}  // namespace fcl::ops::cuda
