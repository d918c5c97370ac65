// SPDX-License-Identifier: Apache-2.0
// Tensor cores and asynchronous copies of compute capability 8.0 and up, one instruction per
// function. Addresses of dynamic shared memory are 32-bit numbers that start at shared_base().
// tests/cuda_emulation has a scalar stand-in of this header for the host.
#pragma once

#include <cstdint>

#include "common/cuda_device.cuh"

namespace fcl::cuda {
namespace {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define FCL_SM80_ASM(...) asm volatile(__VA_ARGS__)
#else  // never launched there, but older architectures can be built for
#define FCL_SM80_ASM(...) __trap()
#endif

// Start of the dynamic shared memory, a multiple of 128.
__device__ __forceinline__ uint32_t shared_base() {
  extern __shared__ __align__(128) unsigned char fcl_dynamic_shared[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(fcl_dynamic_shared));
}

__device__ __forceinline__ uint32_t load_shared(uint32_t at) {
  uint32_t value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(at));
  return value;
}
__device__ __forceinline__ void load_shared(uint32_t (&to)[4], uint32_t at) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(at));
}
__device__ __forceinline__ void store_shared(uint32_t at, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(value) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t at, const uint32_t (&value)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(value[0]), "r"(value[1]),
               "r"(value[2]), "r"(value[3])
               : "memory");
}

// Starts a copy of 16 bytes, or writes zeros if not `inside` (`from` is not read then).
__device__ __forceinline__ void copy_async(uint32_t to, const void* from, bool inside) {
  FCL_SM80_ASM("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(from)), "r"(inside ? 16 : 0) : "memory");
}
// Makes a group of the copies this thread has started since the last one.
__device__ __forceinline__ void commit_copies() {
  FCL_SM80_ASM("cp.async.commit_group;" :: : "memory");
}
// Until all but the last kPending groups of this thread are there.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  FCL_SM80_ASM("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four matrices of 8 rows x 16 bytes, whose rows' addresses come from the lanes 8 i ... 8 i + 7.
// Lane l gets of each the word l % 4 of row l / 4; transposed, of 16-bit values, the two in rows
// 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], uint32_t row) {
  FCL_SM80_ASM("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]),
               "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row));
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], uint32_t row) {
  FCL_SM80_ASM(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]),
      "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row));
}

// d[16 x 8] += a[16 x 16] . b[16 x 8], in float.
template <typename S>
__device__ __forceinline__ void multiply_matrices(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<S, BFloat16>) {
    FCL_SM80_ASM(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]),
        "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0),
        "r"(b1));
  } else {
    FCL_SM80_ASM(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]),
        "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0),
        "r"(b1));
  }
}
// d[16 x 8] += a[16 x 8] . b[8 x 8] of tf32 values.
__device__ __forceinline__ void multiply_matrices_tf32(float (&d)[4], const uint32_t (&a)[4],
                                                       uint32_t b0, uint32_t b1) {
  FCL_SM80_ASM(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]),
      "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0),
      "r"(b1));
}

// Two floats, rounded to nearest, in one word: the first in its lower half.
template <typename S>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  uint32_t pair = 0;
  if constexpr (std::is_same_v<S, BFloat16>) {
    FCL_SM80_ASM("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    FCL_SM80_ASM("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

// The value, unknown to the compiler: what depends on it is computed where it is used, rather than
// once and kept in registers, which tile loops have none to spare of.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// 2^x to 2 units in the last place; subnormal results are zero.
__device__ __forceinline__ float exp2_approximate(float x) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
  return value;
}

#undef FCL_SM80_ASM

}  // namespace
}  // namespace fcl::cuda
