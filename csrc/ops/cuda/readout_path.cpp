// SPDX-License-Identifier: Apache-2.0
// Table of the paths of softmax_readout on CUDA, fastest first, and the choice for each launch.
#include "ops/cuda/readout_path.h"

#include <string_view>

namespace fcl::ops::cuda {
namespace {

using fcl::cuda::choose_path;
using fcl::cuda::current_device;
using fcl::cuda::set_verified;

constexpr const ReadoutForwardPath* kForward[] = {&kReadoutForwardSm90, &kReadoutForwardMma,
                                                  &kReadoutForwardSimt};
constexpr const ReadoutBackwardPath* kBackward[] = {&kReadoutBackwardSm90, &kReadoutBackwardMma,
                                                    &kReadoutBackwardSimt};

constexpr const char* kForwardOp = "softmax_readout";
constexpr const char* kBackwardOp = "softmax_readout_backward";

}  // namespace

int64_t readout_forward_scratch(const ReadoutProblem& p, bool need_mean) {
  const CudaDevice device = current_device(kForwardOp);
  return choose_path<kForward>(kForwardOp, device, p).scratch(p, need_mean, device);
}

void launch_readout_forward(const ReadoutProblem& p, void* scratch, void* logsumexp, void* mean,
                            cudaStream_t stream) {
  const CudaDevice device = current_device(kForwardOp);
  choose_path<kForward>(kForwardOp, device, p).launch(p, scratch, logsumexp, mean, device, stream);
}

int64_t readout_backward_scratch(const ReadoutProblem& p, const ReadoutBackward& b,
                                 ReadoutGradient which) {
  const CudaDevice device = current_device(kBackwardOp);
  return choose_path<kBackward>(kBackwardOp, device, p, b, which).scratch(p, b, which, device);
}

void launch_readout_backward(const ReadoutProblem& p, const ReadoutBackward& b,
                             ReadoutGradient which, bool accumulate, void* scratch, void* out,
                             cudaStream_t stream) {
  const CudaDevice device = current_device(kBackwardOp);
  choose_path<kBackward>(kBackwardOp, device, p, b, which)
      .launch(p, b, which, accumulate, scratch, out, device, stream);
}

bool set_readout_verified(std::string_view op, std::string_view path, bool is_verified) {
  if (op == kForwardOp) return set_verified<kForward>(path, is_verified);
  if (op == kBackwardOp) return set_verified<kBackward>(path, is_verified);
  return false;
}

}  // namespace fcl::ops::cuda
