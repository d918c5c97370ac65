// SPDX-License-Identifier: Apache-2.0
// csr_transpose on the CPU. Edges are cut into parts; each part counts its columns, and a prefix
// sum over (column, part) gives every part its own slots, so parts scatter at once without atomics.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <tuple>
#include <type_traits>

#include "common/host.h"
#include "ops/cpu/csr_host.h"
#include "ops/csr_transpose.h"

namespace fcl::ops::cpu {
namespace {

// Work of one row besides its edges, in edges, and work worth a range of its own: few enough rows
// that what was just written is still cached when the walk measures its difference.
constexpr int64_t kRowWork = 4;
constexpr int64_t kRangeWork = 4096;
// Each part of a transpose needs counters for all columns, so parts are few.
constexpr int64_t kMostParts = 16;
constexpr int64_t kFewestEdges = 1 << 16;

template <typename F>
void with_columns(const Tensor& col, const F& f) {
  if (col.scalar_type() == ScalarType::Long) {
    f(col.const_data_ptr<int64_t>());
  } else {
    f(col.const_data_ptr<int32_t>());
  }
}

template <typename Index>
void check_columns(const char* op, const Index* col, int64_t num_edges, int64_t num_columns) {
  std::atomic<bool> ok{true};
  parallel_over(num_edges, 1 << 16, [&](int64_t begin, int64_t end) {
    Index lowest = 0;
    Index highest = -1;
    for (int64_t e = begin; e < end; ++e) {
      lowest = std::min(lowest, col[e]);
      highest = std::max(highest, col[e]);
    }
    if (lowest < -1 || highest >= num_columns) ok = false;
  });
  if (ok) return;
  // Only a refused graph pays for the search. No exception may leave a parallel loop.
  for (int64_t e = 0; e < num_edges; ++e) {
    FCL_REQUIRE(col[e] >= -1 && col[e] < num_columns, "fcl::", op, ": expected col_indices in [0, ",
                num_columns, ") or -1 (padding), got ", col[e], " at edge ", e);
  }
}

template <typename Index>
void transpose(const int64_t* crow, const Index* col, int64_t num_rows, int64_t num_edges,
               int64_t num_columns, int64_t* out_crow, Index* out_col, int64_t* edge_order) {
  // Column num_columns collects the padding.
  const int64_t bins = num_columns + 1;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t wanted = std::min(threads, std::min(kMostParts, num_edges / kFewestEdges));
  const int64_t parts = std::max<int64_t>(wanted, 1);
  const Scratch scratch(parts * bins * sizeof(int64_t));
  int64_t* slots = scratch.as<int64_t>();
  auto bin_of = [&](int64_t e) { return col[e] < 0 ? num_columns : static_cast<int64_t>(col[e]); };
  auto first_edge = [&](int64_t part) { return part * num_edges / parts; };
  parallel_over(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      int64_t* counts = slots + part * bins;
      std::fill(counts, counts + bins, 0);
      for (int64_t e = first_edge(part); e < first_edge(part + 1); ++e) ++counts[bin_of(e)];
    }
  });
  int64_t next = 0;
  for (int64_t c = 0; c < bins; ++c) {
    if (c < num_columns) out_crow[c] = next;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t count = slots[part * bins + c];
      slots[part * bins + c] = next;
      next += count;
    }
  }
  out_crow[num_columns] = num_edges;
  parallel_over(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      int64_t* slot = slots + part * bins;
      int64_t e = first_edge(part);
      int64_t row = std::upper_bound(crow, crow + num_rows + 1, e) - crow - 1;
      for (; e < first_edge(part + 1); ++e) {
        while (crow[row + 1] <= e) ++row;
        const int64_t at = slot[bin_of(e)]++;
        out_col[at] = col[e] < 0 ? Index(-1) : static_cast<Index>(row);
        edge_order[at] = e;
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> csr_transpose(Tensor crow_indices, Tensor col_indices,
                                                 int64_t num_columns) {
  check_csr_transpose(crow_indices, col_indices, num_columns);
  crow_indices = torch::stable::contiguous(crow_indices);
  col_indices = torch::stable::contiguous(col_indices);
  check_csr_entries("csr_transpose", crow_indices, col_indices, num_columns);
  TransposedCsr out = transpose_csr(crow_indices, col_indices, num_columns);
  return {out.crow, out.col, out.edge_order};
}

}  // namespace

void check_csr_entries(const char* op, const Tensor& crow_indices, const Tensor& col_indices,
                       int64_t num_columns) {
  const int64_t* crow = crow_indices.const_data_ptr<int64_t>();
  const int64_t num_rows = crow_indices.size(0) - 1;
  const int64_t num_edges = col_indices.size(0);
  FCL_REQUIRE(crow[0] == 0 && crow[num_rows] == num_edges, "fcl::", op,
              ": expected crow_indices to run from 0 to E = ", num_edges, ", got ", crow[0], " to ",
              crow[num_rows]);
  for (int64_t i = 0; i < num_rows; ++i) {
    FCL_REQUIRE(crow[i] <= crow[i + 1], "fcl::", op,
                ": expected crow_indices that never decrease, got ", crow[i], " then ", crow[i + 1],
                " at row ", i);
  }
  with_columns(col_indices,
               [&](const auto* col) { check_columns(op, col, num_edges, num_columns); });
}

std::vector<int64_t> balanced_rows(const Tensor& crow_indices) {
  const int64_t* crow = crow_indices.const_data_ptr<int64_t>();
  const int64_t num_rows = crow_indices.size(0) - 1;
  std::vector<int64_t> bounds{0};
  int64_t work = 0;
  for (int64_t i = 0; i < num_rows; ++i) {
    work += crow[i + 1] - crow[i] + kRowWork;
    if (work < kRangeWork) continue;
    bounds.push_back(i + 1);
    work = 0;
  }
  if (bounds.back() < num_rows) bounds.push_back(num_rows);
  return bounds;
}

TransposedCsr transpose_csr(const Tensor& crow, const Tensor& col, int64_t num_columns) {
  const int64_t num_edges = col.size(0);
  TransposedCsr out{torch::stable::new_empty(crow, {num_columns + 1}),
                    torch::stable::new_empty(col, {num_edges}),
                    torch::stable::new_empty(crow, {num_edges})};
  with_columns(col, [&](const auto* columns) {
    using Index = std::remove_cv_t<std::remove_reference_t<decltype(*columns)>>;
    transpose(crow.const_data_ptr<int64_t>(), columns, crow.size(0) - 1, num_edges, num_columns,
              out.crow.mutable_data_ptr<int64_t>(), out.col.mutable_data_ptr<Index>(),
              out.edge_order.mutable_data_ptr<int64_t>());
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) { m.impl("csr_transpose", TORCH_BOX(&csr_transpose)); }

}  // namespace fcl::ops::cpu
