// SPDX-License-Identifier: Apache-2.0
// knn_graph on CUDA: torch binding. Features that are not finite, or whose squared norms overflow,
// are device assertions.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "common/cuda_stream.h"
#include "common/text.h"
#include "ops/cuda/knn_graph_kernels.h"
#include "ops/knn_graph.h"

namespace fcl::ops::cuda {
namespace {

using fcl::cuda::CudaScope;

std::tuple<Tensor, Tensor> knn_graph(Tensor features, int64_t k, Text metric) {
  const KnnShape shape = check_knn_graph(features, k, metric);
  const CudaScope scope(features);
  features = torch::stable::contiguous(features);
  const KnnProblem p{shape.dtype,    shape.metric, features.const_data_ptr(),
                     shape.num_rows, shape.dim,    k};
  Tensor indices = torch::stable::new_empty(features, {shape.num_rows, k}, ScalarType::Int);
  Tensor similarities =
      torch::stable::new_empty(features, {shape.num_rows, k}, accumulate_type(shape.dtype));
  const Tensor scratch = fcl::cuda::device_scratch(features, knn_graph_scratch(p));
  launch_knn_graph(p, scratch.mutable_data_ptr(), indices.mutable_data_ptr<int32_t>(),
                   similarities.mutable_data_ptr(), scope.stream());
  return {indices, similarities};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CUDA, m) { m.impl("knn_graph", TORCH_BOX(&knn_graph)); }

}  // namespace fcl::ops::cuda
