// SPDX-License-Identifier: Apache-2.0
// The sets of kernels for knn_graph on CUDA (common/cuda_path.h: how one is chosen), and what they
// share. All give the same bits. `simt` takes everything; docs/knn.md has what they do and cost.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <string_view>

#include "common/cuda_path.h"
#include "ops/cuda/knn_graph_kernels.h"

namespace fcl::ops::cuda {

using fcl::cuda::CudaDevice;

struct KnnPath {
  const char* name;
  bool (*runs_on)(const CudaDevice&);
  bool (*supports)(const KnnProblem&);
  int64_t (*scratch)(const KnnProblem&);
  void (*launch)(const KnnProblem&, void* scratch, int32_t* indices, void* similarities,
                 const CudaDevice&, cudaStream_t);
};

extern const KnnPath kKnnMma;
extern const KnnPath kKnnSimt;

// Features in the accumulation type, unit rows for cosine: row i from data + i * stride on, zeros
// from dim on. squares [N]: |x|^2, summed as products are; not for cosine.
struct KnnRows {
  void* data;
  void* squares;
  int64_t stride;
};

void launch_knn_rows(const KnnProblem& p, const KnnRows& rows, cudaStream_t stream);

// The k best of each row among the first `columns`; -inf and INT32_MAX fill up the lists.
void launch_knn_columns(const KnnProblem& p, const KnnRows& rows, int64_t columns, int32_t* indices,
                        void* similarities, cudaStream_t stream);

// False if op is not "knn_graph", or it has no such path.
bool set_knn_verified(std::string_view op, std::string_view path, bool is_verified);

}  // namespace fcl::ops::cuda
