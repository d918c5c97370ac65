// SPDX-License-Identifier: Apache-2.0
// The sets of kernels for softmax_readout on CUDA (common/cuda_path.h: how one is chosen). `simt`
// has kernels for every dtype and gradient.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>

#include "common/cuda_path.h"
#include "ops/cuda/softmax_readout_kernels.h"

namespace fcl::ops::cuda {

using fcl::cuda::CudaDevice;

struct ReadoutForwardPath {
  const char* name;
  bool (*runs_on)(const CudaDevice&);
  bool (*supports)(const ReadoutProblem&);
  int64_t (*scratch)(const ReadoutProblem&, bool need_mean, const CudaDevice&);
  void (*launch)(const ReadoutProblem&, void* scratch, void* logsumexp, void* mean,
                 const CudaDevice&, cudaStream_t);
};

struct ReadoutBackwardPath {
  const char* name;
  bool (*runs_on)(const CudaDevice&);
  bool (*supports)(const ReadoutProblem&, const ReadoutBackward&, ReadoutGradient);
  int64_t (*scratch)(const ReadoutProblem&, const ReadoutBackward&, ReadoutGradient,
                     const CudaDevice&);
  void (*launch)(const ReadoutProblem&, const ReadoutBackward&, ReadoutGradient, bool accumulate,
                 void* scratch, void* out, const CudaDevice&, cudaStream_t);
};

// One copy of each path's declarations; every path has its own files.
extern const ReadoutForwardPath kReadoutForwardSm90;
extern const ReadoutForwardPath kReadoutForwardMma;
extern const ReadoutForwardPath kReadoutForwardSimt;
extern const ReadoutBackwardPath kReadoutBackwardSm90;
extern const ReadoutBackwardPath kReadoutBackwardMma;
extern const ReadoutBackwardPath kReadoutBackwardSimt;

// False if op, "softmax_readout" or "softmax_readout_backward", has no such path.
bool set_readout_verified(std::string_view op, std::string_view path, bool is_verified);

}  // namespace fcl::ops::cuda
