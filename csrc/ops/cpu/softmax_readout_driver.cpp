// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/softmax_readout_driver.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "common/cpu_isa.h"
#include "common/host.h"

namespace fcl::ops::cpu {
namespace {

constexpr double kLn2 = 0.6931471805599453;
// Enough tasks for many cores; more would only add partial sums to combine.
constexpr int64_t kTasks = 64;
// A split this wide does not feel what it costs to pack its rows and to combine its sums. Narrower
// ones are made only until there are some tasks, and none below kFewestClasses.
constexpr int64_t kWideSplit = 512;
constexpr int64_t kFewTasks = 8;
constexpr int64_t kFewestClasses = 48;
// The gradient to classes needs no partial sums, so its tasks may be smaller.
constexpr int64_t kFewestGradientClasses = 56;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Of the two products every pass makes at least.
double flops(const ReadoutProblem& p) {
  return 2.0 * static_cast<double>(p.num_rows) * static_cast<double>(p.num_classes) *
         static_cast<double>(p.dim + p.value_dim);
}

// Blocks of so many rows x class splits. Threads have no say in it: results do not depend on their
// number.
struct Split {
  int64_t block_rows, row_blocks, class_splits, classes_per_split;

  Split(const ReadoutProblem& p, int64_t rows)
      : block_rows(rows), row_blocks(ceil_div(p.num_rows, rows)) {
    const int64_t blocks = std::max<int64_t>(row_blocks, 1);
    const int64_t narrow = std::min(ceil_div(kFewTasks, blocks), p.num_classes / kFewestClasses);
    // By rows, not by blocks: larger blocks would mean as many more partial sums in memory.
    const int64_t most = ceil_div(kTasks, ceil_div(std::max<int64_t>(p.num_rows, 1), kReadoutRows));
    class_splits = std::min(most, std::max(narrow, p.num_classes / kWideSplit));
    class_splits = std::max<int64_t>(class_splits, 1);
    classes_per_split = ceil_div(p.num_classes, class_splits);
  }
  int64_t tasks() const { return row_blocks * class_splits; }
  // All blocks of rows read a split before the next one comes: it may stay in a cache they share.
  int64_t split_of(int64_t task) const { return task / row_blocks; }
  int64_t row_of(int64_t task) const { return task % row_blocks * block_rows; }
};

// Partial sums -> lse and mean; partials are indexed [split][row].
template <typename T>
void combine(const ReadoutProblem& p, const Split& split, const T* base_of, const double* sum,
             const T* partial, double* logsumexp, T* mean) {
  const int64_t n = p.num_rows;
  const int64_t dim = p.value_dim;
  const Dtype dtype = std::is_same_v<T, double> ? Dtype::kFloat64 : Dtype::kFloat32;
  const SoftmaxReadoutKernels& kernels = readout_kernels();
  parallel_over(n, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T top = -std::numeric_limits<T>::infinity();
      for (int64_t s = 0; s < split.class_splits; ++s) top = std::max(top, base_of[s * n + i]);
      const double base = std::isinf(top) ? 0.0 : static_cast<double>(top);
      double total = 0;
      for (int64_t s = 0; s < split.class_splits; ++s) {
        total += sum[s * n + i] * std::exp2(static_cast<double>(base_of[s * n + i]) - base);
      }
      logsumexp[i] = (base + std::log2(total)) * kLn2;
      if (mean == nullptr) continue;
      T* to = mean + i * dim;
      for (int64_t s = 0; s < split.class_splits; ++s) {
        const double weight = std::exp2(static_cast<double>(base_of[s * n + i]) - base) / total;
        const double factor = total == 0 ? 0 : weight;
        kernels.row_sum(factor, {dtype, partial + (s * n + i) * dim}, s == 0 ? 0 : 1, {dtype, to},
                        dim, dtype == Dtype::kFloat64, to);
      }
    }
  });
}

}  // namespace

const SoftmaxReadoutKernels& readout_kernels() {
#ifdef FCL_X86
  return select_by_isa(softmax_readout_portable, softmax_readout_avx2, softmax_readout_avx512,
                       softmax_readout_avx512_bf16, softmax_readout_amx_bf16);
#else
  return softmax_readout_portable;
#endif
}

