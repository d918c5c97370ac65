// SPDX-License-Identifier: Apache-2.0
// Interface between the driver of knn_graph on the CPU and its per-ISA kernels. Torch-free.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/half.h"
#include "ops/knn_metric.h"

namespace fcl::ops::cpu {

// Rows of one block of queries, and of one block of the rows they are compared with: the two and
// their product share the L2 cache.
inline constexpr int64_t kKnnQueries = 128;
inline constexpr int64_t kKnnRows = 224;

enum class KnnRefusal { kNone, kNotFinite, kTooLarge };

struct KnnProblem {
  Dtype dtype;  // storage; accumulation is float, or double for float64
  KnnMetric metric;
  const void* features;  // [num_rows, dim]
  int64_t num_rows, dim, k;
};

// All rows in the accumulation type, normalised for cosine: blocks of kKnnRows, each packed as
// [padded dim / panel][kKnnRows][panel]; and their squared norms.
struct KnnPacked {
  void* rows;
  void* squares;
};

struct KnnGraphKernels {
  size_t (*packed_bytes)(const KnnProblem&);
  size_t (*scratch_bytes)(const KnnProblem&);
  // Packs one block. Returns why a row is refused, and which.
  KnnRefusal (*pack)(const KnnProblem&, int64_t block, void* scratch, const KnnPacked&,
                     int64_t* refused);
  // Neighbours of rows [begin, begin + count), count <= kKnnQueries, to indices and similarities
  // [num_rows, k].
  void (*search)(const KnnProblem&, const KnnPacked&, int64_t begin, int64_t count, void* scratch,
                 int32_t* indices, void* similarities);
};

extern const KnnGraphKernels knn_graph_portable;
extern const KnnGraphKernels knn_graph_avx2;
extern const KnnGraphKernels knn_graph_avx512;

}  // namespace fcl::ops::cpu
