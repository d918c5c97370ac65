// SPDX-License-Identifier: Apache-2.0
// softmax_readout forward on Hopper (sm_90a): copy engine, warpgroup products. For bfloat16 and
// float16; the caller takes another path where it is not supported.
#pragma once

#include <optional>

#include "ops/cuda/softmax_readout_kernels.h"

namespace fcl::ops::cuda {

// Whether the library was built with sm_90a. The device must be of compute capability 9.0.
bool readout_sm90_built();

// Whether this path takes the problem.
bool readout_sm90_supported(const ReadoutProblem& p);

// Bytes of device scratch. `multiprocessors` of the device decide how classes are split, so results
// differ in rounding between devices of different size (never between runs).
int64_t readout_sm90_forward_scratch(const ReadoutProblem& p, bool need_mean, int multiprocessors);

// logsumexp [N] and mean [N, D] (or null), float. For bfloat16 a `fixed_shift` m, in natural units,
// may take the place of the running maximum (float16 ignores it): weights are exp(logit - m), which
// must neither overflow nor all vanish. With unit rows on both sides and scale <= 73, m = scale -
// 60 is safe: logits lie in [-scale, scale], so exponents in [60 - 2 scale, 60] = [-86, 60].
void launch_readout_forward_sm90(const ReadoutProblem& p, void* scratch, void* logsumexp,
                                 void* mean, int multiprocessors, cudaStream_t stream,
                                 std::optional<double> fixed_shift = std::nullopt);

// The same with weights that are stored: any number of columns, and values of their own.
int64_t readout_sm90_stored_scratch(const ReadoutProblem& p, bool need_mean, int multiprocessors);
void launch_readout_sm90_stored(const ReadoutProblem& p, void* scratch, void* logsumexp, void* mean,
                                int multiprocessors, cudaStream_t stream,
                                std::optional<double> fixed_shift);

}  // namespace fcl::ops::cuda
