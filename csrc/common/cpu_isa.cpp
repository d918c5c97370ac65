// SPDX-License-Identifier: Apache-2.0
#include "common/cpu_isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#ifdef FCL_X86
#include <cpuid.h>
#endif
#if defined(FCL_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fcl {

namespace {

#ifdef FCL_X86
// Whether there are tile products of bfloat16, and the system lets this process use their
// registers: they are 8 KB a thread to save, so it wants to be asked.
bool may_use_amx() {
#ifdef __linux__
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned kAmxBf16Bit = 1u << 22, kAmxTileBit = 1u << 24;
  if ((edx & kAmxBf16Bit) == 0 || (edx & kAmxTileBit) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // asm/prctl.h, since Linux 5.16
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// Without tiles.
CpuIsa best_vector_isa() {
#ifdef FCL_X86
  // Each list is what the compiler was told it may use in that ISA's files.
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
    return __builtin_cpu_supports("avx512bf16") ? CpuIsa::kAvx512Bf16 : CpuIsa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return CpuIsa::kAvx2;
  }
#endif
  return CpuIsa::kPortable;
}

CpuIsa decide() {
  const char* forced = std::getenv("FCL_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return best_cpu_isa();
  for (CpuIsa isa :
       {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmxBf16}) {
    if (std::strcmp(forced, cpu_isa_name(isa)) != 0) continue;
    // Permission to use tiles is for the process: not asked where it is told to do without.
    const CpuIsa best = isa == CpuIsa::kAmxBf16 ? best_cpu_isa() : best_vector_isa();
    if (isa <= best) return isa;
    throw std::runtime_error(std::string("FCL_CPU_ISA=") + forced +
                             ": this CPU and system allow only " + cpu_isa_name(best));
  }
  throw std::runtime_error(
      std::string("FCL_CPU_ISA: expected portable, avx2, avx512, avx512_bf16 or amx_bf16, got ") +
      forced);
}

}  // namespace

CpuIsa best_cpu_isa() {
  const CpuIsa vectors = best_vector_isa();
#ifdef FCL_X86
  if (vectors == CpuIsa::kAvx512Bf16 && may_use_amx()) return CpuIsa::kAmxBf16;
#endif
  return vectors;
}

CpuIsa cpu_isa() {
  static const CpuIsa isa = decide();
  return isa;
}

const char* cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAmxBf16:
      return "amx_bf16";
    case CpuIsa::kAvx512Bf16:
      return "avx512_bf16";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kAvx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace fcl
