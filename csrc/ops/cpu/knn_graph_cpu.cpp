// SPDX-License-Identifier: Apache-2.0
// knn_graph and knn_graph_segments on the CPU: packs all rows once, then threads over the blocks of
// columns, each of which meets half of the blocks of rows of its segment.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "common/cpu_isa.h"
#include "common/host.h"
#include "common/large_pages.h"
#include "common/text.h"
#include "ops/cpu/knn_graph_driver.h"
#include "ops/knn_graph.h"

namespace fcl::ops::cpu {

const KnnGraphKernels& knn_kernels() {
#ifdef FCL_X86
  return select_by_isa(knn_graph_portable, knn_graph_avx2, knn_graph_avx512);
#else
  return knn_graph_portable;
#endif
}

void pack_blocks(const char* op, const char* name, const KnnProblem& p, const KnnTables& tables,
                 const std::vector<KnnBlock>& blocks, size_t scratch_bytes, int64_t first) {
  const auto count = static_cast<int64_t>(blocks.size());
  // No exception may leave a parallel loop: refusals are collected, and the first is reported.
  std::vector<KnnRefusal> why(count, KnnRefusal::kNone);
  std::vector<int64_t> row(count, -1);
  const double flops = 8.0 * p.num_rows * p.dim;
  parallel_tasks(count, flops, scratch_bytes, [&](int64_t b, void* scratch) {
    why[b] = knn_kernels().pack(p, tables, blocks[b], scratch, &row[b]);
  });
  for (int64_t b = 0; b < count; ++b) {
    FCL_REQUIRE(why[b] != KnnRefusal::kNotFinite, "fcl::", op, ": expected finite ", name,
                ", got a NaN or an infinity in row ", first + row[b]);
    FCL_REQUIRE(why[b] != KnnRefusal::kTooLarge, "fcl::", op, ": expected ", name,
                " whose squared norms do not overflow (scale them down, or use float64), got row ",
                first + row[b]);
  }
}

namespace {

// A block of rows, and the blocks [first, first + count) of its segment.
struct Member {
  KnnBlock block;
  int64_t first, count;
};

struct Plan {
  std::vector<Member> blocks;
  double flops;  // of the products
};

Plan plan_segments(const int64_t* offsets, int64_t num_segments, int64_t dim) {
  Plan plan{{}, 0.0};
  for (int64_t s = 0; s < num_segments; ++s) {
    const int64_t size = offsets[s + 1] - offsets[s];
    const auto first = static_cast<int64_t>(plan.blocks.size());
    const int64_t count = (size + kKnnBlock - 1) / kKnnBlock;
    for (int64_t begin = 0; begin < size; begin += kKnnBlock) {
      const KnnBlock block{offsets[s] + begin, std::min(kKnnBlock, size - begin)};
      plan.blocks.push_back({block, first, count});
    }
    plan.flops += static_cast<double>(size) * size * dim;
  }
  return plan;
}

// Of the m blocks of a segment, block b meets b, b + 1, ... b + m / 2, modulo m: every pair meets
// once, every block has the same work, and threads on neighbouring blocks stay out of each other's
// way.
void search_all(const KnnProblem& p, const KnnTables& tables, const Plan& plan,
                size_t scratch_bytes) {
  std::vector<std::mutex> lists(plan.blocks.size());
  const auto blocks = static_cast<int64_t>(plan.blocks.size());
  parallel_tasks(blocks, plan.flops, scratch_bytes, [&](int64_t b, void* scratch) {
    const auto [columns, first, m] = plan.blocks[b];
    knn_kernels().load_columns(p, tables, columns, scratch);
    // For an even m, the blocks opposite each other meet from the first one's side.
    const int64_t partners = m % 2 == 0 && b - first >= m / 2 ? m / 2 : m / 2 + 1;
    for (int64_t step = 0; step < partners; ++step) {
      const int64_t other = first + (b - first + step) % m;
      const KnnBlock rows = plan.blocks[other].block;
      const bool is_last = step + 1 == partners;
      const KnnBlock next =
          is_last ? KnnBlock{0, 0} : plan.blocks[first + (b - first + step + 1) % m].block;
      knn_kernels().multiply(p, tables, rows, next, columns, scratch);
      {
        const std::lock_guard<std::mutex> lock(lists[b]);
        knn_kernels().offer_to_columns(p, tables, rows, columns, scratch);
      }
      if (other == b) continue;
      const std::lock_guard<std::mutex> lock(lists[other]);
      knn_kernels().offer_to_rows(p, tables, rows, columns, scratch);
    }
  });
}

std::tuple<Tensor, Tensor> neighbours(const char* op, const Tensor& given, const KnnShape& shape,
                                      const int64_t* offsets, int64_t num_segments) {
  const Tensor features = torch::stable::contiguous(given);
  const int64_t n = shape.num_rows;
  // Other rows of the largest segment: a list that holds them all never has to choose.
  int64_t others = 1;
  for (int64_t s = 0; s < num_segments; ++s) {
    others = std::max(others, offsets[s + 1] - offsets[s] - 1);
  }
  const int64_t k = std::min(shape.k, others);
  const KnnProblem p{shape.dtype,
                     shape.metric,
                     features.const_data_ptr(),
                     n,
                     shape.dim,
                     k,
                     std::min(2 * k, others),
                     shape.k,
                     kKnnBlock,
                     true};
  const Plan plan = plan_segments(offsets, num_segments, shape.dim);
  const KnnBytes bytes = knn_kernels().bytes(p);
  const Scratch rows(bytes.rows), squares(bytes.squares), keys(bytes.keys), bounds(bytes.bounds),
      counts(n * sizeof(int32_t));
  want_large_pages(rows.get(), bytes.rows);
  const KnnTables tables{rows.get(), squares.get(), keys.get(), bounds.get(), counts.as<int32_t>()};
  std::vector<KnnBlock> every_block;
  for (const Member& member : plan.blocks) every_block.push_back(member.block);
  pack_blocks(op, "features", p, tables, every_block, bytes.scratch, 0);
  search_all(p, tables, plan, bytes.scratch);
  Tensor indices = torch::stable::new_empty(features, {n, shape.k}, ScalarType::Int);
  Tensor similarities =
      torch::stable::new_empty(features, {n, shape.k}, accumulate_type(shape.dtype));
  int32_t* index_data = indices.mutable_data_ptr<int32_t>();
  void* similarity_data = similarities.mutable_data_ptr();
  const auto blocks = static_cast<int64_t>(plan.blocks.size());
  parallel_tasks(blocks, 20.0 * n * shape.k, 0, [&](int64_t b, void*) {
    knn_kernels().finish(p, tables, plan.blocks[b].block, index_data, similarity_data);
  });
  return {indices, similarities};
}

std::tuple<Tensor, Tensor> knn_graph(Tensor features, int64_t k, Text metric) {
  const KnnShape shape = check_knn_graph(features, k, metric);
  const int64_t whole[] = {0, shape.num_rows};
  return neighbours("knn_graph", features, shape, whole, 1);
}

std::tuple<Tensor, Tensor> knn_graph_segments(Tensor features, Tensor offsets, int64_t k,
                                              Text metric) {
  const KnnShape shape = check_knn_graph_segments(features, offsets, k, metric);
  offsets = torch::stable::contiguous(offsets);
  const int64_t* bounds = offsets.const_data_ptr<int64_t>();
  const int64_t num_segments = offsets.size(0) - 1;
  check_knn_offsets(bounds, num_segments, shape.num_rows);
  return neighbours("knn_graph_segments", features, shape, bounds, num_segments);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) {
  m.impl("knn_graph", TORCH_BOX(&knn_graph));
  m.impl("knn_graph_segments", TORCH_BOX(&knn_graph_segments));
}

}  // namespace fcl::ops::cpu
