// SPDX-License-Identifier: Apache-2.0
#include "common/cuda_tma.h"

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "common/sm90_layout.h"

namespace fcl::cuda {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             12000, cudaEnableDefault, &found);
#else
  const cudaError_t error =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
  if (error != cudaSuccess) {
    static_cast<void>(cudaGetLastError());  // the next call starts clean
    return nullptr;
  }
  return found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(function) : nullptr;
}

Encode encode() {
  static const Encode function = find_encode();
  return function;
}

}  // namespace

bool can_encode_tensor_maps() { return encode() != nullptr; }

bool is_tensor_map_matrix(const void* data, int64_t columns) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && columns * 2 % 16 == 0;
}

CUtensorMap encode_tensor_map(const char* op, Dtype dtype, const void* data, int64_t rows,
                              int64_t columns, int box_rows) {
  CUtensorMap map;
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t pitch[] = {static_cast<cuuint64_t>(columns) * 2};
  const cuuint32_t box[] = {sm90::kPanelColumns, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const CUresult result =
      encode()(&map,
               dtype == Dtype::kBfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                         : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
               2, const_cast<void*>(data), sizes, pitch, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
               CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
               CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error(std::string("fcl::") + op + ": no tensor map of " +
                             std::to_string(rows) + " x " + std::to_string(columns) +
                             " values: driver error " + std::to_string(result));
  }
  return map;
}

}  // namespace fcl::cuda
