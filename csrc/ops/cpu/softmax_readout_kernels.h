// SPDX-License-Identifier: Apache-2.0
// Interface between the driver of softmax_readout on the CPU (softmax_readout_cpu.cpp: shapes,
// threads, combining) and its per-ISA kernels (softmax_readout_impl.h). Torch-free.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/half.h"

namespace fcl::ops::cpu {

// Rows of one block: enough to reuse a packed block of classes, few enough for the L2 cache.
inline constexpr int64_t kReadoutRows = 128;
// float32 sums run over at most this many classes before they move to the next accumulator: one
// running sum over a million classes would lose three digits.
inline constexpr int64_t kReadoutFlush = 8192;
// Columns of packed prototypes are padded to a multiple of this: no processor's panel is wider.
inline constexpr int64_t kPackedPadding = 32;

struct ReadoutProblem {
  Dtype dtype;             // storage; accumulation is float, or double for float64
  const void* embeddings;  // [N, D]
  const void* prototypes;  // [C, D]
  const void* values;      // [C, Dv], or null where the prototypes are the values
  const int64_t* exclude;  // [N] or null: the class each row leaves out, or the number of its set
  int64_t num_rows, dim, num_classes, value_dim;
  double scale;
  bool normalize;  // prototypes count at unit length; gradients to them go through that
  // float32 only, or null: [N / kReadoutRows, rounded up][C][kReadoutRows]. The forward pass leaves
  // its logits here, and the gradient to classes reads them instead of computing them again.
  float* logits;
  // float32 and float64 only, or null: prototypes as pack_prototypes left them, which the forward
  // pass then does not pack again.
  const void* packed = nullptr;         // [D / kPanel, rounded up][C][kPanel]
  const void* squared_norms = nullptr;  // [C], of the rows as given
  // Or null: sets of classes, each in order, that rows may leave out.
  const int64_t* exclude_crow = nullptr;  // [L + 1]
  const int64_t* exclude_col = nullptr;   // [E]
};

// What the gradients need on top. All [N, ...] arrays are in the accumulation type.
struct ReadoutBackward {
  const void* logsumexp;    // [N]
  const void* coefficient;  // [N]
  const void* grad_mean;    // [N, Dv] or null
};

// Rows of the whole problem packed for the gradient to the classes, one block of kReadoutRows after
// another: as columns (scaled), and as rows; the same for grad_mean if there is one.
struct ReadoutPackedRows {
  void* columns;
  void* rows;
  void* grad_columns;
  void* grad_rows;
};

// A row of numbers.
struct Row {
  Dtype dtype;
  const void* data;
};

struct SoftmaxReadoutKernels {
  // Of single rows, for what surrounds the readout: x.y summed in double, and to = a x + b y (float
  // or double), which may be one of them. With b = 0, y is not read.
  double (*row_dot)(Row x, Row y, int64_t dim);
  void (*row_sum)(double a, Row x, double b, Row y, int64_t dim, bool to_double, void* to);

  // Scratch bytes for a call of forward or backward_rows, or else of backward_classes.
  size_t (*scratch_bytes)(const ReadoutProblem&, bool for_classes);
  // Elements of one block in ReadoutPackedRows' members.
  size_t (*packed_block_elements)(int64_t dim);
  // The most rows one call of forward takes: kReadoutRows or a multiple.
  int64_t (*rows_per_task)(const ReadoutProblem&);
  // The most classes one task of backward_classes should own.
  int64_t (*classes_per_task)(const ReadoutProblem&);

  // Classes [begin, end) of the problem into the arrays of all of them.
  void (*pack_prototypes)(const ReadoutProblem&, int64_t begin, int64_t end, void* packed,
                          void* squared_norms);

  // Partial readout of rows [row, row + rows), `row` a multiple of kReadoutRows, over classes
  // [begin, end): with m near the maximum of the base-2 logits z, writes base = m, sum = sum 2^(z -
  // m), mean (if not null) = sum 2^(z - m) V, unnormalised.
  void (*forward)(const ReadoutProblem&, int64_t row, int64_t rows, int64_t begin, int64_t end,
                  void* scratch, void* base, double* sum, void* mean);
  // Partial gradient to embeddings over the same kind of range; grad [rows, D] is overwritten.
  void (*backward_rows)(const ReadoutProblem&, const ReadoutBackward&, int64_t row, int64_t rows,
                        int64_t begin, int64_t end, void* scratch, void* grad);
  // Packs block `row / kReadoutRows`.
  void (*pack_block)(const ReadoutProblem&, const ReadoutBackward&, int64_t row, int64_t rows,
                     const ReadoutPackedRows&);
  // Gradient to prototypes [begin, end) and/or values over all rows; null outputs are skipped.
  // Without separate values, the part through values is added to grad_prototypes.
  void (*backward_classes)(const ReadoutProblem&, const ReadoutBackward&, const ReadoutPackedRows&,
                           int64_t begin, int64_t end, void* scratch, void* grad_prototypes,
                           void* grad_values);
};

extern const SoftmaxReadoutKernels softmax_readout_portable;
extern const SoftmaxReadoutKernels softmax_readout_avx2;
extern const SoftmaxReadoutKernels softmax_readout_avx512;
extern const SoftmaxReadoutKernels softmax_readout_avx512_bf16;
extern const SoftmaxReadoutKernels softmax_readout_amx_bf16;

}  // namespace fcl::ops::cpu
