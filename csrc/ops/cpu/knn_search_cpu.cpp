// SPDX-License-Identifier: Apache-2.0
// knn_search on the CPU. The queries are packed once, the gallery a chunk at a time: it is read
// where it lies, and its packed copy stays in the cache, in memory that does not grow with it. Each
// task owns a block of queries as columns and meets the blocks of a chunk in order. No list has two
// writers, and indices only rise, so an equal similarity can never displace an earlier one.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "common/host.h"
#include "common/large_pages.h"
#include "common/text.h"
#include "ops/cpu/knn_graph_driver.h"
#include "ops/knn_search.h"

namespace fcl::ops::cpu {
namespace {

// The packed columns of a task leave room for a block of the gallery, and for the next one, in a
// 1 MiB L2 cache, up to some 290 dims; wider rows have a block's columns at least. The more
// columns, the less often the gallery is read.
constexpr int64_t kColumnBytes = 512 * 1024;
constexpr int64_t kMostColumns = 1024;
// Packed gallery between two barriers: worth many times a barrier, and still in the last cache.
constexpr int64_t kChunkBytes = 8 * 1024 * 1024;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows [0, num_rows) in blocks of `size` and a last one of what is left.
std::vector<KnnBlock> cut(int64_t num_rows, int64_t size) {
  std::vector<KnnBlock> blocks;
  for (int64_t begin = 0; begin < num_rows; begin += size) {
    blocks.push_back({begin, std::min(size, num_rows - begin)});
  }
  return blocks;
}

// Queries per task: what the cache holds, but few enough for each thread to have as many tasks as
// the others. Whole panels: a part of one takes as long.
int64_t columns_per_task(int64_t num_queries, int64_t row_bytes) {
  const int64_t fit = std::clamp(kColumnBytes / row_bytes, kKnnBlock, kMostColumns);
  const auto threads = static_cast<int64_t>(torch::stable::get_num_threads());
  const int64_t tasks = ceil_div(ceil_div(num_queries, fit), threads) * threads;
  return ceil_div(ceil_div(num_queries, tasks), kKnnColumns) * kKnnColumns;
}

// Meets all queries with all rows of the gallery, chunk by chunk.
void search_gallery(const KnnProblem& of_query, const KnnTables& lists,
                    const std::vector<KnnBlock>& tasks, const Tensor& gallery, int64_t chunk_rows) {
  KnnProblem of_chunk = of_query;
  of_chunk.num_rows = chunk_rows;
  of_chunk.capacity = 0;
  const KnnBytes bytes = knn_kernels().bytes(of_chunk);
  const Scratch rows(bytes.rows), squares(bytes.squares);
  want_large_pages(rows.get(), bytes.rows);
  const KnnTables chunk{rows.get(), squares.get(), nullptr, nullptr, nullptr};
  const auto* features = static_cast<const char*>(gallery.const_data_ptr());
  const int64_t row_bytes = of_query.dim * static_cast<int64_t>(gallery.element_size());
  for (int64_t first = 0; first < gallery.size(0); first += chunk_rows) {
    of_chunk.features = features + first * row_bytes;
    of_chunk.num_rows = std::min(chunk_rows, gallery.size(0) - first);
    const std::vector<KnnBlock> blocks = cut(of_chunk.num_rows, kKnnBlock);
    pack_blocks("knn_search", "gallery", of_chunk, chunk, blocks, bytes.scratch, first);
    const double flops = 2.0 * of_query.num_rows * of_chunk.num_rows * of_query.dim;
    const auto count = static_cast<int64_t>(tasks.size());
    parallel_tasks(count, flops, bytes.scratch, [&](int64_t t, void* scratch) {
      knn_kernels().load_columns(of_query, lists, tasks[t], scratch);
      for (size_t b = 0; b < blocks.size(); ++b) {
        const KnnBlock next = b + 1 < blocks.size() ? blocks[b + 1] : KnnBlock{0, 0};
        knn_kernels().search(of_chunk, chunk, blocks[b], next, first, of_query, lists, tasks[t],
                             scratch);
      }
    });
  }
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

  // Of a packed row, whose dims fill up whole panels.
  const int64_t row_bytes =
      ceil_div(shape.dim, kKnnColumns) * kKnnColumns * (shape.dtype == Dtype::kFloat64 ? 8 : 4);
  const int64_t columns = columns_per_task(num_queries, row_bytes);
  const KnnProblem of_query{shape.dtype,
                            shape.metric,
                            query.const_data_ptr(),
                            num_queries,
                            shape.dim,
                            k,
                            std::min(2 * k, num_gallery),
                            k,
                            columns,
                            false};
  const KnnBytes bytes = knn_kernels().bytes(of_query);
  const Scratch rows(bytes.rows), squares(bytes.squares), keys(bytes.keys), bounds(bytes.bounds),
      counts(num_queries * sizeof(int32_t));
  const KnnTables lists{rows.get(), squares.get(), keys.get(), bounds.get(), counts.as<int32_t>()};
  const std::vector<KnnBlock> tasks = cut(num_queries, columns);
  pack_blocks("knn_search", "query", of_query, lists, tasks, bytes.scratch, 0);
  const int64_t chunk_blocks = std::max<int64_t>(1, kChunkBytes / row_bytes / kKnnBlock);
  search_gallery(of_query, lists, tasks, gallery, std::min(num_gallery, chunk_blocks * kKnnBlock));

  int32_t* index_data = indices.mutable_data_ptr<int32_t>();
  void* similarity_data = similarities.mutable_data_ptr();
  parallel_tasks(static_cast<int64_t>(tasks.size()), 20.0 * num_queries * k, 0,
                 [&](int64_t t, void*) {
                   knn_kernels().finish(of_query, lists, tasks[t], index_data, similarity_data);
                 });
  return {indices, similarities};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) { m.impl("knn_search", TORCH_BOX(&knn_search)); }

}  // namespace fcl::ops::cpu
