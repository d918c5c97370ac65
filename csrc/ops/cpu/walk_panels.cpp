// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/walk_panels.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef __linux__
#include <unistd.h>
#endif

#include "common/host.h"

namespace fcl::ops::cpu {
namespace {

// As in KnnGraph.prepare: rows of a window are what a core's own cache holds.
constexpr int64_t kWindowRows = 512;
constexpr int64_t kMostWindows = 8;
// Enough edges to tell; a window of hubs has millions.
constexpr int64_t kMostEdges = 1 << 15;
// Edges per distinct column from which whole rows are faster (measured: 200,000 x 128, k = 32).
constexpr double kEnoughReuse = 1.5;

// FCL_CACHE_BYTES corrects what a virtual machine tells of its host.
int64_t last_level_cache() {
  if (const char* given = std::getenv("FCL_CACHE_BYTES"); given != nullptr && *given != '\0') {
    return std::atoll(given);
  }
#ifdef _SC_LEVEL3_CACHE_SIZE
  if (const int64_t bytes = sysconf(_SC_LEVEL3_CACHE_SIZE); bytes > 0) return bytes;
#endif
  return int64_t{16} << 20;
}

template <typename Index>
double reuse_of(const int64_t* crow, const Index* col, int64_t num_rows) {
  const int64_t windows = std::max<int64_t>(1, num_rows / kWindowRows);
  const int64_t stride = std::max<int64_t>(1, windows / kMostWindows);
  int64_t edges = 0;
  int64_t distinct = 0;
  std::vector<Index> found;
  for (int64_t window = 0; window < windows; window += stride) {
    const int64_t begin = crow[window * kWindowRows];
    const int64_t end = crow[std::min(num_rows, (window + 1) * kWindowRows)];
    found.assign(col + begin, col + std::min(end, begin + kMostEdges));
    std::sort(found.begin(), found.end());
    edges += static_cast<int64_t>(found.size());
    distinct += std::unique(found.begin(), found.end()) - found.begin();
  }
  return distinct == 0 ? 1 : static_cast<double>(edges) / static_cast<double>(distinct);
}

double reuse(const WalkGraph& graph) {
  const int64_t* crow = graph.crow.const_data_ptr<int64_t>();
  const int64_t num_rows = graph.crow.size(0) - 1;
  return graph.col.scalar_type() == ScalarType::Long
             ? reuse_of(crow, graph.col.const_data_ptr<int64_t>(), num_rows)
             : reuse_of(crow, graph.col.const_data_ptr<int32_t>(), num_rows);
}

// Columns [begin, begin + width) of `from` [N, D]; zeros beyond D.
Tensor columns_of(const Tensor& from, int64_t begin, int64_t width) {
  const int64_t num_rows = from.size(0);
  const int64_t dim = from.size(1);
  const size_t element = from.element_size();
  const size_t bytes = std::min(width, dim - begin) * element;
  const Tensor panel = torch::stable::new_empty(from, {num_rows, width});
  const char* source = static_cast<const char*>(from.const_data_ptr()) + begin * element;
  char* target = static_cast<char*>(panel.mutable_data_ptr());
  parallel_over(num_rows, 4096, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      char* to = target + row * width * element;
      std::memcpy(to, source + row * dim * element, bytes);
      std::memset(to + bytes, 0, width * element - bytes);
    }
  });
  return panel;
}

void put_columns(const Tensor& panel, const Tensor& to, int64_t begin) {
  const int64_t width = panel.size(1);
  const int64_t dim = to.size(1);
  const size_t element = to.element_size();
  const size_t bytes = std::min(width, dim - begin) * element;
  const char* source = static_cast<const char*>(panel.const_data_ptr());
  char* target = static_cast<char*>(to.mutable_data_ptr()) + begin * element;
  parallel_over(panel.size(0), 4096, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      std::memcpy(target + row * dim * element, source + row * width * element, bytes);
    }
  });
}

}  // namespace

int64_t panel_width(const WalkGraph& graph, const Tensor& restart, int64_t unit,
                    int64_t num_steps) {
  const int64_t num_rows = restart.size(0);
  const int64_t dim = restart.size(1);
  // Kernels take rows shorter than that one number at a time.
  if (dim < unit && 2 * dim >= unit) return unit;
  // Copying columns out and back costs about a step.
  if (num_steps < 2 || num_rows == 0) return 0;
  const int64_t cache = last_level_cache();
  const int64_t column = num_rows * static_cast<int64_t>(restart.element_size());
  if (column * dim <= cache || column * unit > cache || reuse(graph) >= kEnoughReuse) return 0;
  // A fifth of the cache is for what streams by: edges, restart, results.
  const int64_t fitting = std::max(unit, cache / 5 * 4 / column / unit * unit);
  const int64_t panels = (dim + fitting - 1) / fitting;
  const int64_t even = (dim + panels - 1) / panels;
  return (even + unit - 1) / unit * unit;
}

Tensor walk_panels(const Tensor& state, const Tensor& restart, int64_t width,
                   const std::function<Tensor(const Tensor&, const Tensor&)>& walk) {
  Tensor out;
  const bool is_start = state.const_data_ptr() == restart.const_data_ptr();
  for (int64_t begin = 0; begin < restart.size(1); begin += width) {
    const Tensor part = columns_of(restart, begin, width);
    const Tensor walked = walk(is_start ? part : columns_of(state, begin, width), part);
    if (!out.defined()) out = torch::stable::new_empty(walked, {restart.size(0), restart.size(1)});
    put_columns(walked, out, begin);
  }
  return out;
}

}  // namespace fcl::ops::cpu
