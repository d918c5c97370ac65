// SPDX-License-Identifier: Apache-2.0
// Stand-in for CUDA's header of the same name: lets a C++ compiler take the .cu files as they are
// and runs every thread of a block as a fiber (fibers.cpp). __shared__ variables are static: blocks
// run one after the other, and a block finds there what the one before it left.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#include "cuda_runtime_api.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace fcl_emulation {

// Runs one kernel: every block, all of its threads between barriers.
void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);
// The same in clusters of blocks along x, on a machine of their own (clusters.cpp).
void run_clusters(dim3 grid, int threads, size_t shared_bytes, int size,
                  const std::function<void()>& thread);
bool reversed();
extern long atomics;
// Ends the launch.
void fail(const char* what);
// The dynamic shared memory: `bytes` at an offset that is a multiple of them.
unsigned char* shared_memory(uint32_t offset, uint32_t bytes);
// Copies in groups, for each thread; from null: zeros.
void copy_async(void* to, const void* from, size_t bytes);
void commit_copies();
void wait_copies(size_t pending);
void wait_block();
void wait_warp();
// What the given lane of this thread's warp passed in the same call.
uint64_t exchange(uint64_t mine, int lane);
// Every lane of the warp gives some words; they can be read until the call after the next.
void exchange_words(const uint32_t* mine, int count);
const uint32_t* words_of(int lane);
// Tensor cores' product of the warp's fragments, each lane's first of a, then of b, in the order of
// registers. Fragments are those of m16n8k16 (kDepth = 16: 8 values of a, 4 of b), and of m16n8k8
// with tf32 (kDepth = 8: 4 and 2). With g = lane / 4 and t = lane % 4, counting in groups of
// kDepth / 8 columns of a (rows of b): a has rows g, g + 8 x groups t, t + 4; b has groups t, t + 4
// of column g; the product rows g, g + 8 x columns 2 t, 2 t + 1.
template <int kDepth>
void multiply_fragments(const float (&mine)[kDepth * 3 / 4], double (&sums)[4]);
unsigned ballot(bool mine);
int lane();

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename T>
T exchange_value(T value, int lane) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  bits = exchange(bits, lane);
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace fcl_emulation

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    dim3 clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  const cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  const auto thread = [&] { kernel(arguments...); };
  if (config->numAttrs > 0) {
    fcl_emulation::run_clusters(config->gridDim, static_cast<int>(config->blockDim.x),
                                config->dynamicSmemBytes,
                                static_cast<int>(config->attrs->val.clusterDim.x), thread);
  } else {
    fcl_emulation::run(config->gridDim, config->blockDim, config->dynamicSmemBytes, thread);
  }
  return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

inline void __syncthreads() { fcl_emulation::wait_block(); }
inline void __syncwarp(unsigned = ~0u) { fcl_emulation::wait_warp(); }
template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return fcl_emulation::exchange_value(value, lane);
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return fcl_emulation::exchange_value(value, fcl_emulation::lane() ^ mask);
}
// Below the first lanes, a lane gets its own value back.
template <typename T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const int lane = fcl_emulation::lane();
  return fcl_emulation::exchange_value(value, lane < delta ? lane : lane - delta);
}
inline unsigned __ballot_sync(unsigned, bool value) { return fcl_emulation::ballot(value); }
inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }

// Fibers do not interrupt each other. Calls are counted.
inline int atomicAdd(int* at, int value) {
  ++fcl_emulation::atomics;
  const int before = *at;
  *at += value;
  return before;
}

inline bool __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }

inline float __uint_as_float(unsigned bits) { return fcl_emulation::bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return fcl_emulation::bit_cast<unsigned>(value); }
inline double __longlong_as_double(long long bits) { return fcl_emulation::bit_cast<double>(bits); }

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}
