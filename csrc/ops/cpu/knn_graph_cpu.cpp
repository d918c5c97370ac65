// SPDX-License-Identifier: Apache-2.0
// knn_graph on the CPU: packs all rows once, then threads over blocks of queries.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "common/cpu_isa.h"
#include "common/host.h"
#include "ops/cpu/knn_graph_kernels.h"
#include "ops/knn_graph.h"

namespace fcl::ops::cpu {
namespace {

const KnnGraphKernels& kernels() {
#ifdef FCL_X86
  return select_by_isa(knn_graph_portable, knn_graph_avx2, knn_graph_avx512);
#else
  return knn_graph_portable;
#endif
}

void pack_all(const KnnProblem& p, const KnnPacked& packed) {
  const int64_t blocks = (p.num_rows + kKnnRows - 1) / kKnnRows;
  // No exception may leave a parallel loop: refusals are collected, and the first is reported.
  std::vector<KnnRefusal> why(blocks, KnnRefusal::kNone);
  std::vector<int64_t> row(blocks, -1);
  parallel_over(blocks, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(kernels().scratch_bytes(p));
    for (int64_t b = begin; b < end; ++b) {
      why[b] = kernels().pack(p, b, scratch.get(), packed, &row[b]);
    }
  });
  for (int64_t b = 0; b < blocks; ++b) {
    STD_TORCH_CHECK(why[b] != KnnRefusal::kNotFinite,
                    "fcl::knn_graph: expected finite features, got a NaN or an infinity in row ",
                    row[b]);
    STD_TORCH_CHECK(why[b] != KnnRefusal::kTooLarge,
                    "fcl::knn_graph: expected features whose squared norms do not overflow (scale "
                    "them down, or use float64), got row ",
                    row[b]);
  }
}

std::tuple<Tensor, Tensor> knn_graph(Tensor features, int64_t k, std::string metric) {
  const KnnShape shape = check_knn_graph(features, k, metric);
  features = torch::stable::contiguous(features);
  const KnnProblem p{shape.dtype,    shape.metric, features.const_data_ptr(),
                     shape.num_rows, shape.dim,    k};
  const Scratch rows(kernels().packed_bytes(p));
  const Scratch squares(shape.num_rows * sizeof(double));
  const KnnPacked packed{rows.get(), squares.get()};
  pack_all(p, packed);
  Tensor indices = torch::stable::new_empty(features, {shape.num_rows, k}, ScalarType::Int);
  Tensor similarities =
      torch::stable::new_empty(features, {shape.num_rows, k}, accumulate_type(shape.dtype));
  int32_t* index_data = indices.mutable_data_ptr<int32_t>();
  void* similarity_data = similarities.mutable_data_ptr();
  const int64_t blocks = (shape.num_rows + kKnnQueries - 1) / kKnnQueries;
  parallel_over(blocks, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(kernels().scratch_bytes(p));
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kKnnQueries;
      kernels().search(p, packed, first, std::min(kKnnQueries, shape.num_rows - first),
                       scratch.get(), index_data, similarity_data);
    }
  });
  return {indices, similarities};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) { m.impl("knn_graph", TORCH_BOX(&knn_graph)); }

}  // namespace fcl::ops::cpu
