// SPDX-License-Identifier: Apache-2.0
// The path `simt` of knn_graph on CUDA. A block owns 64 rows and meets all others, a tile of
// products at a time. A warp owns the list of a row. After the first tiles hardly a product beats
// the k-th best, and the rest costs one comparison. Similarities are one sum in a fixed order, and
// ties go to the lower index: the result is unique.
#include <type_traits>

#include "common/cuda_launch.cuh"
#include "common/cuda_scratch.h"
#include "common/cuda_tile.cuh"
#include "ops/cuda/knn_list.cuh"
#include "ops/cuda/knn_path.h"

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
__global__ void __launch_bounds__(kPrepareThreads) prepare_kernel(KnnProblem p, KnnRows rows) {
  using T = typename Accumulate<S>::type;
  const int64_t row = global_thread() / kWarp;
  const int lane = threadIdx.x % kWarp;
  if (row >= p.num_rows) return;
  const S* from = static_cast<const S*>(p.features) + row * p.dim;
  T* to = static_cast<T*>(rows.data) + row * rows.stride;
  for (int64_t d = p.dim + lane; d < rows.stride; d += kWarp) to[d] = 0;
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
  static_cast<T*>(rows.squares)[row] = sum;
}

template <typename T>
__global__ void __launch_bounds__(kTileThreads)
    search_kernel(KnnProblem p, KnnRows from, int64_t columns, int32_t* indices, T* similarities) {
  const T* rows = static_cast<const T*>(from.data);
  const T* squares = static_cast<const T*>(from.squares);
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
  for (int64_t other = 0; other < columns; other += kTileColumns<T>) {
    const int others =
        static_cast<int>(min(columns - other, static_cast<int64_t>(kTileColumns<T>)));
    T products[kThreadRows][kThreadColumns<T>];
    tile_product<T>(shared, rows + first * from.stride, count, rows + other * from.stride, others,
                    from.stride, products);
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
          similarity = l2_similarity(similarity, squares[first + r], squares[other + column]);
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

// Rows as they come: nothing here needs them aligned.
KnnRows take_rows(const KnnProblem& p, fcl::cuda::ScratchArrays& scratch) {
  const int64_t bytes = p.dtype == Dtype::kFloat64 ? 8 : 4;
  void* data = scratch.take_bytes(p.num_rows * p.dim * bytes);
  return {data, scratch.take_bytes(p.num_rows * bytes), p.dim};
}

}  // namespace

void launch_knn_rows(const KnnProblem& p, const KnnRows& rows, cudaStream_t stream) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    launch("knn_graph", prepare_kernel<typename decltype(tag)::type>,
           {divide_up(p.num_rows, kPrepareThreads / kWarp)}, kPrepareThreads, stream, p, rows);
  });
}

void launch_knn_columns(const KnnProblem& p, const KnnRows& rows, int64_t columns, int32_t* indices,
                        void* similarities, cudaStream_t stream) {
  const auto run = [&](auto* out) {
    using T = std::remove_pointer_t<decltype(out)>;
    launch("knn_graph", search_kernel<T>, {divide_up(p.num_rows, kTileRows)}, kTileThreads, stream,
           p, rows, columns, indices, out);
  };
  if (p.dtype == Dtype::kFloat64) return run(static_cast<double*>(similarities));
  run(static_cast<float*>(similarities));
}

const KnnPath kKnnSimt = {
    "simt",
    [](const CudaDevice&) { return true; },
    [](const KnnProblem&) { return true; },
    [](const KnnProblem& p) {
      fcl::cuda::ScratchArrays scratch(nullptr);
      take_rows(p, scratch);
      return scratch.bytes();
    },
    [](const KnnProblem& p, void* memory, int32_t* indices, void* similarities, const CudaDevice&,
       cudaStream_t stream) {
      fcl::cuda::ScratchArrays scratch(memory);
      const KnnRows rows = take_rows(p, scratch);
      launch_knn_rows(p, rows, stream);
      launch_knn_columns(p, rows, p.num_rows, indices, similarities, stream);
    },
};

}  // namespace fcl::ops::cuda
