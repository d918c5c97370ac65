// SPDX-License-Identifier: Apache-2.0
// The path `mma` of knn_graph on CUDA: tensor cores say which pairs of rows can matter to a list,
// and those are summed as `simt` sums them, so that both give the same bits (knn_bound.cuh: why
// none is missed).
//
// `simt` searches the first columns. Then a block owns 128 rows, and meets tiles of 128 columns in
// ascending order. A warp has 64 x 64 of the products in registers; survivors go to queues in
// shared memory, which are emptied once they are worth it, and as often as it takes when there are
// more than they hold.
#include "common/cuda_launch.cuh"
#include "common/cuda_scratch.h"
#include "common/cuda_tile.cuh"
#include "ops/cuda/knn_filter_queue.cuh"

namespace fcl::ops::cuda {
namespace {

template <typename S>
struct KnnFilter {
  KnnProblem problem;
  KnnRows rows;
  S* rounded;  // [N, stride of the rows]
  KnnTerm* terms;
  float kappa;
  int64_t first_column;  // those before are in the lists
  FilterLayout layout;
};

constexpr int kRoundThreads = 128;

// A warp per row.
template <typename S>
__global__ void __launch_bounds__(kRoundThreads) round_rows_kernel(KnnFilter<S> f) {
  const int64_t row = global_thread() / kWarp;
  if (row >= f.problem.num_rows) return;
  const float* from = static_cast<const float*>(f.rows.data) + row * f.rows.stride;
  S* to = f.rounded + row * f.rows.stride;
  double norm = 0;
  double rounded_norm = 0;
  double error = 0;
  for (int64_t d = threadIdx.x % kWarp; d < f.rows.stride; d += kWarp) {
    const double x = from[d];
    S rounded;
    store_rounded(&rounded, x);
    to[d] = rounded;
    const double y = load_value<double>(&rounded);
    norm = fma(x, x, norm);
    rounded_norm = fma(y, y, rounded_norm);
    error = fma(x - y, x - y, error);
  }
  norm = sqrt(warp_sum(norm));
  rounded_norm = sqrt(warp_sum(rounded_norm));
  error = sqrt(warp_sum(error));
  const bool is_l2 = f.problem.metric == KnnMetric::kSquaredL2;
  const float square = is_l2 ? static_cast<const float*>(f.rows.squares)[row] : 0.0f;
  if (threadIdx.x % kWarp == 0) {
    f.terms[row] = knn_term(norm, rounded_norm, error, square, f.kappa);
  }
}

template <typename S, bool kIsL2>
__global__ void __launch_bounds__(kFilterThreads, 2)
    mma_knn_kernel(KnnFilter<S> f, int32_t* indices, float* similarities) {
  __shared__ FilterQueues queues;
  __shared__ FilterRows rows;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t num_rows = f.problem.num_rows;
  const int64_t k = f.problem.k;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kFilterRows;
  const int count = static_cast<int>(min(num_rows - first, static_cast<int64_t>(kFilterRows)));
  using Place = typename FilterFeed<S>::Place;
  const FilterFeed<S> feed({f.rounded, num_rows, f.rows.stride, true}, f.terms, f.layout, first);
  feed.load_rows();
  feed.load(Place{f.first_column, 0}, 0);
  rows.terms[thread] = {};  // rows past the last are zero rows
  if (thread < count) {
    rows.terms[thread] = f.terms[first + thread];
    rows.bounds[thread] = similarities[(first + thread) * k + k - 1];
    if constexpr (kIsL2) {
      rows.squares[thread] = static_cast<const float*>(f.rows.squares)[first + thread];
    }
  }
  if (thread < kFilterWarps) queues.counts[thread] = 0;
  int stage = 0;
  for (int64_t column = f.first_column; column < num_rows; column += kFilterColumns) {
    FilterSums sums;
    Place next{column, 0};
    for (int panel = 0; panel < f.layout.panels; ++panel) {
      wait_copies<0>();
      __syncthreads();  // this panel is there, and all have read the one before it
      next = panel + 1 < f.layout.panels ? Place{column, panel + 1}
                                         : Place{column + kFilterColumns, 0};
      feed.load(next, stage ^ 1);
      if (panel == 0) sums.start<kIsL2>(rows, count, feed.terms(column), f.kappa);
      sums.template multiply<S>(feed.left(panel, stage), feed.right(stage));
      stage ^= 1;
    }
    Survivors survivors(sums);
    const int worth_while = next.column < num_rows ? kKnnBatch : 1;
    for (int came = kKnnQueue + 1; came > kKnnQueue;) {
      queues.push(survivors, first, column, num_rows);
      __syncthreads();  // all have queued theirs
      came = queues.fullest();
      if (came < worth_while) break;
      wait_copies<0>();
      __syncthreads();  // all know the fullest; nothing is on its way to where the sums are made
      drain_queue<kIsL2>(queues, f.rows, first, rows, k, indices, similarities);
      __syncthreads();         // queues are empty, bounds are new, nothing is summed any more
      feed.load(next, stage);  // what was on its way has been overwritten
    }
  }
}

// Rows are whole vectors of 16 bytes.
int64_t stride_of(const KnnProblem& p) { return fcl::cuda::divide_up(p.dim, 8) * 8; }

int64_t first_column(const KnnProblem& p) {
  return std::max(kKnnFirst, kKnnFirstPerNeighbour * p.k);
}

template <typename S>
KnnFilter<S> take_arrays(const KnnProblem& p, fcl::cuda::ScratchArrays& scratch) {
  const int64_t stride = stride_of(p);
  KnnFilter<S> f{};
  f.problem = p;
  f.rows = {scratch.take<float>(p.num_rows * stride), scratch.take<float>(p.num_rows), stride};
  f.rounded = scratch.take<S>(p.num_rows * stride);
  f.terms = scratch.take<KnnTerm>(p.num_rows);
  return f;
}

// Two blocks share a multiprocessor's shared memory: 227 KB on large devices since Hopper.
int most_panels_that_stay(const CudaDevice& device) {
  return device.capability >= 90 && device.capability < 110 ? 4 : 2;
}

template <typename S, bool kIsL2>
void launch_typed(const KnnProblem& p, void* memory, int32_t* indices, float* similarities,
                  const CudaDevice& device, cudaStream_t stream) {
  const char* op = "knn_graph";
  fcl::cuda::ScratchArrays scratch(memory);
  KnnFilter<S> f = take_arrays<S>(p, scratch);
  f.kappa = knn_kappa(p.dim);
  f.first_column = first_column(p);
  f.layout.panels = static_cast<int>(divide_up(f.rows.stride, kPanelColumns<S>));
  f.layout.stays = f.layout.panels <= most_panels_that_stay(device);
  launch_knn_rows(p, f.rows, stream);
  launch(op, round_rows_kernel<S>, {divide_up(p.num_rows, kRoundThreads / kWarp)}, kRoundThreads,
         stream, f);
  launch_knn_columns(p, f.rows, f.first_column, indices, similarities, stream);
  launch(op, mma_knn_kernel<S, kIsL2>, {divide_up(p.num_rows, kFilterRows)},
         {kFilterThreads, f.layout.bytes()}, stream, f, indices, similarities);
}

}  // namespace

const KnnPath kKnnMma = {
    "mma",
    [](const CudaDevice& device) { return device.capability >= 80; },
    [](const KnnProblem& p) {
      return p.dtype != Dtype::kFloat64 && p.dim <= kKnnMostDims && first_column(p) < p.num_rows;
    },
    [](const KnnProblem& p) {
      fcl::cuda::ScratchArrays scratch(nullptr);
      take_arrays<BFloat16>(p, scratch);
      return scratch.bytes();
    },
    [](const KnnProblem& p, void* memory, int32_t* indices, void* similarities,
       const CudaDevice& device, cudaStream_t stream) {
      float* out = static_cast<float*>(similarities);
      // Float16 has three bits more, and all that unit rows need of the range.
      const bool fits = p.metric == KnnMetric::kCosine || p.dtype == Dtype::kFloat16;
      if (p.metric == KnnMetric::kSquaredL2) {
        return fits ? launch_typed<Float16, true>(p, memory, indices, out, device, stream)
                    : launch_typed<BFloat16, true>(p, memory, indices, out, device, stream);
      }
      fits ? launch_typed<Float16, false>(p, memory, indices, out, device, stream)
           : launch_typed<BFloat16, false>(p, memory, indices, out, device, stream);
    },
};

}  // namespace fcl::ops::cuda
