// SPDX-License-Identifier: Apache-2.0
// knn_graph: for every row i of features [N, D], the k other rows j of largest similarity
//   cosine: x_i . x_j / (|x_i| |x_j|), 0 if either is a zero row      ip: x_i . x_j
//   l2: 2 x_i . x_j - (|x_i|^2 + |x_j|^2), at most 0
// -> indices int32 [N, k] and similarities [N, k] in the accumulation type, best first, equal
// similarities by lower index. The N x N similarities never exist.
#pragma once

#include <string_view>

#include "common/checks.h"
#include "ops/knn_metric.h"

namespace fcl::ops {

struct KnnShape {
  Dtype dtype;
  KnnMetric metric;
  int64_t num_rows, dim, k;
};

inline KnnShape check_knn_graph(const Tensor& features, int64_t k, std::string_view metric) {
  const char* op = "knn_graph";
  const Dtype dtype = check_floating(op, "features", features);
  check_shape(op, "features", features, "[N, D]", {-1, -1});
  const int64_t n = features.size(0);
  STD_TORCH_CHECK(features.size(1) > 0, "fcl::", op,
                  ": expected features with at least one dim, got shape ", shape_string(features));
  STD_TORCH_CHECK(n <= INT32_MAX, "fcl::", op, ": expected at most 2^31 - 1 features, got ", n);
  STD_TORCH_CHECK(k >= 1 && k < n, "fcl::", op,
                  ": expected 1 <= k <= N - 1 (a row is not its own neighbour), got k = ", k,
                  " for N = ", n);
  const bool cosine = metric == "cosine";
  const bool inner = metric == "ip";
  STD_TORCH_CHECK(cosine || inner || metric == "l2", "fcl::", op,
                  ": expected metric cosine, ip or l2, got ", metric);
  return {dtype,
          cosine  ? KnnMetric::kCosine
          : inner ? KnnMetric::kInnerProduct
                  : KnnMetric::kSquaredL2,
          n, features.size(1), k};
}

}  // namespace fcl::ops
