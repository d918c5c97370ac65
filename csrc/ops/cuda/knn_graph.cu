// SPDX-License-Identifier: Apache-2.0
// knn_graph on CUDA. A block owns 64 rows and meets all others, a tile of products at a time. The
// k best of a row live sorted in the output itself, so any k works; a warp owns the list. After the
// first tiles hardly a product beats the k-th best, and the rest costs one comparison. Similarities
// are one sum in a fixed order, and ties go to the lower index: the result is unique.
#include "common/cuda_launch.cuh"
#include "common/cuda_tile.cuh"
#include "ops/cuda/knn_graph_kernels.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

constexpr int kPrepareThreads = 128;
constexpr int kWarps = kTileThreads / kWarp;
constexpr int kRowsPerWarp = kTileRows / kWarps;

// Features -> accumulation type, normalised for cosine; squared norms otherwise. A warp per row.
// The norm is taken relative to the largest entry, in double, so neither tiny nor huge rows lose
// it.
template <typename S>
__global__ void __launch_bounds__(kPrepareThreads)
    prepare_kernel(KnnProblem p, typename Accumulate<S>::type* rows,
                   typename Accumulate<S>::type* squares) {
  using T = typename Accumulate<S>::type;
  const int64_t row = global_thread() / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= p.num_rows) return;
  const S* from = static_cast<const S*>(p.features) + row * p.dim;
  T* to = rows + row * p.dim;
  double largest = 0;
  for (int64_t d = lane; d < p.dim; d += kWarp) {
    const double x = fabs(static_cast<double>(load_value<T>(from + d)));
    assert(x < infinity<double>() && "knn_graph: features are not finite");
    largest = x > largest ? x : largest;
  }
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const double other = __shfl_xor_sync(kAllLanes, largest, offset);
    largest = other > largest ? other : largest;
  }
  if (p.metric == KnnMetric::kCosine) {
    // A zero row stays zero: similarity 0 to everything.
    const double unit = largest > 0 ? largest : 1.0;
    double sum = 0;
    for (int64_t d = lane; d < p.dim; d += kWarp) {
      const double x = static_cast<double>(load_value<T>(from + d)) / unit;
      sum = fma(x, x, sum);
    }
    sum = warp_sum(sum);
    const double inverse = largest > 0 ? 1.0 / sqrt(sum) : 1.0;
    for (int64_t d = lane; d < p.dim; d += kWarp) {
      to[d] = static_cast<T>(static_cast<double>(load_value<T>(from + d)) / unit * inverse);
    }
    return;
  }
  for (int64_t d = lane; d < p.dim; d += kWarp) to[d] = load_value<T>(from + d);
  if (lane != 0) return;
  // Summed as the products are, so that l2 of equal rows is exactly 0.
  T sum = 0;
  for (int64_t d = 0; d < p.dim; ++d) {
    const T x = load_value<T>(from + d);
    sum = multiply_add(x, x, sum);
  }
  assert(sum * T(8) < infinity<T>() && "knn_graph: squared norms of the features overflow");
  squares[row] = sum;
}

