// SPDX-License-Identifier: Apache-2.0
// What does not depend on an operator in the choice of CUDA paths: the environment, the device, the
// names there are.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdlib>

#include "common/cuda_path.h"
#include "ops/cuda/knn_path.h"
#include "ops/cuda/readout_path.h"
#include "ops/cuda/walk_path.h"

namespace fcl::cuda {
namespace {

// Of all operators.
constexpr std::string_view kNames[] = {"sm90", "mma", "union", "gather", "simt"};

int attribute(const char* op, cudaDeviceAttr which) {
  int device = 0;
  int value = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, which, device);
  if (error == cudaSuccess) return value;
  throw std::runtime_error(std::string("fcl::") + op +
                           ": CUDA error: " + cudaGetErrorString(error));
}

}  // namespace

CudaDevice current_device(const char* op) {
  return {10 * attribute(op, cudaDevAttrComputeCapabilityMajor) +
              attribute(op, cudaDevAttrComputeCapabilityMinor),
          attribute(op, cudaDevAttrMultiProcessorCount), attribute(op, cudaDevAttrL2CacheSize)};
}

std::string_view asked_path(const char* op) {
  const char* variable = std::getenv("FCL_CUDA_PATH");
  const std::string_view asked = variable == nullptr ? "" : variable;
  if (asked.empty() || std::find(std::begin(kNames), std::end(kNames), asked) != std::end(kNames)) {
    return asked;
  }
  std::string names;
  for (const std::string_view name : kNames) {
    names += (names.empty() ? "" : ", ") + std::string(name);
  }
  throw std::runtime_error(std::string("fcl::") + op + ": expected FCL_CUDA_PATH to be one of " +
                           names + ", got " + std::string(asked));
}

void refuse_path(const char* op, const char* path, const CudaDevice& device) {
  throw std::runtime_error(
      std::string("fcl::") + op + ": FCL_CUDA_PATH=" + path +
      ", but this device (compute capability " + std::to_string(device.capability / 10) + "." +
      std::to_string(device.capability % 10) + ") or this build has no such kernels");
}

}  // namespace fcl::cuda

bool fcl_cuda_set_verified(const char* op, const char* path, bool is_verified) {
  using namespace fcl::ops::cuda;
  return set_readout_verified(op, path, is_verified) || set_walk_verified(op, path, is_verified) ||
         set_knn_verified(op, path, is_verified);
}
