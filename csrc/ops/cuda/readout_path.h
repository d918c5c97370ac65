// SPDX-License-Identifier: Apache-2.0
// The sets of kernels for softmax_readout on CUDA, and the choice among them. FCL_CUDA_PATH=<name>
// asks for one; a device that cannot run it is an error, and work that it has no kernels for (a
// dtype, a gradient) goes to `simt`, which has them all. Unasked, a launch takes the first of the
// table that runs, has the kernels, and was verified on a GPU (fcl_ext/cuda_paths.py knows).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "ops/cuda/softmax_readout_kernels.h"

namespace fcl::ops::cuda {

struct CudaDevice {
  int capability;  // 80 for 8.0
  int multiprocessors;
};

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

}  // namespace fcl::ops::cuda

// Called by fcl_ext at import: may the path be taken unasked? op is "softmax_readout" or
// "softmax_readout_backward". False if there is no such path.
extern "C" __attribute__((visibility("default"))) bool fcl_cuda_set_verified(const char* op,
                                                                             const char* path,
                                                                             bool is_verified);