template <typename T>
void readout_forward(const ReadoutProblem& p, double* logsumexp, T* mean) {
  const SoftmaxReadoutKernels& k = readout_kernels();
  const Split split(p, k.rows_per_task(p));
  const int64_t n = p.num_rows;
  const int64_t partial_rows = split.class_splits * n;
  const Scratch base(partial_rows * sizeof(T));
  const Scratch sum(partial_rows * sizeof(double));
  // A single split accumulates where the result goes.
  const bool direct = split.class_splits == 1 || mean == nullptr;
  const Scratch partial(direct ? 0 : partial_rows * p.value_dim * sizeof(T));
  T* sums = mean == nullptr || direct ? mean : partial.as<T>();
  const size_t scratch_bytes = k.scratch_bytes(p, false);
  parallel_tasks(split.tasks(), flops(p), scratch_bytes, [&](int64_t task, void* scratch) {
    const int64_t s = split.split_of(task);
    const int64_t row = split.row_of(task);
    const int64_t first = std::min(s * split.classes_per_split, p.num_classes);
    const int64_t last = std::min(first + split.classes_per_split, p.num_classes);
    const int64_t at = s * n + row;
    k.forward(p, row, std::min(split.block_rows, n - row), first, last, scratch, base.as<T>() + at,
              sum.as<double>() + at, sums == nullptr ? nullptr : sums + at * p.value_dim);
  });
  combine<T>(p, split, base.as<T>(), sum.as<double>(), sums, logsumexp, mean);
}

// Class splits are summed into the first one's place.
template <typename T>
void readout_backward_rows(const ReadoutProblem& p, const ReadoutBackward& b, T* grad) {
  const SoftmaxReadoutKernels& k = readout_kernels();
  const Split split(p, kReadoutRows);
  const int64_t n = p.num_rows;
  const int64_t elements = n * p.dim;
  const Scratch partial((split.class_splits - 1) * elements * sizeof(T));
  const size_t scratch_bytes = k.scratch_bytes(p, false);
  parallel_tasks(split.tasks(), flops(p), scratch_bytes, [&](int64_t task, void* scratch) {
    const int64_t s = split.split_of(task);
    const int64_t row = split.row_of(task);
    const int64_t first = std::min(s * split.classes_per_split, p.num_classes);
    const int64_t last = std::min(first + split.classes_per_split, p.num_classes);
    T* to = s == 0 ? grad : partial.as<T>() + (s - 1) * elements;
    k.backward_rows(p, b, row, std::min(kReadoutRows, n - row), first, last, scratch,
                    to + row * p.dim);
  });
  parallel_over(elements, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t s = 1; s < split.class_splits; ++s) {
      const T* from = partial.as<T>() + (s - 1) * elements;
      for (int64_t i = begin; i < end; ++i) grad[i] += from[i];
    }
  });
}

template <typename T>
void readout_backward_classes(const ReadoutProblem& p, const ReadoutBackward& b, T* grad_prototypes,
                              T* grad_values) {
  const SoftmaxReadoutKernels& k = readout_kernels();
  const int64_t blocks = ceil_div(p.num_rows, kReadoutRows);
  const size_t dim_bytes = blocks * k.packed_block_elements(p.dim) * sizeof(T);
  const size_t value_bytes =
      b.grad_mean == nullptr ? 0 : blocks * k.packed_block_elements(p.value_dim) * sizeof(T);
  const Scratch columns(dim_bytes), rows(dim_bytes), grad_columns(value_bytes),
      grad_rows(value_bytes);
  const ReadoutPackedRows packed{columns.get(), rows.get(), grad_columns.get(), grad_rows.get()};
  parallel_over(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = block * kReadoutRows;
      k.pack_block(p, b, row, std::min(kReadoutRows, p.num_rows - row), packed);
    }
  });
  const int64_t fair = ceil_div(p.num_classes, kTasks);
  const int64_t per_task = std::min(k.classes_per_task(p), std::max(fair, kFewestGradientClasses));
  const int64_t tasks = ceil_div(p.num_classes, per_task);
  const size_t scratch_bytes = k.scratch_bytes(p, true);
  parallel_tasks(tasks, flops(p), scratch_bytes, [&](int64_t task, void* scratch) {
    k.backward_classes(p, b, packed, task * per_task,
                       std::min((task + 1) * per_task, p.num_classes), scratch, grad_prototypes,
                       grad_values);
  });
}

void pack_prototypes(const ReadoutProblem& p, void* packed, void* squared_norms) {
  parallel_over(p.num_classes, std::max<int64_t>(1, 65536 / p.dim),
                [&](int64_t begin, int64_t end) {
                  readout_kernels().pack_prototypes(p, begin, end, packed, squared_norms);
                });
}

template void readout_forward<float>(const ReadoutProblem&, double*, float*);
template void readout_forward<double>(const ReadoutProblem&, double*, double*);
template void readout_backward_rows<float>(const ReadoutProblem&, const ReadoutBackward&, float*);
template void readout_backward_rows<double>(const ReadoutProblem&, const ReadoutBackward&, double*);
template void readout_backward_classes<float>(const ReadoutProblem&, const ReadoutBackward&, float*,
                                              float*);
template void readout_backward_classes<double>(const ReadoutProblem&, const ReadoutBackward&,
                                               double*, double*);

}  // namespace fcl::ops::cpu
