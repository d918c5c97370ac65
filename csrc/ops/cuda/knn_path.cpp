// SPDX-License-Identifier: Apache-2.0
// Table of the paths of knn_graph on CUDA, fastest first, and the choice for each call.
#include "ops/cuda/knn_path.h"

namespace fcl::ops::cuda {
namespace {

using fcl::cuda::choose_path;
using fcl::cuda::current_device;

constexpr const KnnPath* kKnn[] = {&kKnnMma, &kKnnSimt};

constexpr const char* kOp = "knn_graph";

}  // namespace

int64_t knn_graph_scratch(const KnnProblem& p) {
  return choose_path<kKnn>(kOp, current_device(kOp), p).scratch(p);
}

void launch_knn_graph(const KnnProblem& p, void* scratch, int32_t* indices, void* similarities,
                      cudaStream_t stream) {
  const CudaDevice device = current_device(kOp);
  choose_path<kKnn>(kOp, device, p).launch(p, scratch, indices, similarities, device, stream);
}

bool set_knn_verified(std::string_view op, std::string_view path, bool is_verified) {
  return op == kOp && fcl::cuda::set_verified<kKnn>(path, is_verified);
}

}  // namespace fcl::ops::cuda
