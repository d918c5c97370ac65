// SPDX-License-Identifier: Apache-2.0
// What the torch bindings of the CUDA ops share: the device and stream of a call, and scratch
// memory from torch's allocator, which keeps it in stream order.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "common/checks.h"

namespace fcl::cuda {

// Makes the device of a tensor current for the lifetime of the object, and knows torch's current
// stream there. Torch's guard speaks for its copy of the CUDA runtime; ours, linked statically, is
// told as well.
class CudaScope {
 public:
  explicit CudaScope(const Tensor& t) : guard_(t.get_device_index()) {
    const cudaError_t error = cudaSetDevice(t.get_device_index());
    FCL_REQUIRE(error == cudaSuccess, "fcl: CUDA error: ", cudaGetErrorString(error));
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

inline Tensor device_scratch(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional(torch::stable::contiguous(*t)) : std::nullopt;
}
inline const void* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? t->const_data_ptr() : nullptr;
}

}  // namespace fcl::cuda
