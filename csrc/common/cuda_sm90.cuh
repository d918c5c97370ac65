// SPDX-License-Identifier: Apache-2.0
// What a Hopper kernel asks of the hardware, one thin function each: barriers in shared memory
// (mbarrier), tile loads by the copy engine (TMA, also to every block of a cluster), products
// (wgmma), register budgets. Kernels take it as a template parameter: the tests give them a
// stand-in that runs on the host (tests/sm90/host_sm90.h).
//
// Shared memory is named by the byte offset from its start, which is a multiple of 1024.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "common/cuda_wgmma.cuh"
#include "common/half.h"

namespace fcl::cuda {

struct Sm90 {
  using TensorMap = CUtensorMap;

  // --- threads
  // Read anew each time: what is kept for all roles of a block costs the fullest one a register.
  __device__ __forceinline__ static int thread() {
    int index;
    asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(index));
    return index;
  }
  __device__ __forceinline__ static int64_t block_x() {
    int index;
    asm volatile("mov.u32 %0, %%ctaid.x;\n" : "=r"(index));
    return index;
  }
  __device__ __forceinline__ static int64_t block_y() {
    int index;
    asm volatile("mov.u32 %0, %%ctaid.y;\n" : "=r"(index));
    return index;
  }
  // Known to the compiler to be the same in the whole warp.
  __device__ __forceinline__ static int warp() {
    return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
  }
  __device__ __forceinline__ static int cluster_rank() {
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
    return static_cast<int>(rank);
  }
  __device__ __forceinline__ static int cluster_size() {
    uint32_t size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;\n" : "=r"(size));
    return static_cast<int>(size);
  }
  // Every thread of the cluster; orders what they wrote.
  __device__ __forceinline__ static void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;\n" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;\n" ::: "memory");
  }
  __device__ __forceinline__ static void sync_warp() { __syncwarp(); }
  // `threads` threads of the block that meet at barrier `id`, from 1; arrive does not wait.
  __device__ __forceinline__ static void sync_threads(int id, int threads) {
    asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
  }
  __device__ __forceinline__ static void arrive_threads(int id, int threads) {
    asm volatile("bar.arrive %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
  }
  template <typename T>
  __device__ __forceinline__ static T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
  }
  __device__ __forceinline__ static bool any(bool value) {
    return __any_sync(0xffffffffu, value) != 0;
  }
  // Registers of each thread of this warpgroup from here on.
  template <int kCount>
  __device__ __forceinline__ static void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(kCount));
  }
  template <int kCount>
  __device__ __forceinline__ static void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(kCount));
  }

  // --- shared memory
  __device__ __forceinline__ static unsigned char* shared(uint32_t offset) {
    extern __shared__ __align__(1024) unsigned char memory[];
    return memory + offset;
  }
  __device__ __forceinline__ static uint32_t address(uint32_t offset) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared(offset)));
  }
  // Ends the launch where the start of shared memory is not a multiple of 1024: tiles would be
  // swizzled otherwise than descriptors say.
  __device__ __forceinline__ static void require_alignment() {
    if (address(0) % 1024 != 0) stop();
  }
  __device__ __forceinline__ static void stop() { asm volatile("trap;\n"); }
  template <typename T>
  __device__ __forceinline__ static void store(uint32_t offset, T value) {
    *reinterpret_cast<T*>(shared(offset)) = value;
  }
  template <typename T>
  __device__ __forceinline__ static T load(uint32_t offset) {
    return *reinterpret_cast<const T*>(shared(offset));
  }
  // What this thread stored is seen by the copy engine and the tensor cores, once a barrier has
  // told them of it.
  __device__ __forceinline__ static void publish_stores() {
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
  }

  // --- barriers in shared memory: a phase ends when `count` arrivals and all announced bytes are
  // in
  __device__ __forceinline__ static void init_barrier(uint32_t offset, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(address(offset)), "r"(count)
                 : "memory");
  }
  // To the cluster and the copy engine; sync_cluster() has to follow.
  __device__ __forceinline__ static void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  }
  __device__ __forceinline__ static void arrive(uint32_t offset) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(address(offset)) : "memory");
  }
  // Arrives at the same barrier of block `rank` of the cluster.
  __device__ __forceinline__ static void arrive_at(uint32_t offset, int rank) {
    asm volatile(
        "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(address(offset)),
        "r"(rank)
        : "memory");
  }
  // Arrives and announces the bytes that loads will bring.
  __device__ __forceinline__ static void arrive_expecting(uint32_t offset, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(address(offset)),
                 "r"(bytes)
                 : "memory");
  }
  // Until the phase of this parity has ended: 0, 1, 0, ... for the first, second, third phase.
  __device__ __forceinline__ static void wait(uint32_t offset, uint32_t parity) {
    uint32_t done = 0;
    do {
      asm volatile(
          "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
          "selp.u32 %0, 1, 0, p;\n}\n"
          : "=r"(done)
          : "r"(address(offset)), "r"(parity)
          : "memory");
    } while (done == 0);
  }

  // --- copy engine: the box of a matrix at (column, row), zeros past its ends
  __device__ __forceinline__ static void prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
  }
  __device__ __forceinline__ static void load_tile(const TensorMap* map, uint32_t to,
                                                   uint32_t barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(address(to)),
        "l"(map), "r"(column), "r"(row), "r"(address(barrier))
        : "memory");
  }
  // The same to every block of the cluster whose bit is set in `blocks`, with the bytes told to
  // each block's own barrier.
  __device__ __forceinline__ static void load_tile_to_all(const TensorMap* map, uint32_t to,
                                                          uint32_t barrier, int column, int row,
                                                          int blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
        ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(address(to)),
        "l"(map), "r"(column), "r"(row), "r"(address(barrier)), "h"(static_cast<uint16_t>(blocks))
        : "memory");
  }

  // --- tensor cores
  __device__ __forceinline__ static void begin_products() { wgmma_fence(); }
  __device__ __forceinline__ static void commit_products() { wgmma_commit(); }
  template <int kPending>
  __device__ __forceinline__ static void wait_products() {
    wgmma_wait<kPending>();
  }
  template <typename Register, int kCount>
  __device__ __forceinline__ static void hold(Register (&registers)[kCount]) {
    hold_registers(registers);
  }
  template <typename S, bool kMnMajor, int kCount>
  __device__ __forceinline__ static void product(float (&d)[kCount], uint64_t a, uint64_t b,
                                                 bool add) {
    Wgmma<2 * kCount>::template shared<S, kMnMajor>(d, a, b, add);
  }
  template <typename S, bool kMnMajor, int kCount>
  __device__ __forceinline__ static void product(float (&d)[kCount], const uint32_t* a, uint64_t b,
                                                 bool add) {
    Wgmma<2 * kCount>::template registers<S, kMnMajor>(d, a, b, add);
  }

  // --- values
  __device__ __forceinline__ static float infinity() { return __int_as_float(0x7f800000); }
  __device__ __forceinline__ static float max(float a, float b) { return fmaxf(a, b); }
  __device__ __forceinline__ static float multiply_add(float a, float b, float c) {
    return fmaf(a, b, c);
  }
  __device__ __forceinline__ static float exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
  }
  // Rounded to 16 bits, `low` in the lower half.
  template <typename S>
  __device__ __forceinline__ static uint32_t pack(float low, float high) {
    uint32_t packed;
    if constexpr (std::is_same_v<S, BFloat16>) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
    } else {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
    }
    return packed;
  }
};

}  // namespace fcl::cuda
