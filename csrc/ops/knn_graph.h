// SPDX-License-Identifier: Apache-2.0
// knn_graph: for every row i of features [N, D], the k other rows j of largest similarity
//   cosine: x_i . x_j / (|x_i| |x_j|), 0 if either is a zero row      ip: x_i . x_j
//   l2: 2 x_i . x_j - (|x_i|^2 + |x_j|^2), at most 0
// -> indices int32 [N, k] and similarities [N, k] in the accumulation type, best first, equal
// similarities by lower index. The N x N similarities never exist.
// knn_graph_segments: the same among the rows of each segment [offsets[s], offsets[s + 1]) only;
// -1 and 0 fill up the lists of rows whose segment has too few others.
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

inline KnnMetric check_knn_metric(const char* op, std::string_view metric) {
  const bool cosine = metric == "cosine";
  const bool inner = metric == "ip";
  FCL_REQUIRE(cosine || inner || metric == "l2", "fcl::", op,
              ": expected metric cosine, ip or l2, got ", metric);
  return cosine ? KnnMetric::kCosine : inner ? KnnMetric::kInnerProduct : KnnMetric::kSquaredL2;
}

// What both ops ask of their features, k and metric, but for the upper end of k.
inline KnnShape check_knn_features(const char* op, const Tensor& features, int64_t k,
                                   std::string_view metric) {
  const Dtype dtype = check_floating(op, "features", features);
  check_shape(op, "features", features, "[N, D]", {-1, -1});
  const int64_t n = features.size(0);
  FCL_REQUIRE(features.size(1) > 0, "fcl::", op,
              ": expected features with at least one dim, got shape ", shape_string(features));
  FCL_REQUIRE(n <= INT32_MAX, "fcl::", op, ": expected at most 2^31 - 1 features, got ", n);
  return {dtype, check_knn_metric(op, metric), n, features.size(1), k};
}

inline KnnShape check_knn_graph(const Tensor& features, int64_t k, std::string_view metric) {
  const KnnShape shape = check_knn_features("knn_graph", features, k, metric);
  FCL_REQUIRE(k >= 1 && k < shape.num_rows,
              "fcl::knn_graph: expected 1 <= k <= N - 1 (a row is not its own neighbour), got "
              "k = ",
              k, " for N = ", shape.num_rows);
  return shape;
}

// The values of offsets are the kernel's to check: check_knn_offsets.
inline KnnShape check_knn_graph_segments(const Tensor& features, const Tensor& offsets, int64_t k,
                                         std::string_view metric) {
  const char* op = "knn_graph_segments";
  const KnnShape shape = check_knn_features(op, features, k, metric);
  check_dtype(op, "offsets", offsets, ScalarType::Long);
  check_shape(op, "offsets", offsets, "[S + 1]", {-1});
  check_same_device(op, "offsets", offsets, features);
  FCL_REQUIRE(offsets.size(0) > 0, "fcl::", op, ": expected offsets of shape [S + 1], got [0]");
  FCL_REQUIRE(k >= 1, "fcl::", op, ": expected k >= 1, got ", k);
  return shape;
}

inline void check_knn_offsets(const int64_t* offsets, int64_t num_segments, int64_t num_rows) {
  const char* op = "knn_graph_segments";
  FCL_REQUIRE(offsets[0] == 0 && offsets[num_segments] == num_rows, "fcl::", op,
              ": expected offsets from 0 to N = ", num_rows, ", got ", offsets[0], " to ",
              offsets[num_segments]);
  for (int64_t s = 0; s < num_segments; ++s) {
    FCL_REQUIRE(offsets[s] <= offsets[s + 1], "fcl::", op,
                ": expected offsets that never decrease, got ", offsets[s + 1], " after ",
                offsets[s]);
  }
}

}  // namespace fcl::ops
