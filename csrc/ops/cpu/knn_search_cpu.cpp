// SPDX-License-Identifier: Apache-2.0
// knn_search on the CPU, by the kernels of knn_graph: both sides are packed once, then each task
// owns a block of queries as columns and meets the blocks of the gallery in order. No list has two
// writers, and indices only rise, so an equal similarity can never displace an earlier one.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "common/host.h"
#include "common/text.h"
#include "ops/cpu/knn_graph_driver.h"
#include "ops/knn_search.h"

namespace fcl::ops::cpu {
namespace {

// Columns that fill a panel of the widest vectors.
constexpr int64_t kFewestQueries = 32;

// Blocks as equal as possible, of at most kKnnBlock rows.
std::vector<KnnBlock> cut(int64_t num_rows, int64_t count) {
  std::vector<KnnBlock> blocks;
  for (int64_t b = 0; b < count; ++b) {
    const int64_t begin = b * num_rows / count;
    blocks.push_back({begin, (b + 1) * num_rows / count - begin});
  }
  return blocks;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// As few blocks as hold the queries, but as many for each thread as for the others.
int64_t count_query_blocks(int64_t num_queries) {
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t fewest = ceil_div(num_queries, kKnnBlock);
  const int64_t shared = ceil_div(std::max<int64_t>(fewest, 1), threads) * threads;
  return std::max(fewest, std::min(shared, ceil_div(num_queries, kFewestQueries)));
}

std::tuple<Tensor, Tensor> knn_search(Tensor query, Tensor gallery, int64_t k, Text metric) {
  const KnnShape shape = check_knn_search(query, gallery, k, metric);
  query = torch::stable::contiguous(query);
  gallery = torch::stable::contiguous(gallery);
  const int64_t num_queries = query.size(0);
  const int64_t num_gallery = shape.num_rows;
  Tensor indices = torch::stable::new_empty(query, {num_queries, k}, ScalarType::Int);
  Tensor similarities =
      torch::stable::new_empty(query, {num_queries, k}, accumulate_type(shape.dtype));
  if (num_queries == 0) return {indices, similarities};

  KnnProblem of_gallery{
      shape.dtype, shape.metric, gallery.const_data_ptr(), num_gallery, shape.dim, k, 0, k, false};
  KnnProblem of_query = of_gallery;
  of_query.features = query.const_data_ptr();
  of_query.num_rows = num_queries;
  of_query.capacity = std::min(2 * k, num_gallery);
  const KnnBytes gallery_bytes = knn_kernels().bytes(of_gallery);
  const KnnBytes bytes = knn_kernels().bytes(of_query);
  const Scratch gallery_rows(gallery_bytes.rows), gallery_squares(gallery_bytes.squares);
  const Scratch rows(bytes.rows), squares(bytes.squares), keys(bytes.keys), bounds(bytes.bounds),
      counts(num_queries * sizeof(int32_t));
  const KnnTables found{gallery_rows.get(), gallery_squares.get(), nullptr, nullptr, nullptr};
  const KnnTables lists{rows.get(), squares.get(), keys.get(), bounds.get(), counts.as<int32_t>()};
  const std::vector<KnnBlock> gallery_blocks = cut(num_gallery, ceil_div(num_gallery, kKnnBlock));
  const std::vector<KnnBlock> query_blocks = cut(num_queries, count_query_blocks(num_queries));
  pack_blocks("knn_search", "query", of_query, lists, query_blocks, bytes.scratch);
  pack_blocks("knn_search", "gallery", of_gallery, found, gallery_blocks, bytes.scratch);

  int32_t* index_data = indices.mutable_data_ptr<int32_t>();
  void* similarity_data = similarities.mutable_data_ptr();
  const double flops = 2.0 * num_queries * num_gallery * shape.dim;
  const auto tasks = static_cast<int64_t>(query_blocks.size());
  parallel_tasks(tasks, flops, bytes.scratch, [&](int64_t b, void* scratch) {
    const KnnBlock columns = query_blocks[b];
    knn_kernels().load_columns(of_query, lists, columns, scratch);
    for (const KnnBlock block : gallery_blocks) {
      knn_kernels().multiply(of_gallery, found, block, columns, scratch);
      knn_kernels().offer_to_columns(of_query, lists, block, columns, scratch);
    }
    knn_kernels().finish(of_query, lists, columns, index_data, similarity_data);
  });
  return {indices, similarities};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) { m.impl("knn_search", TORCH_BOX(&knn_search)); }

}  // namespace fcl::ops::cpu
