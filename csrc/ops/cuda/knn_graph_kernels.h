// SPDX-License-Identifier: Apache-2.0
// Interface between the torch binding of knn_graph and its CUDA kernels. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/half.h"
#include "ops/knn_metric.h"

namespace fcl::ops::cuda {

struct KnnProblem {
  Dtype dtype;
  KnnMetric metric;
  const void* features;  // [N, D]
  int64_t num_rows, dim, k;
};

int64_t knn_graph_scratch(const KnnProblem& p);

// indices [N, k] and similarities [N, k] in the accumulation type.
void launch_knn_graph(const KnnProblem& p, void* scratch, int32_t* indices, void* similarities,
                      cudaStream_t stream);

}  // namespace fcl::ops::cuda
