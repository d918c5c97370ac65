// SPDX-License-Identifier: Apache-2.0
// softmax_readout forward on tensor cores (compute capability 8.0 and up), for any sizes. Products
// are made of bfloat16 or float16 operands as they are, of float32 ones as three of tf32; weights
// are rounded to the operands' type. float64 has no such path.
#include "common/cuda_launch.cuh"
#include "ops/cuda/readout_combine.cuh"
#include "ops/cuda/readout_mma.cuh"
#include "ops/cuda/readout_mma_operands.cuh"
#include "ops/cuda/readout_mma_softmax.cuh"
#include "ops/cuda/readout_path.h"

namespace fcl::ops::cuda {
namespace {

using namespace fcl::cuda;

// Partial readouts, indexed [split][row]: base of the exponents, sum of the weights, and the
// weighted sum of values, unnormalised.
struct ForwardPartials {
  double* sum;
  float* mean;
  float* max;
  float scale;  // to base-2 logits
  float headroom;
};

template <class WorkShape, bool kMean>
struct ForwardWork {
  using Shape = WorkShape;
  using S = typename Shape::S;
  static constexpr bool kSums = kMean;
  static constexpr bool kSlopes = false;
  static constexpr int kTiles = Shape::kTiles;

  const ReadoutProblem& p;
  const ForwardPartials& out;
  OnlineSoftmax<S, kTiles> softmax;
  float carried[2];  // from the bases of the last flush to today's
  int64_t row;
  int classes;  // of the split

  __device__ __forceinline__ ForwardWork(const ReadoutProblem& p, const ForwardPartials& out)
      : p(p), out(out) {}

  __device__ __forceinline__ void start(int64_t first_row, int64_t begin, int count) {
    row = first_row;
    classes = count;
    softmax.start(p, row, begin, count);
    carried[0] = carried[1] = 1;
  }

  __device__ __forceinline__ bool has_terms() const { return p.inverse_norms != nullptr; }
  __device__ __forceinline__ void load_term(int64_t label, uint32_t (&term)[4]) const {
    const float* norms = static_cast<const float*>(p.inverse_norms);
    if (label < p.num_classes) term[0] = __float_as_uint(norms[label]);
  }

  template <int kSlopeTiles, int kSumTiles>
  __device__ __forceinline__ void weigh(float (&z)[kTiles][4], float (&)[kSlopeTiles][4],
                                        float (&sums)[kSumTiles][4], int first, uint32_t terms) {
    if (p.inverse_norms != nullptr) multiply_columns<S>(z, terms, false);
    softmax.mask(z, first, classes);
    const bool moved = softmax.step(z, out.scale, out.headroom);
    if constexpr (kMean) {
      if (moved) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          carried[h] *= softmax.keep[h];
#pragma unroll
          for (int n = 0; n < kSumTiles; ++n) {
            sums[n][2 * h] *= softmax.keep[h];
            sums[n][2 * h + 1] *= softmax.keep[h];
          }
        }
      }
      if (p.inverse_norms != nullptr && p.values == p.prototypes) {
        multiply_columns<S>(z, terms, true);
      }
    }
  }

  template <int kSumTiles>
  __device__ __forceinline__ void flush(float (&sums)[kSumTiles][4], bool is_first) {
    if constexpr (kMean) {
      const int64_t first_column = static_cast<int64_t>(blockIdx.z) * Shape::kWidth;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t at = row + accumulator_row(2 * h);
        float* to = out.mean + (blockIdx.y * p.num_rows + at) * p.value_dim;
        if (at < p.num_rows) {
#pragma unroll
          for (int n = 0; n < kSumTiles; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int64_t column = first_column + n * 8 + accumulator_column(i);
              if (column >= p.value_dim) continue;
              const float added = sums[n][2 * h + i];
              to[column] = is_first ? added : fmaf(to[column], carried[h], added);
            }
          }
        }
        carried[h] = 1;
      }
    }
  }

  __device__ __forceinline__ void finish() {
    if (blockIdx.z != 0) return;
    const int64_t at = blockIdx.y * p.num_rows;
    softmax.store(row, p.num_rows, out.max + at, out.sum + at);
  }
};

template <class Shape, template <class> class Feed, bool kMean>
__global__ void __launch_bounds__(kMmaThreads, 1)
    mma_forward_kernel(MmaTask<typename Shape::S> task, ReadoutProblem p, ForwardPartials out) {
  ForwardWork<Shape, kMean> work(p, out);
  mma_tile_loop<decltype(work), Feed>(task, work);
}