// Puts (similarity, index) in its place in a sorted list of k, the last entry falls off; equal ones
// stay ahead. Returns the new k-th best. The whole warp calls it.
template <typename T>
__device__ __forceinline__ T insert(T* similarities, int32_t* indices, int64_t k, T similarity,
                                    int32_t index) {
  const int lane = threadIdx.x % kWarp;
  T bound = similarity;
  const int64_t last = (k - 1) / kWarp * kWarp;
  for (int64_t begin = last; begin >= 0; begin -= kWarp) {
    const int64_t at = begin + lane;
    const bool inside = at < k;
    const T mine = inside ? similarities[at] : -infinity<T>();
    const int32_t my_index = inside ? indices[at] : INT32_MAX;
    T before = __shfl_up_sync(kAllLanes, mine, 1);
    int32_t before_index = __shfl_up_sync(kAllLanes, my_index, 1);
    if (lane == 0 && begin > 0) {
      before = similarities[begin - 1];
      before_index = indices[begin - 1];
    }
    const bool keeps = mine >= similarity;
    const bool is_place = at == 0 || before >= similarity;
    const T now = keeps ? mine : is_place ? similarity : before;
    if (inside && !keeps) {
      similarities[at] = now;
      indices[at] = is_place ? index : before_index;
    }
    if (begin == last) bound = __shfl_sync(kAllLanes, now, static_cast<int>((k - 1) % kWarp));
    // Entries further ahead are larger still.
    if (__ballot_sync(kAllLanes, inside && keeps) != 0) break;
  }
  __syncwarp();  // the next call reads what other lanes wrote
  return bound;
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    search_kernel(KnnProblem p, const T* rows, const T* squares, int32_t* indices,
                  T* similarities) {
  __shared__ TileShared<T> shared;
  __shared__ T bound[kTileRows];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int count = static_cast<int>(min(p.num_rows - first, static_cast<int64_t>(kTileRows)));
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  for (int i = warp * kRowsPerWarp; i < (warp + 1) * kRowsPerWarp && i < count; ++i) {
    for (int64_t at = lane; at < p.k; at += kWarp) {
      similarities[(first + i) * p.k + at] = -infinity<T>();
      indices[(first + i) * p.k + at] = INT32_MAX;
    }
    if (lane == 0) bound[i] = -infinity<T>();
  }
  const bool is_l2 = p.metric == KnnMetric::kSquaredL2;
  for (int64_t other = 0; other < p.num_rows; other += kTileColumns<T>) {
    const int others =
        static_cast<int>(min(p.num_rows - other, static_cast<int64_t>(kTileColumns<T>)));
    T products[kThreadRows][kThreadColumns<T>];
    tile_product<T>(shared, rows + first * p.dim, count, rows + other * p.dim, others, p.dim,
                    products);
    // Similarities of the tile before were last read ahead of a barrier inside tile_product.
#pragma unroll
    for (int j = 0; j < kThreadColumns<T>; ++j) {
      const int column = tile_column(j);
#pragma unroll
      for (int i = 0; i < kThreadRows; ++i) {
        const int r = tile_row(i);
        T similarity = products[i][j];
        const bool counts = r < count && column < others && first + r != other + column;
        if (is_l2 && counts) {
          similarity = T(2) * similarity - (squares[first + r] + squares[other + column]);
          similarity = similarity > 0 ? T(0) : similarity;
        }
        shared.weights[column][r] = counts ? similarity : -infinity<T>();
      }
    }
    __syncthreads();  // similarities are written
    for (int i = warp * kRowsPerWarp; i < (warp + 1) * kRowsPerWarp && i < count; ++i) {
      T* row_similarities = similarities + (first + i) * p.k;
      int32_t* row_indices = indices + (first + i) * p.k;
      T worst = bound[i];
      for (int begin = 0; begin < kTileColumns<T>; begin += kWarp) {
        const T mine = shared.weights[begin + lane][i];
        unsigned better = __ballot_sync(kAllLanes, mine > worst);
        for (; better != 0; better &= better - 1) {
          const int source = __ffs(better) - 1;
          const T candidate = __shfl_sync(kAllLanes, mine, source);
          if (candidate > worst) {
            worst = insert(row_similarities, row_indices, p.k, candidate,
                           static_cast<int32_t>(other + begin + source));
          }
        }
      }
      if (lane == 0) bound[i] = worst;  // every lane has voted with the old one
    }
  }
}

template <typename T>
size_t scratch_bytes(const KnnProblem& p) {
  return sizeof(T) * static_cast<size_t>(p.num_rows * (p.dim + 1));
}

}  // namespace

int64_t knn_graph_scratch(const KnnProblem& p) {
  return static_cast<int64_t>(p.dtype == Dtype::kFloat64 ? scratch_bytes<double>(p)
                                                         : scratch_bytes<float>(p));
}

void launch_knn_graph(const KnnProblem& p, void* scratch, int32_t* indices, void* similarities,
                      cudaStream_t stream) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulate<S>::type;
    const char* op = "knn_graph";
    T* rows = static_cast<T*>(scratch);
    T* squares = rows + p.num_rows * p.dim;
    launch(op, prepare_kernel<S>, {divide_up(p.num_rows, kPrepareThreads / kWarp)}, kPrepareThreads,
           stream, p, rows, squares);
    launch(op, search_kernel<T>, {divide_up(p.num_rows, kTileRows)}, kTileThreads, stream, p, rows,
           squares, indices, static_cast<T*>(similarities));
  });
}

}  // namespace fcl::ops::cuda
