// SPDX-License-Identifier: Apache-2.0
// Interface between the torch binding of compat_loss (compat_loss_cuda.cpp) and its CUDA kernels.
// Torch-free: device pointers and a stream. Rows are prepared, the readout of
// softmax_readout_kernels.h runs over the classes, rows are finished. Formulas: ops/compat_loss.h.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "common/half.h"
#include "ops/compat_row.h"
#include "ops/cuda/softmax_readout_kernels.h"

namespace fcl::ops::cuda {

// S is the storage type, T the one it accumulates in.
struct CompatProblem {
  Dtype dtype;
  const void* embeddings;        // [N, D], S
  const void* prototypes;        // [C, D], S
  const int64_t* labels;         // [N]
  const double* mean_prototype;  // [D] or null
  int64_t num_rows, dim, num_classes;
  CompatLossOptions options;
};

// Where results go; null outputs are skipped.
struct CompatOutputs {
  void* loss;   // [N] or one, T
  void* grad;   // [N, D], T: the readout's mean, until the rows are finished
  void* unit;   // [N, D], S: rows as the readout sees them if normalised
  void* state;  // [kStateRows, N], T
};

// What the launches of a forward call leave for each other.
struct CompatScratch {
  int64_t* exclude;     // [N], the label or -1 for rows that do not count
  int64_t* valid;       // how many rows count
  double* row_norms;    // [N], inverse norms of the embeddings if normalised
  double* losses;       // [N]
  void* logsumexp;      // [N], T
  void* inverse_norms;  // [C], T: of the prototypes if normalised, else null
};

// Bytes of device scratch, and where things lie in it.
int64_t compat_scratch_bytes(const CompatProblem& p);
CompatScratch compat_scratch(const CompatProblem& p, void* memory);

// exclude, valid, norms and unit rows.
void launch_compat_prepare(const CompatProblem& p, const CompatScratch& s, const CompatOutputs& out,
                           cudaStream_t stream);
// The readout that comes next: into s.logsumexp and out.grad.
ReadoutProblem compat_readout(const CompatProblem& p, const CompatScratch& s,
                              const CompatOutputs& out);
// Loss, gradient, state.
void launch_compat_finish(const CompatProblem& p, const CompatScratch& s, const CompatOutputs& out,
                          cudaStream_t stream);

// Gradient to prototypes. Here the problem's embeddings are the unit rows if normalised.
struct CompatBackward {
  const void* state;      // [kStateRows, N], T
  const void* grad_loss;  // [N] or one, T
  bool per_row;
};

struct CompatBackwardScratch {
  int64_t* exclude;     // [N]
  void* coefficient;    // [N], T
  void* inverse_norms;  // [C], T, or null
  double* smooth;       // [D], what label smoothing takes from every class; null without it
};

int64_t compat_backward_scratch_bytes(const CompatProblem& p);
CompatBackwardScratch compat_backward_scratch(const CompatProblem& p, void* memory);

// What the readout's gradient to prototypes takes, which comes next.
void launch_compat_coefficients(const CompatProblem& p, const CompatBackward& b,
                                const CompatBackwardScratch& s, cudaStream_t stream);
ReadoutProblem compat_readout(const CompatProblem& p, const CompatBackwardScratch& s);
ReadoutBackward compat_readout_backward(const CompatProblem& p, const CompatBackward& b,
                                        const CompatBackwardScratch& s);
// Adds to grad [C, D], T, what targets and label smoothing give; then the way through the norms.
void launch_compat_targets(const CompatProblem& p, const CompatBackward& b,
                           const CompatBackwardScratch& s, void* grad, cudaStream_t stream);

}  // namespace fcl::ops::cuda
