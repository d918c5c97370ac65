// SPDX-License-Identifier: Apache-2.0
// fcl_ext._C: host-side facts about this build and machine. Sees no torch header, so that the op
// libraries stay free of libpython and this module free of torch's ABI.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "common/cpu_isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts of fcl_ext and CPU detection.";
  m.def(
      "cpu_isa", [] { return fcl::cpu_isa_name(fcl::cpu_isa()); },
      "Name of the instruction set the CPU kernels run on: portable, avx2, avx512, "
      "avx512_bf16 or amx_bf16.");
  m.def(
      "available_cpu_isas",
      [] {
        std::vector<std::string> names;
        for (int isa = 0; isa <= static_cast<int>(fcl::best_cpu_isa()); ++isa) {
          names.emplace_back(fcl::cpu_isa_name(static_cast<fcl::CpuIsa>(isa)));
        }
        return names;
      },
      "Values of FCL_CPU_ISA that this CPU can run, the best last.");
  m.attr("version") = FCL_VERSION;
  m.attr("torch_build_version") = FCL_TORCH_BUILD_VERSION;
  m.attr("compiler") = __VERSION__;
}
