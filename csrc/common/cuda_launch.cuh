// SPDX-License-Identifier: Apache-2.0
// Launching kernels: through cudaLaunchKernelEx rather than <<<>>>, so that .cu files are plain C++
// (the host emulation of the tests compiles them as such), with the error check that every launch
// needs.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace fcl::cuda {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  // Clears the error, unless the context is lost, so that the next call starts clean.
  static_cast<void>(cudaGetLastError());
  throw std::runtime_error(std::string("fcl::") + what +
                           ": CUDA error: " + cudaGetErrorString(error));
}

struct Grid {
  int64_t x, y = 1, z = 1;
};

// Threads of a block, and its dynamic shared memory.
struct Block {
  int threads;
  int shared_bytes;

  Block(int threads, int shared_bytes = 0) : threads(threads), shared_bytes(shared_bytes) {}
};

template <typename... Parameters, typename... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), Grid grid, Block block,
            cudaStream_t stream, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error(std::string("fcl::") + op + ": too large for one launch");
  }
  if (block.shared_bytes > 48 * 1024) {  // more than kernels get unasked
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    block.shared_bytes),
               op);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
                        static_cast<unsigned>(grid.z));
  config.blockDim = dim3(static_cast<unsigned>(block.threads));
  config.dynamicSmemBytes = static_cast<size_t>(block.shared_bytes);
  config.stream = stream;
  check_cuda(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), op);
  check_cuda(cudaGetLastError(), op);
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of a grid-stride loop over `count` items.
inline int64_t stride_blocks(int64_t count, int64_t threads) {
  return std::min<int64_t>(divide_up(count, threads), 1 << 16);
}

}  // namespace fcl::cuda
