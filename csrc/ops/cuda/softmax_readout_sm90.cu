// SPDX-License-Identifier: Apache-2.0
// softmax_readout forward on Hopper: choice of tile, launch and combination of the class splits.
// readout_sm90.cuh and readout_sm90_wide.cuh have the kernels' bodies; what they cannot hold goes
// to softmax_readout_sm90_stored.cu. FCL_CUDA_SM90 is defined where the build has sm_90a; for its
// other architectures the kernels only stop.
#include "ops/cuda/readout_path.h"
#include "ops/cuda/readout_sm90_kernels.h"

#ifndef FCL_CUDA_SM90

#include <stdexcept>

namespace fcl::ops::cuda {

bool readout_sm90_built() { return false; }
bool readout_sm90_supported(const ReadoutProblem&) { return false; }
int64_t readout_sm90_forward_scratch(const ReadoutProblem&, bool, int) { return 0; }
void launch_readout_forward_sm90(const ReadoutProblem&, void*, void*, void*, int, cudaStream_t,
                                 std::optional<double>) {
  throw std::runtime_error("fcl::softmax_readout: built without sm_90a");
}

}  // namespace fcl::ops::cuda

#else

#include "common/cuda_device.cuh"
#include "common/cuda_sm90.cuh"
#include "common/cuda_tma.h"
#include "ops/cuda/readout_combine.cuh"
#include "ops/cuda/readout_sm90.cuh"
#include "ops/cuda/readout_sm90_launch.cuh"
#include "ops/cuda/readout_sm90_wide.cuh"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

template <class Tile, bool kFactors>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    readout_sm90_kernel(const __grid_constant__ CUtensorMap rows,
                        const __grid_constant__ CUtensorMap classes,
                        const __grid_constant__ Sm90Readout p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  using Block = std::conditional_t<Tile::kWide, ReadoutWideBlock<Sm90, Tile, kFactors>,
                                   ReadoutBlock<Sm90, Tile, kFactors> >;
  Block(&rows, &classes, p).run();
#else
  Sm90::stop();
#endif
}

template <typename F>
void with_tile(const ReadoutProblem& p, bool need_mean, const F& f) {
  if (p.dtype == Dtype::kBfloat16) {
    with_sm90_tile<BFloat16>(p.dim, need_mean, f);
  } else {
    with_sm90_tile<Float16>(p.dim, need_mean, f);
  }
}

// One block holds the sums of a row only where they are not too many, and has one tile for both
// products only where prototypes are the values.
bool stores_weights(const ReadoutProblem& p) {
  return p.dim > kSm90MostColumns || p.values != p.prototypes;
}

template <class Tile>
Sm90Split split_of(const ReadoutProblem& p, int multiprocessors) {
  return split_sm90(p.num_rows, p.num_classes, Tile::kRows, Tile::kClasses, multiprocessors);
}

}  // namespace

bool readout_sm90_built() { return true; }

bool readout_sm90_supported(const ReadoutProblem& p) {
  const bool is_half = p.dtype == Dtype::kBfloat16 || p.dtype == Dtype::kFloat16;
  // Coordinates of the copy engine are 32-bit.
  const bool fits = p.num_rows < INT32_MAX / 2 && p.num_classes < INT32_MAX / 2;
  return is_half && fits && is_tensor_map_matrix(p.embeddings, p.dim) &&
         is_tensor_map_matrix(p.prototypes, p.dim) && is_tensor_map_matrix(p.values, p.value_dim) &&
         can_encode_tensor_maps();
}

int64_t readout_sm90_forward_scratch(const ReadoutProblem& p, bool need_mean, int multiprocessors) {
  if (stores_weights(p)) return readout_sm90_stored_scratch(p, need_mean, multiprocessors);
  int64_t bytes = 0;
  with_tile(p, need_mean, [&](auto tile) {
    const int64_t splits = split_of<decltype(tile)>(p, multiprocessors).splits;
    bytes = partials_bytes<float>(p, splits, need_mean);
  });
  return bytes;
}

void launch_readout_forward_sm90(const ReadoutProblem& p, void* scratch, void* logsumexp,
                                 void* mean, int multiprocessors, cudaStream_t stream,
                                 std::optional<double> fixed_shift) {
  if (p.num_rows == 0) return;
  if (stores_weights(p)) {
    launch_readout_sm90_stored(p, scratch, logsumexp, mean, multiprocessors, stream, fixed_shift);
    return;
  }
  const char* op = "softmax_readout";
  with_tile(p, mean != nullptr, [&](auto tile) {
    using Tile = decltype(tile);
    const Sm90Split split = split_of<Tile>(p, multiprocessors);
    const int64_t partials = split.splits * p.num_rows;
    Sm90Readout task = {};
    task.rows = p.embeddings;
    task.exclude = p.exclude;
    task.factors = static_cast<const float*>(p.inverse_norms);
    task.num_rows = p.num_rows;
    task.num_classes = p.num_classes;
    task.dim = static_cast<int>(p.dim);
    task.tiles_per_split = split.tiles_per_split;
    // Twice as many classes as elsewhere: all warps of a block wait while their sums move.
    task.flush_tiles = std::max(static_cast<int>(2 * kFlush / Tile::kClasses), 1);
    task.scale = static_cast<float>(p.scale * kLog2E);
    // Weights of float16 have not the range for it.
    task.fixed_shift = fixed_shift.has_value() && p.dtype == Dtype::kBfloat16;
    task.shift = static_cast<float>(fixed_shift.value_or(0) * kLog2E);
    task.sum = static_cast<double*>(scratch);
    task.max = reinterpret_cast<float*>(task.sum + partials);
    task.mean =
        mean == nullptr || split.splits == 1 ? static_cast<float*>(mean) : task.max + partials;
    const CUtensorMap rows =
        encode_tensor_map(op, p.dtype, p.embeddings, p.num_rows, p.dim, Tile::kRows);
    const CUtensorMap classes = encode_tensor_map(op, p.dtype, p.prototypes, p.num_classes, p.dim,
                                                  Tile::kClasses / split.cluster);
    const auto kernel = task.factors == nullptr ? readout_sm90_kernel<Tile, false>
                                                : readout_sm90_kernel<Tile, true>;
    launch_clusters(op, kernel, split.cluster, {split.row_tiles, split.splits},
                    Block(Tile::kThreads, Tile::kSharedBytes), stream, rows, classes, task);
    combine_splits<float>(op, p.num_rows, p.dim, split.splits, task.max, task.sum,
                          {split.splits, task.max, task.mean}, static_cast<float*>(logsumexp),
                          static_cast<float*>(mean), stream, p.exclude, p.num_classes);
  });
}

}  // namespace fcl::ops::cuda

#endif

namespace fcl::ops::cuda {

const ReadoutForwardPath kReadoutForwardSm90 = {
    "sm90",
    [](const CudaDevice& device) { return readout_sm90_built() && device.capability == 90; },
    readout_sm90_supported,
    [](const ReadoutProblem& p, bool need_mean, const CudaDevice& device) {
      return readout_sm90_forward_scratch(p, need_mean, device.multiprocessors);
    },
    [](const ReadoutProblem& p, void* scratch, void* logsumexp, void* mean,
       const CudaDevice& device, cudaStream_t stream) {
      launch_readout_forward_sm90(p, scratch, logsumexp, mean, device.multiprocessors, stream);
    }};

}  // namespace fcl::ops::cuda
