// SPDX-License-Identifier: Apache-2.0
// Plain C entries to the launches of softmax_readout, for what the operators' schemas cannot say.
#include <cstring>
#include <vector>

#include "ops/cuda/softmax_readout_kernels.h"

using namespace fcl::ops::cuda;

namespace {

// NaN in every floating type, as in device_scratch.
std::vector<char> scratch(int64_t bytes) { return std::vector<char>(bytes, '\xff'); }

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void emulation_readout(const ReadoutProblem* p,
                                                              void* logsumexp, void* mean) {
  std::vector<char> memory = scratch(readout_forward_scratch(*p, mean != nullptr));
  launch_readout_forward(*p, memory.data(), logsumexp, mean, nullptr);
}

__attribute__((visibility("default"))) void emulation_readout_backward(const ReadoutProblem* p,
                                                                       const ReadoutBackward* b,
                                                                       int which, bool accumulate,
                                                                       void* out) {
  const auto gradient = static_cast<ReadoutGradient>(which);
  std::vector<char> memory = scratch(readout_backward_scratch(*p, *b, gradient));
  launch_readout_backward(*p, *b, gradient, accumulate, memory.data(), out, nullptr);
}

__attribute__((visibility("default"))) void emulation_readout_unscale(const ReadoutProblem* p,
                                                                      void* grad) {
  launch_readout_unscale(*p, grad, nullptr);
}
}
