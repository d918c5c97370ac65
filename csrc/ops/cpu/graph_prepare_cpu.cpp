// SPDX-License-Identifier: Apache-2.0
// graph_prepare on the CPU. The order is grown block by block: a block takes, one at a time, the
// node that most of its members point to, so its rows gather from few columns. A new block starts
// at the best node its predecessor left over. (Greedy growth as in Gorder: Wei, Yu, Lu, Lin,
// SIGMOD 2016, with the window replaced by blocks, which need no scores to go down.)
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/host.h"
#include "ops/cpu/csr_host.h"
#include "ops/graph_prepare.h"

namespace fcl::ops::cpu {
namespace {

using torch::stable::contiguous;

// Rows of a block: those of 512 bytes then fill a quarter of a cache of 1 MB.
constexpr int64_t kBlockRows = 512;
// Scores above this count as this: who is better connected than that belongs to the block anyway.
constexpr int kMostScore = 63;

template <typename Index>
class OrderBuilder {
 public:
  OrderBuilder(const int64_t* crow, const Index* col, int64_t num_rows, int64_t* order)
      : crow_(crow),
        col_(col),
        num_rows_(num_rows),
        order_(order),
        placed_(num_rows, 0),
        score_(num_rows, 0) {}

  void run() {
    int64_t count = 0;
    while (count < num_rows_) {
      if (count % kBlockRows == 0) start_block();
      int64_t node = best();
      if (node < 0) node = next_unplaced();
      placed_[node] = 1;
      order_[count++] = node;
      for (int64_t e = crow_[node]; e < crow_[node + 1]; ++e) {
        if (col_[e] >= 0 && !placed_[col_[e]]) raise(col_[e]);
      }
    }
  }

 private:
  // Scores count members of the block alone; the best of the last one is the seed of the next.
  void start_block() {
    const int64_t seed = best();
    for (int64_t node : touched_) score_[node] = 0;
    touched_.clear();
    for (auto& bucket : buckets_) bucket.clear();
    top_ = 0;
    if (seed >= 0) raise(seed);
  }

  void raise(int64_t node) {
    if (score_[node] == 0) touched_.push_back(node);
    if (score_[node] == kMostScore) return;
    const int score = ++score_[node];
    buckets_[score].push_back(node);
    top_ = std::max(top_, score);
  }

  // The unplaced node of the highest score, the newest of equals, or -1. Entries that were placed
  // or raised since are dropped on the way.
  int64_t best() {
    for (; top_ > 0; --top_) {
      auto& bucket = buckets_[top_];
      while (!bucket.empty()) {
        const int64_t node = bucket.back();
        bucket.pop_back();
        if (!placed_[node] && score_[node] == top_) return node;
      }
    }
    return -1;
  }

  int64_t next_unplaced() {
    while (placed_[unplaced_]) ++unplaced_;
    return unplaced_;
  }

  const int64_t* crow_;
  const Index* col_;
  int64_t num_rows_;
  int64_t* order_;
  std::vector<uint8_t> placed_, score_;
  std::vector<int64_t> touched_;
  std::array<std::vector<int64_t>, kMostScore + 1> buckets_;
  int top_ = 0;
  int64_t unplaced_ = 0;
};

// Where each node went; refuses what is not a permutation.
std::vector<int64_t> inverse_of(const Tensor& order) {
  const int64_t* nodes = order.const_data_ptr<int64_t>();
  const int64_t count = order.size(0);
  std::vector<int64_t> place(count, -1);
  for (int64_t i = 0; i < count; ++i) {
    FCL_REQUIRE(nodes[i] >= 0 && nodes[i] < count && place[nodes[i]] < 0,
                "fcl::graph_prepare: expected order to hold each of 0 .. ", count - 1,
                " once, got ", nodes[i], " at ", i);
    place[nodes[i]] = i;
  }
  return place;
}

template <typename Index>
void permute(const int64_t* crow, const Index* col, const int64_t* order, const int64_t* place,
             int64_t num_rows, const int64_t* out_crow, Index* out_col, int64_t* edge_order) {
  parallel_over(num_rows, 1024, [&](int64_t begin, int64_t end) {
    std::vector<std::pair<uint32_t, int64_t>> edges;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = order[i];
      edges.clear();
      for (int64_t e = crow[row]; e < crow[row + 1]; ++e) {
        edges.emplace_back(col[e] < 0 ? UINT32_MAX : static_cast<uint32_t>(place[col[e]]), e);
      }
      std::sort(edges.begin(), edges.end());
      int64_t at = out_crow[i];
      for (const auto& [column, e] : edges) {
        out_col[at] = column == UINT32_MAX ? Index(-1) : static_cast<Index>(column);
        edge_order[at++] = e;
      }
    }
  });
}

template <typename F>
void with_columns(const Tensor& col, const F& f) {
  if (col.scalar_type() == ScalarType::Long) {
    f(col.const_data_ptr<int64_t>());
  } else {
    f(col.const_data_ptr<int32_t>());
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> graph_prepare(Tensor crow_indices, Tensor col_indices,
                                                         std::optional<Tensor> order) {
  const CsrShape shape = check_graph_prepare(crow_indices, col_indices, order);
  const Tensor crow = contiguous(crow_indices);
  const Tensor col = contiguous(col_indices);
  check_csr_entries("graph_prepare", crow, col, shape.num_rows);
  const int64_t* offsets = crow.const_data_ptr<int64_t>();
  const Tensor out_order = order.has_value() ? torch::stable::clone(contiguous(*order))
                                             : torch::stable::new_empty(crow, {shape.num_rows});
  const Tensor out_crow = torch::stable::empty_like(crow);
  const Tensor out_col = torch::stable::empty_like(col);
  const Tensor edge_order = torch::stable::new_empty(crow, {shape.num_edges});
  with_columns(col, [&](const auto* columns) {
    using Index = std::remove_cv_t<std::remove_reference_t<decltype(*columns)>>;
    if (!order.has_value()) {
      OrderBuilder<Index>(offsets, columns, shape.num_rows, out_order.mutable_data_ptr<int64_t>())
          .run();
    }
    const std::vector<int64_t> place = inverse_of(out_order);
    const int64_t* nodes = out_order.const_data_ptr<int64_t>();
    int64_t* out_offsets = out_crow.mutable_data_ptr<int64_t>();
    out_offsets[0] = 0;
    for (int64_t i = 0; i < shape.num_rows; ++i) {
      out_offsets[i + 1] = out_offsets[i] + offsets[nodes[i] + 1] - offsets[nodes[i]];
    }
    permute(offsets, columns, nodes, place.data(), shape.num_rows, out_offsets,
            out_col.mutable_data_ptr<Index>(), edge_order.mutable_data_ptr<int64_t>());
  });
  return {out_order, out_crow, out_col, edge_order};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) { m.impl("graph_prepare", TORCH_BOX(&graph_prepare)); }

}  // namespace fcl::ops::cpu
