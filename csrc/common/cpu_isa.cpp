// SPDX-License-Identifier: Apache-2.0
#include "common/cpu_isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace fcl {

CpuIsa best_cpu_isa() {
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

namespace {

CpuIsa decide() {
  const CpuIsa best = best_cpu_isa();
  const char* forced = std::getenv("FCL_CPU_ISA");
  if (forced == nullptr || *forced == '\0') return best;
  for (CpuIsa isa : {CpuIsa::kPortable, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16}) {
    if (std::strcmp(forced, cpu_isa_name(isa)) != 0) continue;
    if (isa <= best) return isa;
    throw std::runtime_error(std::string("FCL_CPU_ISA=") + forced + ": this CPU has only " +
                             cpu_isa_name(best));
  }
  throw std::runtime_error(
      std::string("FCL_CPU_ISA: expected portable, avx2, avx512 or avx512_bf16, got ") + forced);
}

}  // namespace

CpuIsa cpu_isa() {
  static const CpuIsa isa = decide();
  return isa;
}

const char* cpu_isa_name(CpuIsa isa) {
  switch (isa) {
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
