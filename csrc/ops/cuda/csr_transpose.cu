// SPDX-License-Identifier: Apache-2.0
// csr_transpose on CUDA: a stable radix sort of the edges by column, so that edges of one column
// keep their order and the result is unique; then a binary search per column and per edge.
#include <algorithm>
#include <cub/device/device_radix_sort.cuh>
#include <type_traits>

#include "common/cuda_device.cuh"
#include "common/cuda_launch.cuh"
#include "ops/cuda/graph_kernels.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

constexpr int kThreads = 256;

template <typename Index>
__global__ void __launch_bounds__(kThreads) check_kernel(CsrGraph graph) {
  const Index* col = static_cast<const Index*>(graph.col);
  for (int64_t i = global_thread(); i <= graph.num_rows; i += grid_threads()) {
    const int64_t before = i == 0 ? 0 : graph.crow[i - 1];
    assert(graph.crow[i] >= before && "crow_indices decrease");
    assert((i != 0 || graph.crow[0] == 0) && "crow_indices do not start at 0");
    assert((i != graph.num_rows || graph.crow[i] == graph.num_edges) &&
           "crow_indices do not end at E");
  }
  for (int64_t e = global_thread(); e < graph.num_edges; e += grid_threads()) {
    assert(col[e] >= -1 && static_cast<int64_t>(col[e]) < graph.num_columns &&
           "col_indices leave [0, num_columns), or -1 for padding");
  }
}

// Sort keys: the column, and num_columns for padding, which so comes last.
template <typename Index, typename Key>
__global__ void __launch_bounds__(kThreads)
    key_kernel(CsrGraph graph, Key* keys, int64_t* positions) {
  const Index* col = static_cast<const Index*>(graph.col);
  for (int64_t e = global_thread(); e < graph.num_edges; e += grid_threads()) {
    keys[e] = static_cast<Key>(col[e] < 0 ? graph.num_columns : static_cast<int64_t>(col[e]));
    positions[e] = e;
  }
}

template <typename Key>
__global__ void __launch_bounds__(kThreads)
    crow_kernel(const Key* keys, int64_t num_edges, int64_t num_columns, int64_t* out_crow) {
  for (int64_t c = global_thread(); c <= num_columns; c += grid_threads()) {
    // First edge whose column is not below c; padding belongs to the last row.
    int64_t low = 0;
    int64_t high = num_edges;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (static_cast<int64_t>(keys[middle]) < c) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    out_crow[c] = c == num_columns ? num_edges : low;
  }
}

// Row of the input that holds each edge, in the order of the transpose.
template <typename Index, typename Key>
__global__ void __launch_bounds__(kThreads)
    row_kernel(CsrGraph graph, const Key* keys, const int64_t* edge_order, Index* out_col) {
  for (int64_t e = global_thread(); e < graph.num_edges; e += grid_threads()) {
    const int64_t edge = edge_order[e];
    int64_t low = 0;
    int64_t high = graph.num_rows;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (graph.crow[middle + 1] <= edge) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    const bool padding = static_cast<int64_t>(keys[e]) == graph.num_columns;
    out_col[e] = padding ? Index(-1) : static_cast<Index>(low);
  }
}

int bits_of(int64_t largest) {
  int bits = 1;
  while (bits < 63 && largest >> bits != 0) ++bits;
  return bits;
}

constexpr size_t kAlign = 256;
size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

template <typename Key>
size_t sort_bytes(const CsrGraph& graph) {
  size_t bytes = 0;
  check_cuda(cub::DeviceRadixSort::SortPairs(
                 nullptr, bytes, static_cast<const Key*>(nullptr), static_cast<Key*>(nullptr),
                 static_cast<const int64_t*>(nullptr), static_cast<int64_t*>(nullptr),
                 graph.num_edges, 0, bits_of(graph.num_columns), cudaStream_t{}),
             "csr_transpose");
  return bytes;
}

// Scratch: keys, sorted keys, positions, and what the sort wants.
template <typename Key>
size_t scratch_bytes(const CsrGraph& graph) {
  return 2 * aligned(graph.num_edges * sizeof(Key)) + aligned(graph.num_edges * sizeof(int64_t)) +
         sort_bytes<Key>(graph);
}

template <typename Index, typename Key>
void transpose_typed(const CsrGraph& graph, void* scratch, int64_t* out_crow, Index* out_col,
                     int64_t* edge_order, cudaStream_t stream) {
  const char* op = "csr_transpose";
  char* base = static_cast<char*>(scratch);
  const size_t key_bytes = aligned(graph.num_edges * sizeof(Key));
  Key* keys = reinterpret_cast<Key*>(base);
  Key* sorted = reinterpret_cast<Key*>(base + key_bytes);
  int64_t* positions = reinterpret_cast<int64_t*>(base + 2 * key_bytes);
  void* sort_scratch = base + 2 * key_bytes + aligned(graph.num_edges * sizeof(int64_t));
  const int64_t edge_blocks = stride_blocks(graph.num_edges, kThreads);
  if (graph.num_edges > 0) {
    launch(op, key_kernel<Index, Key>, {edge_blocks}, kThreads, stream, graph, keys, positions);
    size_t bytes = sort_bytes<Key>(graph);
    check_cuda(
        cub::DeviceRadixSort::SortPairs(sort_scratch, bytes, static_cast<const Key*>(keys), sorted,
                                        static_cast<const int64_t*>(positions), edge_order,
                                        graph.num_edges, 0, bits_of(graph.num_columns), stream),
        op);
  }
  launch(op, crow_kernel<Key>, {stride_blocks(graph.num_columns + 1, kThreads)}, kThreads, stream,
         sorted, graph.num_edges, graph.num_columns, out_crow);
  launch(op, row_kernel<Index, Key>, {edge_blocks}, kThreads, stream, graph, sorted, edge_order,
         out_col);
}

bool needs_wide_keys(const CsrGraph& graph) { return graph.num_columns > UINT32_MAX; }

}  // namespace

void launch_check_csr(const char* op, const CsrGraph& graph, cudaStream_t stream) {
  const int64_t blocks = stride_blocks(std::max(graph.num_rows + 1, graph.num_edges), kThreads);
  if (graph.wide) {
    launch(op, check_kernel<int64_t>, {blocks}, kThreads, stream, graph);
  } else {
    launch(op, check_kernel<int32_t>, {blocks}, kThreads, stream, graph);
  }
}

size_t csr_transpose_scratch(const CsrGraph& graph) {
  return needs_wide_keys(graph) ? scratch_bytes<uint64_t>(graph) : scratch_bytes<uint32_t>(graph);
}

void launch_csr_transpose(const CsrGraph& graph, void* scratch, int64_t* out_crow, void* out_col,
                          int64_t* edge_order, cudaStream_t stream) {
  auto run = [&](auto* col, auto key) {
    using Index = std::remove_pointer_t<decltype(col)>;
    transpose_typed<Index, decltype(key)>(graph, scratch, out_crow, col, edge_order, stream);
  };
  auto run_index = [&](auto* col) {
    if (needs_wide_keys(graph)) {
      run(col, uint64_t{});
    } else {
      run(col, uint32_t{});
    }
  };
  if (graph.wide) {
    run_index(static_cast<int64_t*>(out_col));
  } else {
    run_index(static_cast<int32_t*>(out_col));
  }
}

}  // namespace fcl::ops::cuda
