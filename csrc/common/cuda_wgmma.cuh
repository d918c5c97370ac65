// SPDX-License-Identifier: Apache-2.0
// wgmma: the asynchronous matrix product of a warpgroup on Hopper, d[64 x N] (+)= a . b with 16
// terms of bfloat16 or float16 summed in float. b lies in shared memory, a there or in registers
// (sm90_layout.h says where). Registers of d and a belong to the tensor cores from the issue to the
// wait.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/half.h"
#include "common/sm90_layout.h"

namespace fcl::cuda {
namespace {

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
}
// Until at most kPending committed groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving or copying these registers across this point: it does not know
// that a product under way still writes them.
template <int kCount>
__device__ __forceinline__ void hold_registers(float (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
template <int kCount>
__device__ __forceinline__ void hold_registers(uint32_t (&a)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(a[i])::"memory");
}

// One struct for each N. Inline assembly wants its operands spelled out: FCL_D lists eight of them,
// FCL_L their names.
template <int N>
struct Wgmma;

#define FCL_D(i)                                                                              \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define FCL_D32(i) FCL_D(i), FCL_D(i + 8), FCL_D(i + 16), FCL_D(i + 24)
#define FCL_L0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define FCL_L16_23 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define FCL_L16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define FCL_L32 ",%32,%33,%34,%35,%36,%37,%38,%39"
#define FCL_L40 ",%40,%41,%42,%43,%44,%45,%46,%47"
#define FCL_L48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define FCL_L64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define FCL_L80 ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define FCL_L96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define FCL_L112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define FCL_TO_64 FCL_L0 FCL_L16
#define FCL_TO_80 FCL_TO_64 FCL_L32
#define FCL_TO_96 FCL_TO_80 FCL_L40
#define FCL_TO_128 FCL_TO_96 FCL_L48
#define FCL_TO_192 FCL_TO_128 FCL_L64 FCL_L80
#define FCL_TO_256 FCL_TO_192 FCL_L96 FCL_L112

// A and B: descriptors; P: operand number of the predicate, T: of whether b is MN-major.
#define FCL_WGMMA_SHARED(N, TYPE, LIST, A, B, P, T, ...)                                         \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P                                             \
               ", 0;\n"                                                                          \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" LIST "}, " A \
               ", " B ", p, 1, 1, 0, " T ";\n}\n"                                                \
               : __VA_ARGS__                                                                     \
               : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kMnMajor ? 1 : 0))
#define FCL_WGMMA_REGISTERS(N, TYPE, LIST, A, B, P, T, ...)                                       \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P                                              \
               ", 0;\n"                                                                           \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" LIST "}, {" A \
               "}, " B ", p, 1, 1, " T ";\n}\n"                                                   \
               : __VA_ARGS__                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(add)),  \
                 "n"(kMnMajor ? 1 : 0))
#define FCL_WGMMA(N, LIST, X0, X1, X2, X3, X4, X5, X6, ...)                                     \
  template <>                                                                                   \
  struct Wgmma<N> {                                                                             \
    template <typename S, bool kMnMajor>                                                        \
    __device__ __forceinline__ static void shared(float (&d)[N / 2], uint64_t a, uint64_t b,    \
                                                  bool add) {                                   \
      if constexpr (std::is_same_v<S, BFloat16>) {                                              \
        FCL_WGMMA_SHARED(N, "bf16", LIST, X0, X1, X2, X3, __VA_ARGS__);                         \
      } else {                                                                                  \
        FCL_WGMMA_SHARED(N, "f16", LIST, X0, X1, X2, X3, __VA_ARGS__);                          \
      }                                                                                         \
    }                                                                                           \
    template <typename S, bool kMnMajor>                                                        \
    __device__ __forceinline__ static void registers(float (&d)[N / 2], const uint32_t* a,      \
                                                     uint64_t b, bool add) {                    \
      if constexpr (std::is_same_v<S, BFloat16>) {                                              \
        FCL_WGMMA_REGISTERS(N, "bf16", LIST, X0 "," X1 "," X2 "," X3, X4, X5, X6, __VA_ARGS__); \
      } else {                                                                                  \
        FCL_WGMMA_REGISTERS(N, "f16", LIST, X0 "," X1 "," X2 "," X3, X4, X5, X6, __VA_ARGS__);  \
      }                                                                                         \
    }                                                                                           \
  };

FCL_WGMMA(32, FCL_L0, "%16", "%17", "%18", "%19", "%20", "%21", "%22", FCL_D(0), FCL_D(8))
FCL_WGMMA(48, FCL_L0 FCL_L16_23, "%24", "%25", "%26", "%27", "%28", "%29", "%30", FCL_D(0),
          FCL_D(8), FCL_D(16))
FCL_WGMMA(64, FCL_TO_64, "%32", "%33", "%34", "%35", "%36", "%37", "%38", FCL_D32(0))
FCL_WGMMA(80, FCL_TO_80, "%40", "%41", "%42", "%43", "%44", "%45", "%46", FCL_D32(0), FCL_D(32))
FCL_WGMMA(96, FCL_TO_96, "%48", "%49", "%50", "%51", "%52", "%53", "%54", FCL_D32(0), FCL_D(32),
          FCL_D(40))
FCL_WGMMA(128, FCL_TO_128, "%64", "%65", "%66", "%67", "%68", "%69", "%70", FCL_D32(0), FCL_D32(32))
FCL_WGMMA(192, FCL_TO_192, "%96", "%97", "%98", "%99", "%100", "%101", "%102", FCL_D32(0),
          FCL_D32(32), FCL_D32(64))
FCL_WGMMA(256, FCL_TO_256, "%128", "%129", "%130", "%131", "%132", "%133", "%134", FCL_D32(0),
          FCL_D32(32), FCL_D32(64), FCL_D32(96))

#undef FCL_D
#undef FCL_D32
#undef FCL_L0
#undef FCL_L16_23
#undef FCL_L16
#undef FCL_L32
#undef FCL_L40
#undef FCL_L48
#undef FCL_L64
#undef FCL_L80
#undef FCL_L96
#undef FCL_L112
#undef FCL_TO_64
#undef FCL_TO_80
#undef FCL_TO_96
#undef FCL_TO_128
#undef FCL_TO_192
#undef FCL_TO_256
#undef FCL_WGMMA_SHARED
#undef FCL_WGMMA_REGISTERS
#undef FCL_WGMMA

}  // namespace
}  // namespace fcl::cuda
