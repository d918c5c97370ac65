// SPDX-License-Identifier: Apache-2.0
// walk_windows on the CPU: windows are sorted one by one, first to count their slots, then to fill
// them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "common/host.h"
#include "ops/cpu/csr_host.h"
#include "ops/walk_windows.h"

namespace fcl::ops::cpu {
namespace {

using torch::stable::contiguous;

constexpr int64_t kGrain = 64;

struct WindowEdge {
  int64_t column, edge;
  int64_t copy;  // how often the row has listed the column before
  int64_t slot;  // of the window
  int row;       // of the window
};

// The edges of a window with their slots, sorted by slot, then row.
template <typename Index>
void sort_window(const int64_t* crow, const Index* col, int64_t first, int64_t last,
                 std::vector<WindowEdge>& edges) {
  edges.clear();
  for (int64_t row = first; row < last; ++row) {
    for (int64_t e = crow[row]; e < crow[row + 1]; ++e) {
      if (col[e] >= 0) edges.push_back({col[e], e, 0, 0, static_cast<int>(row - first)});
    }
  }
  const auto by_row = [](const WindowEdge& a, const WindowEdge& b) {
    return std::tie(a.column, a.row, a.edge) < std::tie(b.column, b.row, b.edge);
  };
  std::sort(edges.begin(), edges.end(), by_row);
  for (size_t i = 1; i < edges.size(); ++i) {
    const WindowEdge& before = edges[i - 1];
    const bool is_copy = edges[i].column == before.column && edges[i].row == before.row;
    edges[i].copy = is_copy ? before.copy + 1 : 0;
  }
  const auto by_slot = [](const WindowEdge& a, const WindowEdge& b) {
    return std::tie(a.column, a.copy, a.row) < std::tie(b.column, b.copy, b.row);
  };
  std::sort(edges.begin(), edges.end(), by_slot);
  for (size_t i = 1; i < edges.size(); ++i) {
    const WindowEdge& before = edges[i - 1];
    const bool is_same = edges[i].column == before.column && edges[i].copy == before.copy;
    edges[i].slot = before.slot + (is_same ? 0 : 1);
  }
}

template <typename Index>
class WindowBuilder {
 public:
  WindowBuilder(const Tensor& crow, const Tensor& col)
      : crow_(crow.const_data_ptr<int64_t>()),
        col_(col.const_data_ptr<Index>()),
        num_rows_(crow.size(0) - 1),
        num_windows_((num_rows_ + kWindowRows - 1) / kWindowRows) {}

  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> run(const Tensor& like) {
    const Tensor window_crow = torch::stable::new_empty(like, {num_windows_ + 1});
    int64_t* slots = window_crow.mutable_data_ptr<int64_t>();
    std::vector<int64_t> edges(num_windows_ + 1, 0);
    slots[0] = 0;
    over_windows([&](int64_t window, const std::vector<WindowEdge>& found) {
      const int64_t used = found.empty() ? 0 : found.back().slot + 1;
      slots[window + 1] = (used + kChunkSlots - 1) / kChunkSlots * kChunkSlots;
      edges[window + 1] = static_cast<int64_t>(found.size());
    });
    for (int64_t w = 0; w < num_windows_; ++w) {
      slots[w + 1] += slots[w];
      edges[w + 1] += edges[w];
    }
    const int64_t num_slots = slots[num_windows_];
    const int64_t num_edges = edges[num_windows_];
    const Tensor window_col = torch::stable::new_empty(like, {num_slots}, ScalarType::Int);
    const Tensor chunk_crow = torch::stable::new_empty(like, {num_slots / kChunkSlots + 1});
    const Tensor positions = torch::stable::new_empty(like, {num_edges}, ScalarType::Byte);
    const Tensor edge_order = torch::stable::new_empty(like, {num_edges});
    int32_t* to_col = window_col.mutable_data_ptr<int32_t>();
    int64_t* to_chunk = chunk_crow.mutable_data_ptr<int64_t>();
    uint8_t* to_position = positions.mutable_data_ptr<uint8_t>();
    int64_t* to_order = edge_order.mutable_data_ptr<int64_t>();
    to_chunk[num_slots / kChunkSlots] = num_edges;
    over_windows([&](int64_t window, const std::vector<WindowEdge>& found) {
      std::fill(to_col + slots[window], to_col + slots[window + 1], -1);
      size_t i = 0;
      for (int64_t first = 0; first < slots[window + 1] - slots[window]; first += kChunkSlots) {
        to_chunk[(slots[window] + first) / kChunkSlots] = edges[window] + static_cast<int64_t>(i);
        for (; i < found.size() && found[i].slot < first + kChunkSlots; ++i) {
          const int64_t at = edges[window] + static_cast<int64_t>(i);
          to_col[slots[window] + found[i].slot] = static_cast<int32_t>(found[i].column);
          to_position[at] =
              static_cast<uint8_t>(found[i].row * kChunkSlots + (found[i].slot - first));
          to_order[at] = found[i].edge;
        }
      }
    });
    return {window_crow, window_col, chunk_crow, positions, edge_order};
  }

 private:
  template <typename F>
  void over_windows(const F& f) const {
    parallel_over(num_windows_, kGrain, [&](int64_t begin, int64_t end) {
      std::vector<WindowEdge> edges;
      for (int64_t window = begin; window < end; ++window) {
        sort_window(crow_, col_, window * kWindowRows,
                    std::min(num_rows_, (window + 1) * kWindowRows), edges);
        f(window, edges);
      }
    });
  }

  const int64_t* crow_;
  const Index* col_;
  int64_t num_rows_, num_windows_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> walk_windows(Tensor crow_indices,
                                                                Tensor col_indices) {
  const CsrShape shape = check_walk_windows(crow_indices, col_indices);
  const Tensor crow = contiguous(crow_indices);
  const Tensor col = contiguous(col_indices);
  check_csr_entries("walk_windows", crow, col, shape.num_rows);
  if (shape.wide) return WindowBuilder<int64_t>(crow, col).run(crow);
  return WindowBuilder<int32_t>(crow, col).run(crow);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) { m.impl("walk_windows", TORCH_BOX(&walk_windows)); }

}  // namespace fcl::ops::cpu
