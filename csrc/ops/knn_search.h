// SPDX-License-Identifier: Apache-2.0
// knn_search: for every row i of query [Q, D], the k rows j of gallery [G, D] of largest
// similarity, as knn_graph defines it -> indices int32 [Q, k] and similarities [Q, k] in the
// accumulation type, best first, equal similarities by lower index. The Q x G similarities never
// exist.
#pragma once

#include "ops/knn_graph.h"

namespace fcl::ops {

// The shape is that of the gallery.
inline KnnShape check_knn_search(const Tensor& query, const Tensor& gallery, int64_t k,
                                 std::string_view metric) {
  const char* op = "knn_search";
  const Dtype dtype = check_floating(op, "query", query);
  check_shape(op, "query", query, "[Q, D]", {-1, -1});
  FCL_REQUIRE(query.size(1) > 0, "fcl::", op, ": expected query with at least one dim, got shape ",
              shape_string(query));
  check_dtype(op, "gallery", gallery, query.scalar_type());
  check_shape(op, "gallery", gallery, "[G, D]", {-1, query.size(1)});
  check_same_device(op, "gallery", gallery, query);
  const int64_t g = gallery.size(0);
  FCL_REQUIRE(g <= INT32_MAX && query.size(0) <= INT32_MAX, "fcl::", op,
              ": expected at most 2^31 - 1 rows, got ", query.size(0), " and ", g);
  FCL_REQUIRE(k >= 1 && k <= g, "fcl::", op, ": expected 1 <= k <= G, got k = ", k, " for G = ", g);
  return {dtype, check_knn_metric(op, metric), g, query.size(1), k};
}

}  // namespace fcl::ops
