// SPDX-License-Identifier: Apache-2.0
// The readout over whole arrays on the CPU: tasks, threads and the fixed-order combination of
// partial sums around the per-ISA kernels. How work is cut depends on shapes alone, never on the
// thread count, so results do not either. Torch-free apart from its thread pool.
#pragma once

#include "ops/cpu/softmax_readout_kernels.h"

namespace fcl::ops::cpu {

// lse [N]; mean [N, Dv] in the accumulation type T, or null. T is float or double.
template <typename T>
void readout_forward(const ReadoutProblem& p, double* logsumexp, T* mean);

// Gradient to embeddings [N, D].
template <typename T>
void readout_backward_rows(const ReadoutProblem& p, const ReadoutBackward& b, T* grad);

// Gradients to prototypes [C, D] and values [C, Dv]; null outputs are skipped.
template <typename T>
void readout_backward_classes(const ReadoutProblem& p, const ReadoutBackward& b, T* grad_prototypes,
                              T* grad_values);

// The kernels of this processor.
const SoftmaxReadoutKernels& readout_kernels();

// ReadoutProblem::packed and squared_norms of a problem, of which prototypes are read alone.
void pack_prototypes(const ReadoutProblem& p, void* packed, void* squared_norms);

}  // namespace fcl::ops::cpu
