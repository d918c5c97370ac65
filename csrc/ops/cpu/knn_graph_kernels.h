// SPDX-License-Identifier: Apache-2.0
// Interface between the drivers of knn_graph and knn_search on the CPU and their per-ISA kernels.
// Torch-free.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/half.h"
#include "ops/knn_metric.h"

namespace fcl::ops::cpu {

// Most rows of a block: in knn_graph, two blocks and their product share the L2 cache.
inline constexpr int64_t kKnnBlock = 224;
// A whole number of panels of every vector width: KnnProblem::columns is a multiple of it, and dims
// are padded to no more than a multiple of it.
inline constexpr int64_t kKnnColumns = 32;

enum class KnnRefusal { kNone, kNotFinite, kTooLarge };

struct KnnProblem {
  Dtype dtype;  // storage; accumulation is float, or double for float64
  KnnMetric metric;
  const void* features;  // [num_rows, dim]
  int64_t num_rows, dim;
  int64_t k;         // neighbours looked for: fewer than the rows of the largest segment
  int64_t capacity;  // candidates kept per row, >= k
  int64_t width;     // neighbours per row of the result, >= k
  int64_t columns;   // most rows of a block that is loaded as columns
  // Rows and columns are the same features: a row is not its own neighbour. Only then are products
  // stored, as `multiply` and the offers need them.
  bool one_table;
};

// Consecutive rows of one segment.
struct KnnBlock {
  int64_t begin, count;
};

// What is known of all rows. Packed rows are in the accumulation type, normalised for cosine. Rows
// that are only looked for, and look for none themselves, have no keys, bounds or counts.
struct KnnTables {
  void* rows;       // per block: [padded dim / panel][count][panel]
  void* squares;    // [num_rows]: squared norms
  void* keys;       // [num_rows, capacity]: candidates
  void* bounds;     // [num_rows]: the key of the k-th best, 0 while fewer are known
  int32_t* counts;  // [num_rows]: candidates
};

// Bytes of each table, and of the scratch memory of a thread.
struct KnnBytes {
  size_t rows, squares, keys, bounds, scratch;
};

struct KnnGraphKernels {
  KnnBytes (*bytes)(const KnnProblem&);
  // Packs a block and empties its lists. Returns why a row is refused, and which.
  KnnRefusal (*pack)(const KnnProblem&, const KnnTables&, KnnBlock, void* scratch,
                     int64_t* refused);
  // Makes a block the columns of the products to come.
  void (*load_columns)(const KnnProblem&, const KnnTables&, KnnBlock, void* scratch);
  // Similarities of a block of rows to the columns, into the scratch memory. A block against itself
  // leaves out the pairs of a row with itself. Brings the rows of `next` into the cache meanwhile.
  void (*multiply)(const KnnProblem&, const KnnTables&, KnnBlock rows, KnnBlock next,
                   KnnBlock columns, void* scratch);
  // Adds rows to the lists of the columns, and columns to the lists of the rows.
  void (*offer_to_columns)(const KnnProblem&, const KnnTables&, KnnBlock rows, KnnBlock columns,
                           void* scratch);
  void (*offer_to_rows)(const KnnProblem&, const KnnTables&, KnnBlock rows, KnnBlock columns,
                        void* scratch);
  // Offers rows, row 0 of their table being candidate `first`, to the lists of the columns, which
  // another problem and other tables hold. Brings the rows of `next` into the cache meanwhile.
  void (*search)(const KnnProblem&, const KnnTables&, KnnBlock rows, KnnBlock next, int64_t first,
                 const KnnProblem& of_columns, const KnnTables& lists, KnnBlock columns,
                 void* scratch);
  // Sorts the lists of a block into indices and similarities [num_rows, width], -1 and 0 where a
  // segment has too few rows.
  void (*finish)(const KnnProblem&, const KnnTables&, KnnBlock, int32_t* indices,
                 void* similarities);
};

extern const KnnGraphKernels knn_graph_portable;
extern const KnnGraphKernels knn_graph_avx2;
extern const KnnGraphKernels knn_graph_avx512;

}  // namespace fcl::ops::cpu
