// SPDX-License-Identifier: Apache-2.0
// knn_graph on the CPU: packs all rows once, then threads over the blocks of columns, each of which
// meets half of the blocks of rows.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <mutex>
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

int64_t num_blocks(int64_t num_rows) { return (num_rows + kKnnBlock - 1) / kKnnBlock; }

KnnBlock block_at(const KnnProblem& p, int64_t block) {
  const int64_t begin = block * kKnnBlock;
  return {begin, std::min(kKnnBlock, p.num_rows - begin)};
}

void pack_all(const KnnProblem& p, const KnnTables& tables, size_t scratch_bytes) {
  const int64_t blocks = num_blocks(p.num_rows);
  // No exception may leave a parallel loop: refusals are collected, and the first is reported.
  std::vector<KnnRefusal> why(blocks, KnnRefusal::kNone);
  std::vector<int64_t> row(blocks, -1);
  const double flops = 8.0 * p.num_rows * p.dim;
  parallel_tasks(blocks, flops, scratch_bytes, [&](int64_t b, void* scratch) {
    why[b] = kernels().pack(p, tables, block_at(p, b), scratch, &row[b]);
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

// Block b meets blocks b, b + 1, ... b + m / 2 of the m, modulo m: every pair meets once, every
// block has the same work, and threads on neighbouring blocks stay out of each other's way.
void search_all(const KnnProblem& p, const KnnTables& tables, size_t scratch_bytes) {
  const int64_t blocks = num_blocks(p.num_rows);
  std::vector<std::mutex> lists(blocks);
  const double flops = static_cast<double>(p.num_rows) * p.num_rows * p.dim;
  parallel_tasks(blocks, flops, scratch_bytes, [&](int64_t b, void* scratch) {
    const KnnBlock columns = block_at(p, b);
    kernels().load_columns(p, tables, columns, scratch);
    // For an even m, the blocks opposite each other meet from the first one's side.
    const int64_t partners = blocks % 2 == 0 && b >= blocks / 2 ? blocks / 2 : blocks / 2 + 1;
    for (int64_t step = 0; step < partners; ++step) {
      const int64_t other = (b + step) % blocks;
      const KnnBlock rows = block_at(p, other);
      kernels().multiply(p, tables, rows, columns, scratch);
      {
        const std::lock_guard<std::mutex> lock(lists[b]);
        kernels().offer_to_columns(p, tables, rows, columns, scratch);
      }
      if (other == b) continue;
      const std::lock_guard<std::mutex> lock(lists[other]);
      kernels().offer_to_rows(p, tables, rows, columns, scratch);
    }
  });
}

std::tuple<Tensor, Tensor> knn_graph(Tensor features, int64_t k, std::string metric) {
  const KnnShape shape = check_knn_graph(features, k, metric);
  features = torch::stable::contiguous(features);
  const int64_t n = shape.num_rows;
  // A list that holds every other row never has to choose.
  const KnnProblem p{shape.dtype,
                     shape.metric,
                     features.const_data_ptr(),
                     n,
                     shape.dim,
                     k,
                     std::min(2 * k, n - 1),
                     k};
  const KnnBytes bytes = kernels().bytes(p);
  const Scratch rows(bytes.rows), squares(bytes.squares), keys(bytes.keys), bounds(bytes.bounds),
      counts(n * sizeof(int32_t));
  const KnnTables tables{rows.get(), squares.get(), keys.get(), bounds.get(), counts.as<int32_t>()};
  pack_all(p, tables, bytes.scratch);
  search_all(p, tables, bytes.scratch);
  Tensor indices = torch::stable::new_empty(features, {n, k}, ScalarType::Int);
  Tensor similarities = torch::stable::new_empty(features, {n, k}, accumulate_type(shape.dtype));
  int32_t* index_data = indices.mutable_data_ptr<int32_t>();
  void* similarity_data = similarities.mutable_data_ptr();
  parallel_tasks(num_blocks(n), 20.0 * n * k, 0, [&](int64_t b, void*) {
    kernels().finish(p, tables, block_at(p, b), index_data, similarity_data);
  });
  return {indices, similarities};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) { m.impl("knn_graph", TORCH_BOX(&knn_graph)); }

}  // namespace fcl::ops::cpu
