// SPDX-License-Identifier: Apache-2.0
// Takes the place of csrc/common/cuda_stream.h: tensors are on the CPU, there is no stream.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "common/checks.h"

namespace fcl::cuda {

class CudaScope {
 public:
  explicit CudaScope(const Tensor&) {}
  cudaStream_t stream() const { return nullptr; }
};

inline Tensor device_scratch(const Tensor& like, int64_t bytes) {
  Tensor scratch = torch::stable::new_empty(like, {bytes}, ScalarType::Byte);
  // NaN in every floating type: nothing may rely on what fresh memory holds.
  if (bytes > 0) std::memset(scratch.mutable_data_ptr(), 0xff, bytes);
  return scratch;
}

inline std::optional<Tensor> contiguous(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional(torch::stable::contiguous(*t)) : std::nullopt;
}
inline const void* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? t->const_data_ptr() : nullptr;
}

}  // namespace fcl::cuda
