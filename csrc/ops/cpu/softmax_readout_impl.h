// SPDX-License-Identifier: Apache-2.0
// The table of softmax_readout's CPU kernels, compiled once per ISA by softmax_readout_<isa>.cpp.
#pragma once

#include "ops/cpu/row_math.h"
#include "ops/cpu/softmax_readout_backward.h"
#include "ops/cpu/softmax_readout_forward.h"
#include "ops/cpu/softmax_readout_kernels.h"
#ifdef __AVX512BF16__
#include "ops/cpu/softmax_readout_bf16.h"
#endif
#ifdef __AMX_BF16__
#include "ops/cpu/softmax_readout_split_backward.h"
#include "ops/cpu/softmax_readout_split_forward.h"
#endif

namespace fcl::ops::cpu {
namespace {

// Type-erased entries of the table.
size_t scratch_bytes(const ReadoutProblem& p, bool for_classes) {
  Arena arena{nullptr};
  dispatch_dtype(p.dtype, [&](auto tag) {
    Workspace<AccumulateOf<typename decltype(tag)::type>>(p, arena, for_classes);
  });
#ifdef __AVX512BF16__
  // A call takes one or the other.
  if (p.dtype == Dtype::kBfloat16 && !for_classes) {
    const size_t of_pairs = scratch_bytes_bf16(p);
    if (of_pairs > arena.used) return of_pairs;
  }
#endif
#ifdef __AMX_BF16__
  if (p.dtype == Dtype::kFloat32) {
    const size_t of_parts = for_classes ? scratch_bytes_split_classes(p) : scratch_bytes_split(p);
    if (of_parts > arena.used) return of_parts;
  }
#endif
  return arena.used;
}
size_t packed_block_elements(int64_t dim) { return static_cast<size_t>(packed_block_size(dim)); }
int64_t rows_per_task([[maybe_unused]] const ReadoutProblem& p) {
#ifdef __AMX_BF16__
  if (forward_splits(p, p.num_rows)) return kSplitRowBlocks * kReadoutRows;
#endif
  return kReadoutRows;
}
int64_t classes_per_task(const ReadoutProblem& p) {
#ifdef __AMX_BF16__
  if (p.dtype == Dtype::kFloat32 && p.num_rows >= kFewestSplitRows) {
    return SplitClassProducts::block_of(p);
  }
#endif
  int64_t block = 0;
  dispatch_dtype(p.dtype, [&](auto tag) {
    Arena arena{nullptr};
    block = Workspace<AccumulateOf<typename decltype(tag)::type>>(p, arena, true).block;
  });
  return block;
}
static_assert(kPanel<float> <= kPackedPadding, "pack_prototypes leaves too little room");
void pack_prototypes(const ReadoutProblem& p, int64_t begin, int64_t end, void* packed,
                     void* squared_norms) {
  if (p.dtype == Dtype::kFloat64) {
    pack_prototypes_typed(p, begin, end, static_cast<double*>(packed),
                          static_cast<double*>(squared_norms));
  } else {
    pack_prototypes_typed(p, begin, end, static_cast<float*>(packed),
                          static_cast<float*>(squared_norms));
  }
}
void forward(const ReadoutProblem& p, int64_t row, int64_t rows, int64_t begin, int64_t end,
             void* scratch, void* base, double* sum, void* mean) {
#ifdef __AVX512BF16__
  if (p.dtype == Dtype::kBfloat16 && p.values == nullptr) {
    return forward_bf16(p, row, rows, begin, end, scratch, base, sum, mean);
  }
#endif
#ifdef __AMX_BF16__
  if (forward_splits(p, rows)) {
    return forward_split(p, row, rows, begin, end, scratch, base, sum, mean);
  }
#endif
  dispatch_dtype(p.dtype, [&](auto tag) {
    forward_typed<typename decltype(tag)::type>(p, row, rows, begin, end, scratch, base, sum, mean);
  });
}
void backward_rows(const ReadoutProblem& p, const ReadoutBackward& b, int64_t row, int64_t rows,
                   int64_t begin, int64_t end, void* scratch, void* grad) {
  dispatch_dtype(p.dtype, [&](auto tag) {
    backward_rows_typed<typename decltype(tag)::type>(p, b, row, rows, begin, end, scratch, grad);
  });
}
void pack_block(const ReadoutProblem& p, const ReadoutBackward& b, int64_t row, int64_t rows,
                const ReadoutPackedRows& packed) {
#ifdef __AMX_BF16__
  if (gradient_splits(p, b)) return pack_block_split(p, b, row, rows, packed);
#endif
  dispatch_dtype(p.dtype, [&](auto tag) {
    pack_block_typed<typename decltype(tag)::type>(p, b, row, rows, packed);
  });
}
void backward_classes(const ReadoutProblem& p, const ReadoutBackward& b,
                      const ReadoutPackedRows& packed, int64_t begin, int64_t end, void* scratch,
                      void* grad_prototypes, void* grad_values) {
#ifdef __AMX_BF16__
  if (gradient_splits(p, b)) {
    return backward_classes_split(p, b, packed, begin, end, scratch, grad_prototypes, grad_values);
  }
#endif
  dispatch_dtype(p.dtype, [&](auto tag) {
    backward_classes_typed<typename decltype(tag)::type>(p, b, packed, begin, end, scratch,
                                                         grad_prototypes, grad_values);
  });
}

}  // namespace

const SoftmaxReadoutKernels FCL_READOUT_KERNELS = {
    row_dot,       row_sum,          scratch_bytes,    packed_block_elements,
    rows_per_task, classes_per_task, pack_prototypes,  forward,
    backward_rows, pack_block,       backward_classes,
};

}  // namespace fcl::ops::cpu
