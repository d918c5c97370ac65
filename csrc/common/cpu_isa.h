// SPDX-License-Identifier: Apache-2.0
// Which of the per-ISA kernel files this process runs. Torch-free: also used by fcl_ext._C.
#pragma once

namespace fcl {

enum class CpuIsa { kPortable, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };

// The best ISA this CPU has, or the one forced by FCL_CPU_ISA=portable|avx2|avx512|
// avx512_bf16|amx_bf16. Decided once, at the first call. Throws std::runtime_error if the variable
// names an ISA that is unknown or that this CPU lacks: running another one silently would spoil a
// comparison.
CpuIsa cpu_isa();

// The best ISA this CPU has and this build knows, whatever the environment says.
CpuIsa best_cpu_isa();

const char* cpu_isa_name(CpuIsa isa);

// Kernel tables are written once per ISA file and looked up here. Only ops that gain from bfloat16
// instructions have a table for them.
template <typename Table>
const Table& select_by_isa(const Table& portable, [[maybe_unused]] const Table& avx2,
                           [[maybe_unused]] const Table& avx512,
                           [[maybe_unused]] const Table& avx512_bf16,
                           [[maybe_unused]] const Table& amx_bf16) {
  switch (cpu_isa()) {
    case CpuIsa::kAmxBf16:
      return amx_bf16;
    case CpuIsa::kAvx512Bf16:
      return avx512_bf16;
    case CpuIsa::kAvx512:
      return avx512;
    case CpuIsa::kAvx2:
      return avx2;
    default:
      return portable;
  }
}
template <typename Table>
const Table& select_by_isa(const Table& portable, const Table& avx2, const Table& avx512) {
  return select_by_isa(portable, avx2, avx512, avx512, avx512);
}

}  // namespace fcl
