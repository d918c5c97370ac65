// SPDX-License-Identifier: Apache-2.0
// Launches of the Hopper kernels of softmax_readout: in clusters, and the pairs of launches that
// hand on stored weights.
#pragma once

#include "common/cuda_launch.cuh"
#include "common/cuda_sm90.cuh"
#include "common/cuda_tma.h"
#include "ops/cuda/readout_sm90_sums.cuh"
#include "ops/cuda/readout_sm90_weights.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

// Clusters are neighbours along x.
template <typename... Parameters, typename... Arguments>
void launch_clusters(const char* op, void (*kernel)(Parameters...), int cluster_size, Grid grid,
                     Block block, cudaStream_t stream, const Arguments&... arguments) {
  if (grid.x > INT32_MAX || grid.y > 65535) {
    throw std::runtime_error(std::string("fcl::") + op + ": too large for one launch");
  }
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, block.shared_bytes),
      op);
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(cluster_size);
  cluster.val.clusterDim.y = 1;
  cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
  config.blockDim = dim3(static_cast<unsigned>(block.threads));
  config.dynamicSmemBytes = static_cast<size_t>(block.shared_bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), op);
  check_cuda(cudaGetLastError(), op);
}

template <class Weigher>
__global__ void __launch_bounds__(Weigher::Tile::kThreads, 1)
    readout_sm90_weights_kernel(const __grid_constant__ CUtensorMap left,
                                const __grid_constant__ CUtensorMap right,
                                const __grid_constant__ Sm90Weights p,
                                const __grid_constant__ typename Weigher::Task task) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  WeightsBlock<Sm90, Weigher>{&left, &right, p, task}.run();
#else
  Sm90::stop();
#endif
}

template <typename S>
__global__ void __launch_bounds__(Sm90StoredTile<S>::kThreads, 1)
    readout_sm90_sums_kernel(const __grid_constant__ CUtensorMap weights,
                             const __grid_constant__ CUtensorMap right,
                             const __grid_constant__ Sm90StoredSums p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  SumsBlock<Sm90, S>{&weights, &right, p}.run();
#else
  Sm90::stop();
#endif
}

// A matrix of 16-bit values in device memory.
struct Sm90Matrix {
  const void* data;
  int64_t rows, columns;
};

// The launches of one readout or gradient. Rows of `summed` go with the right ones; without memory
// for weights there is only the first kernel.
template <typename S>
class Sm90StoredLaunch {
  using Tile = Sm90StoredTile<S>;

 public:
  Sm90StoredLaunch(const char* op, Dtype dtype, const Sm90StoredPlan& plan, cudaStream_t stream,
                   const Sm90Matrix& left, const Sm90Matrix& right, const Sm90Matrix& summed,
                   uint16_t* weights)
      : op_(op),
        plan_(plan),
        stream_(stream),
        left_(left),
        right_(right),
        summed_(summed),
        weights_(weights) {
    const auto map = [&](const Sm90Matrix& m, int box_rows) {
      return encode_tensor_map(op, dtype, m.data, m.rows, m.columns, box_rows);
    };
    left_map_ = map(left, Tile::kRows);
    right_map_ = map(right, Tile::kColumns / plan.cluster);
    if (weights == nullptr) return;
    weights_map_ = map({weights, plan.left_rows(), plan.columns()}, Tile::kRows);
    summed_map_ = map(summed, Tile::kDepth / plan.cluster);
  }

  template <class Weigher>
  void weigh(const Sm90Chunk& chunk, int row_tiles, const typename Weigher::Task& task) const {
    const int64_t steps = divide_up(left_.columns, Tile::kDepth);
    const Sm90Weights p{chunk, right_.rows, static_cast<int>(steps), plan_.weight_tiles, weights_};
    launch_clusters(op_, readout_sm90_weights_kernel<Weigher>, plan_.cluster,
                    {row_tiles, plan_.weight_splits}, block(), stream_, left_map_, right_map_, p,
                    task);
  }

  void sum(const Sm90Chunk& chunk, int row_tiles, Sm90StoredSums p) const {
    p.chunk = chunk;
    p.tiles_per_split = plan_.sum_tiles;
    p.panels = plan_.panels;
    p.num_rows = left_.rows;
    p.dim = summed_.columns;
    launch_clusters(op_, readout_sm90_sums_kernel<S>, plan_.cluster,
                    {row_tiles, int64_t{plan_.sum_splits} * plan_.panels}, block(), stream_,
                    weights_map_, summed_map_, p);
  }

 private:
  static Block block() { return {Tile::kThreads, static_cast<int>(Tile::kSharedBytes)}; }

  const char* op_;
  const Sm90StoredPlan& plan_;
  cudaStream_t stream_;
  Sm90Matrix left_, right_, summed_;
  uint16_t* weights_;
  CUtensorMap left_map_, right_map_, weights_map_ = {}, summed_map_ = {};
};

}  // namespace
}  // namespace fcl::ops::cuda
