// SPDX-License-Identifier: Apache-2.0
// Table of the paths of softmax_readout on CUDA, fastest first, and the choice for each launch.
#include "ops/cuda/readout_path.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace fcl::ops::cuda {
namespace {

constexpr const ReadoutForwardPath* kForward[] = {&kReadoutForwardSm90, &kReadoutForwardMma,
                                                  &kReadoutForwardSimt};
constexpr const ReadoutBackwardPath* kBackward[] = {&kReadoutBackwardSm90, &kReadoutBackwardMma,
                                                    &kReadoutBackwardSimt};

// Which entries of a table may be taken unasked.
template <const auto& kTable>
bool verified[std::size(kTable)] = {};

void check(cudaError_t error, const char* op) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("fcl::") + op +
                           ": CUDA error: " + cudaGetErrorString(error));
}

CudaDevice current_device(const char* op) {
  int device = 0;
  int major = 0;
  int minor = 0;
  int multiprocessors = 0;
  check(cudaGetDevice(&device), op);
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), op);
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), op);
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), op);
  return {10 * major + minor, multiprocessors};
}

// What FCL_CUDA_PATH asks for; empty: nothing.
std::string_view asked_path(const char* op) {
  const char* variable = std::getenv("FCL_CUDA_PATH");
  const std::string_view asked = variable == nullptr ? "" : variable;
  std::string names;
  bool known = asked.empty();
  const auto look = [&](const char* name) {
    known = known || asked == name;
    if (names.find(name) == std::string::npos)
      names += std::string(names.empty() ? "" : ", ") + name;
  };
  for (const auto* path : kForward) look(path->name);
  for (const auto* path : kBackward) look(path->name);
  if (known) return asked;
  throw std::runtime_error(std::string("fcl::") + op + ": expected FCL_CUDA_PATH to be one of " +
                           names + ", got " + std::string(asked));
}

// The last entry of a table takes all work on every device.
template <const auto& kTable, typename... Work>
const auto& choose(const char* op, const CudaDevice& device, const Work&... work) {
  const std::string_view asked = asked_path(op);
  for (size_t i = 0; i + 1 < std::size(kTable); ++i) {
    const auto& path = *kTable[i];
    if (asked.empty() ? !verified<kTable>[i] : asked != path.name) continue;
    const bool runs = path.runs_on(device);
    if (!runs && !asked.empty()) {
      throw std::runtime_error(
          std::string("fcl::") + op + ": FCL_CUDA_PATH=" + path.name +
          ", but this device (compute capability " + std::to_string(device.capability / 10) + "." +
          std::to_string(device.capability % 10) + ") or this build has no such kernels");
    }
    if (runs && path.supports(work...)) return path;
  }
  return *kTable[std::size(kTable) - 1];
}

template <const auto& kTable>
bool set_verified(std::string_view path, bool is_verified) {
  for (size_t i = 0; i < std::size(kTable); ++i) {
    if (path != kTable[i]->name) continue;
    verified<kTable>[i] = is_verified;
    return true;
  }
  return false;
}

constexpr const char* kForwardOp = "softmax_readout";
constexpr const char* kBackwardOp = "softmax_readout_backward";

}  // namespace

int64_t readout_forward_scratch(const ReadoutProblem& p, bool need_mean) {
  const CudaDevice device = current_device(kForwardOp);
  return choose<kForward>(kForwardOp, device, p).scratch(p, need_mean, device);
}

void launch_readout_forward(const ReadoutProblem& p, void* scratch, void* logsumexp, void* mean,
                            cudaStream_t stream) {
  const CudaDevice device = current_device(kForwardOp);
  choose<kForward>(kForwardOp, device, p).launch(p, scratch, logsumexp, mean, device, stream);
}

int64_t readout_backward_scratch(const ReadoutProblem& p, const ReadoutBackward& b,
                                 ReadoutGradient which) {
  const CudaDevice device = current_device(kBackwardOp);
  return choose<kBackward>(kBackwardOp, device, p, b, which).scratch(p, b, which, device);
}

void launch_readout_backward(const ReadoutProblem& p, const ReadoutBackward& b,
                             ReadoutGradient which, bool accumulate, void* scratch, void* out,
                             cudaStream_t stream) {
  const CudaDevice device = current_device(kBackwardOp);
  choose<kBackward>(kBackwardOp, device, p, b, which)
      .launch(p, b, which, accumulate, scratch, out, device, stream);
}

}  // namespace fcl::ops::cuda

bool fcl_cuda_set_verified(const char* op, const char* path, bool is_verified) {
  using namespace fcl::ops::cuda;
  if (op == std::string_view(kForwardOp)) return set_verified<kForward>(path, is_verified);
  if (op == std::string_view(kBackwardOp)) return set_verified<kBackward>(path, is_verified);
  return false;
}
