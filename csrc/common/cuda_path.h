// SPDX-License-Identifier: Apache-2.0
// The choice among an operator's sets of CUDA kernels ("paths"). FCL_CUDA_PATH=<name> asks for one:
// a device that cannot run it is an error, and work that it has no kernels for goes to the last of
// the operator's table, which does all work on every device. Unasked, a launch takes the first of
// the table that runs, has the kernels, and was verified on a GPU (fcl_ext/cuda_paths.py knows).
#pragma once

#include <cstddef>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fcl::cuda {

struct CudaDevice {
  int capability;  // 80 for 8.0
  int multiprocessors;
  int l2_bytes;
};

CudaDevice current_device(const char* op);

// What FCL_CUDA_PATH asks for; empty: nothing. A name that no operator has is an error.
std::string_view asked_path(const char* op);

// Throws: the device, or the build, cannot run the path asked for.
[[noreturn]] void refuse_path(const char* op, const char* path, const CudaDevice& device);

// Which entries of a table may be taken unasked.
template <const auto& kTable>
inline bool verified_paths[std::size(kTable)] = {};

template <const auto& kTable, typename... Work>
const auto& choose_path(const char* op, const CudaDevice& device, const Work&... work) {
  const std::string_view asked = asked_path(op);
  for (std::size_t i = 0; i + 1 < std::size(kTable); ++i) {
    const auto& path = *kTable[i];
    if (asked.empty() ? !verified_paths<kTable>[i] : asked != path.name) continue;
    const bool runs = path.runs_on(device);
    if (!runs && !asked.empty()) refuse_path(op, path.name, device);
    if (runs && path.supports(work...)) return path;
  }
  return *kTable[std::size(kTable) - 1];
}

// False if the table has no such path.
template <const auto& kTable>
bool set_verified(std::string_view path, bool is_verified) {
  for (std::size_t i = 0; i < std::size(kTable); ++i) {
    if (path != kTable[i]->name) continue;
    verified_paths<kTable>[i] = is_verified;
    return true;
  }
  return false;
}

}  // namespace fcl::cuda

// Called by fcl_ext at import: may the path of an operator (as in torch.ops.fcl) be taken unasked?
// False if there is no such path.
extern "C" __attribute__((visibility("default"))) bool fcl_cuda_set_verified(const char* op,
                                                                             const char* path,
                                                                             bool is_verified);
