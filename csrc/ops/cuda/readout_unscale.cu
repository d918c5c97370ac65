// SPDX-License-Identifier: Apache-2.0
// Last step of the gradient to prototypes that count at unit length.
#include "common/cuda_device.cuh"
#include "common/cuda_launch.cuh"
#include "ops/cuda/softmax_readout_kernels.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

constexpr int kThreads = 256;

// A warp per row: grad = n (grad - u (u . grad)), u = n w.
template <typename S>
__global__ void __launch_bounds__(kThreads)
    unscale_kernel(ReadoutProblem p, typename Accumulate<S>::type* grad) {
  using T = typename Accumulate<S>::type;
  const S* prototypes = static_cast<const S*>(p.prototypes);
  const T* norms = static_cast<const T*>(p.inverse_norms);
  const int lane = threadIdx.x % kWarp;
  for (int64_t c = global_thread() / kWarp; c < p.num_classes; c += grid_threads() / kWarp) {
    const S* row = prototypes + c * p.dim;
    T* to = grad + c * p.dim;
    const T norm = norms[c];
    T dot = 0;
    for (int64_t d = lane; d < p.dim; d += kWarp) {
      dot = multiply_add(norm * load_value<T>(row + d), to[d], dot);
    }
    dot = warp_sum(dot);
    for (int64_t d = lane; d < p.dim; d += kWarp) {
      to[d] = norm * (to[d] - norm * load_value<T>(row + d) * dot);
    }
  }
}

}  // namespace

void launch_readout_unscale(const ReadoutProblem& p, void* grad, cudaStream_t stream) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulate<S>::type;
    launch("softmax_readout_backward", unscale_kernel<S>,
           {stride_blocks(p.num_classes, kThreads / kWarp)}, kThreads, stream, p,
           static_cast<T*>(grad));
  });
}

}  // namespace fcl::ops::cuda