// One way to run the kernel.
template <typename S>
struct Variant {
  void (*kernel)(MmaTask<S>, ReadoutProblem, ForwardPartials);
  int rights, width, shared_bytes;
};

template <class Shape, bool kMean>
Variant<typename Shape::S> streaming() {
  return {mma_forward_kernel<Shape, StreamFeed, kMean>, Shape::kRights, Shape::kWidth,
          StreamFeed<Shape>::kSharedBytes};
}
template <class Shape>
Variant<typename Shape::S> resident() {
  static_assert(ResidentFeed<Shape>::shared_bytes(1) <= kMmaMostShared);
  return {mma_forward_kernel<Shape, ResidentFeed, true>, Shape::kRights, Shape::kWidth,
          ResidentFeed<Shape>::shared_bytes(1)};
}

template <typename S>
Variant<S> variant(const ReadoutProblem& p, bool need_mean) {
  constexpr bool kSplit = sizeof(S) == 4;  // split floats need more registers and shared memory
  constexpr int kRights = kSplit ? 32 : 64;
  if (!need_mean) return streaming<MmaShape<S, kRights, 256>, false>();
  if (p.values == p.prototypes && p.dim <= 128) return resident<MmaShape<S, kRights, 128>>();
  if constexpr (!kSplit) {
    if (p.values == p.prototypes && p.dim <= 256) return resident<MmaShape<S, 32, 256>>();
  }
  return streaming<MmaShape<S, kRights, 256>, true>();
}

template <typename S>
ReadoutSplit split(const ReadoutProblem& p, bool need_mean, const CudaDevice& device) {
  const Variant<S> v = variant<S>(p, need_mean);
  return split_waves(p.num_rows, kMmaRows, p.num_classes, v.rights,
                     need_mean ? divide_up(p.value_dim, v.width) : 1, device.multiprocessors);
}

template <typename S>
void forward_typed(const ReadoutProblem& p, void* scratch, void* logsumexp, void* mean,
                   const CudaDevice& device, cudaStream_t stream) {
  const char* op = "softmax_readout";
  const bool need_mean = mean != nullptr;
  const Variant<S> v = variant<S>(p, need_mean);
  const ReadoutSplit cut = split<S>(p, need_mean, device);
  const int64_t partials = cut.splits * p.num_rows;
  ForwardPartials out;
  out.sum = static_cast<double*>(scratch);
  out.max = reinterpret_cast<float*>(out.sum + partials);
  out.mean = need_mean && cut.splits > 1 ? out.max + partials : static_cast<float*>(mean);
  out.scale = static_cast<float>(p.scale * kLog2E);
  out.headroom = p.inverse_norms == nullptr ? WeightRange<S>::kHeadroom : 0;
  MmaTask<S> task = {};
  task.left[0] = matrix<S>(p.embeddings, p.num_rows, p.dim);
  task.right[0] = matrix<S>(p.prototypes, p.num_classes, p.dim);
  task.summed = matrix<S>(p.values, p.num_classes, p.value_dim);
  task.num_right = p.num_classes;
  task.per_split = static_cast<int>(cut.per_split);
  task.products = 1;
  task.sums = need_mean;
  launch(op, v.kernel, cut.grid(), Block(kMmaThreads, v.shared_bytes), stream, task, p, out);
  combine_splits<float>(op, p.num_rows, p.value_dim, cut.splits, out.max, out.sum, out.mean,
                        static_cast<float*>(logsumexp), static_cast<float*>(mean), stream);
}

int64_t forward_scratch(const ReadoutProblem& p, bool need_mean, const CudaDevice& device) {
  int64_t splits = 0;
  dispatch_mma(p.dtype, [&](auto tag) {
    splits = split<typename decltype(tag)::type>(p, need_mean, device).splits;
  });
  return partials_bytes<float>(p, splits, need_mean);
}

void forward(const ReadoutProblem& p, void* scratch, void* logsumexp, void* mean,
             const CudaDevice& device, cudaStream_t stream) {
  if (p.num_rows == 0) return;
  dispatch_mma(p.dtype, [&](auto tag) {
    forward_typed<typename decltype(tag)::type>(p, scratch, logsumexp, mean, device, stream);
  });
}

}  // namespace

const ReadoutForwardPath kReadoutForwardMma = {
    "mma", [](const CudaDevice& device) { return device.capability >= 80; },
    [](const ReadoutProblem& p) { return p.dtype != Dtype::kFloat64; }, forward_scratch, forward};

}  // namespace fcl::ops::cuda
