// SPDX-License-Identifier: Apache-2.0
#include "common/cuda_launch.cuh"
#include "ops/cuda/inverse_norms.h"
#include "ops/cuda/row_norm.cuh"

namespace fcl::ops::cuda {
namespace {

constexpr int kThreads = 256;

// A warp per row, 16 bytes a lane where rows allow it: this reads all prototypes once.
template <typename S>
__global__ void __launch_bounds__(kThreads)
    inverse_norms_kernel(const S* rows, int64_t num_rows, int64_t dim, bool wide,
                         typename Accumulate<S>::type* norms) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = global_thread() / kWarp; i < num_rows; i += grid_threads() / kWarp) {
    const S* row = rows + i * dim;
    double squared = 0;
    if (wide) {
      for (int64_t d = lane * kWide<S>; d < dim; d += kWarp * kWide<S>) {
        const Vector<S, kWide<S>> values = load_vector<kWide<S>>(row + d);
#pragma unroll
        for (int j = 0; j < kWide<S>; ++j) {
          const double x = load_value<double>(values.at + j);
          squared = fma(x, x, squared);
        }
      }
      squared = warp_sum(squared);
    } else {
      squared = warp_dot(row, row, dim);
    }
    if (lane == 0) norms[i] = static_cast<typename Accumulate<S>::type>(inverse_root(squared));
  }
}

}  // namespace

void launch_inverse_norms(const char* op, Dtype dtype, const void* rows, int64_t num_rows,
                          int64_t dim, void* norms, cudaStream_t stream) {
  dispatch_dtype(dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulate<S>::type;
    launch(op, inverse_norms_kernel<S>, {stride_blocks(num_rows, kThreads / kWarp)}, kThreads,
           stream, static_cast<const S*>(rows), num_rows, dim, rows_are_wide<S>(dim, {rows}),
           static_cast<T*>(norms));
  });
}

}  // namespace fcl::ops::cuda
