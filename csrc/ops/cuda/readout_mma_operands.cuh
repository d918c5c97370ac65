// SPDX-License-Identifier: Apache-2.0
// What the host code of the tensor core path shares: operands of a launch, dtypes.
#pragma once

#include "common/cuda_vector.cuh"
#include "ops/cuda/readout_mma.cuh"
#include "ops/cuda/readout_split.cuh"

namespace fcl::ops::cuda {
namespace {

template <typename S>
Matrix<S> matrix(const void* data, int64_t rows, int64_t columns) {
  return {static_cast<const S*>(data), rows, columns, rows_are_wide<S>(columns, {data})};
}

// Calls f with the Tag of a storage type that has tensor core products.
template <typename F>
void dispatch_mma(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(Tag<float>{});
    case Dtype::kBfloat16:
      return f(Tag<BFloat16>{});
    case Dtype::kFloat16:
      return f(Tag<Float16>{});
    case Dtype::kFloat64:
      return;
  }
}

}  // namespace
}  // namespace fcl::ops::cuda
