// SPDX-License-Identifier: Apache-2.0
// Interface between the torch binding of softmax_readout (softmax_readout_cuda.cpp) and its CUDA
// kernels. Torch-free: device pointers and a stream. There are several sets of kernels ("paths");
// readout_path.h says which one a launch takes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/half.h"

namespace fcl::ops::cuda {

struct ReadoutProblem {
  Dtype dtype;             // storage; accumulation is float, or double for float64
  const void* embeddings;  // [N, D]
  const void* prototypes;  // [C, D]
  const void* values;      // [C, Dv]; equals prototypes when there are none
  const int64_t* exclude;  // [N] or null
  int64_t num_rows, dim, num_classes, value_dim;
  double scale;
  // [C] in the accumulation type, or null: class c counts as inverse_norms[c] * prototypes[c], in
  // logits and, where the prototypes are the values, in the mean.
  const void* inverse_norms;
};

// What the gradients need on top, in the accumulation type.
struct ReadoutBackward {
  const void* logsumexp;    // [N]
  const void* coefficient;  // [N]
  const void* grad_mean;    // [N, Dv] or null
};

// Which gradient a launch computes. kValues needs grad_mean.
enum class ReadoutGradient { kEmbeddings, kPrototypes, kValues };

// Bytes of device scratch the launches below want.
int64_t readout_forward_scratch(const ReadoutProblem& p, bool need_mean);
int64_t readout_backward_scratch(const ReadoutProblem& p, const ReadoutBackward& b,
                                 ReadoutGradient which);

// logsumexp [N] and mean [N, Dv] (or null), both in the accumulation type.
void launch_readout_forward(const ReadoutProblem& p, void* scratch, void* logsumexp, void* mean,
                            cudaStream_t stream);

// Writes the gradient to `out`, or adds it if accumulate. With inverse_norms, kPrototypes and
// (where the prototypes are the values) kValues are gradients to the scaled rows:
// launch_readout_unscale comes last.
void launch_readout_backward(const ReadoutProblem& p, const ReadoutBackward& b,
                             ReadoutGradient which, bool accumulate, void* scratch, void* out,
                             cudaStream_t stream);

// Gradient to unit rows u = n w [C, D] -> gradient to w, in place: n (g - u (u . g)).
void launch_readout_unscale(const ReadoutProblem& p, void* grad, cudaStream_t stream);

}  // namespace fcl::ops::cuda
