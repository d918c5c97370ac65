// SPDX-License-Identifier: Apache-2.0
// softmax_readout on the CPU: tasks, threads and the fixed-order combination of partial sums. How
// work is cut depends on shapes alone, never on the thread count, so results do not either.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "common/cpu_isa.h"
#include "common/host.h"
#include "ops/cpu/softmax_readout_kernels.h"
#include "ops/softmax_readout.h"

namespace fcl::ops::cpu {
namespace {

constexpr double kLn2 = 0.6931471805599453;
// Enough tasks for many cores; more would only add partial sums to combine.
constexpr int64_t kTasks = 64;
constexpr int64_t kFewestClasses = 256;
// The gradient to classes needs no partial sums, so its tasks may be smaller.
constexpr int64_t kFewestGradientClasses = 56;

const SoftmaxReadoutKernels& kernels() {
#ifdef FCL_X86
  return select_by_isa(softmax_readout_portable, softmax_readout_avx2, softmax_readout_avx512,
                       softmax_readout_avx512_bf16);
#else
  return softmax_readout_portable;
#endif
}

// Row blocks x class splits.
struct Split {
  int64_t row_blocks, class_splits, classes_per_split;

  explicit Split(const ReadoutShape& shape)
      : row_blocks((shape.num_rows + kReadoutRows - 1) / kReadoutRows) {
    const int64_t wanted = row_blocks == 0 ? 1 : (kTasks + row_blocks - 1) / row_blocks;
    const int64_t possible = (shape.num_classes + kFewestClasses - 1) / kFewestClasses;
    class_splits = std::min(wanted, possible);
    classes_per_split = (shape.num_classes + class_splits - 1) / class_splits;
  }
  int64_t tasks() const { return row_blocks * class_splits; }
};

Tensor prepare(const Tensor& t) { return torch::stable::contiguous(t); }
std::optional<Tensor> prepare(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional(prepare(*t)) : std::nullopt;
}

ReadoutProblem make_problem(const ReadoutShape& shape, const Tensor& embeddings,
                            const Tensor& prototypes, const std::optional<Tensor>& values,
                            const std::optional<Tensor>& exclude, double scale, bool normalize) {
  return {shape.dtype,
          embeddings.const_data_ptr(),
          prototypes.const_data_ptr(),
          values.has_value() ? values->const_data_ptr() : nullptr,
          exclude.has_value() ? exclude->const_data_ptr<int64_t>() : nullptr,
          shape.num_rows,
          shape.dim,
          shape.num_classes,
          shape.value_dim,
          scale,
          normalize};
}

void check_exclude_range(const ReadoutProblem& p) {
  if (p.exclude == nullptr) return;
  for (int64_t i = 0; i < p.num_rows; ++i) {
    STD_TORCH_CHECK(p.exclude[i] < p.num_classes, "fcl::softmax_readout: expected labels below ",
                    p.num_classes, " classes, got ", p.exclude[i], " in row ", i);
  }
}

// Partial sums -> lse and mean; partials are indexed [split][row].
template <typename T>
void combine(const ReadoutShape& shape, const Split& split, const T* max, const double* sum,
             const T* partial, T* logsumexp, T* mean) {
  const int64_t n = shape.num_rows;
  const int64_t dim = shape.value_dim;
  parallel_over(n, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T top = -std::numeric_limits<T>::infinity();
      for (int64_t s = 0; s < split.class_splits; ++s) top = std::max(top, max[s * n + i]);
      const double base = std::isinf(top) ? 0.0 : static_cast<double>(top);
      double total = 0;
      for (int64_t s = 0; s < split.class_splits; ++s) {
        total += sum[s * n + i] * std::exp2(static_cast<double>(max[s * n + i]) - base);
      }
      logsumexp[i] = static_cast<T>((base + std::log2(total)) * kLn2);
      if (mean == nullptr) continue;
      T* to = mean + i * dim;
      for (int64_t s = 0; s < split.class_splits; ++s) {
        const double weight = std::exp2(static_cast<double>(max[s * n + i]) - base) / total;
        const T factor = total == 0 ? T(0) : static_cast<T>(weight);
        const T* from = partial + (s * n + i) * dim;
        for (int64_t d = 0; d < dim; ++d) to[d] = (s == 0 ? T(0) : to[d]) + from[d] * factor;
      }
    }
  });
}

template <typename T>
void run_forward(const ReadoutShape& shape, const ReadoutProblem& p, T* logsumexp, T* mean) {
  const Split split(shape);
  const SoftmaxReadoutKernels& k = kernels();
  const int64_t n = shape.num_rows;
  const int64_t partial_rows = split.class_splits * n;
  const Scratch base(partial_rows * sizeof(T));
  const Scratch sum(partial_rows * sizeof(double));
  // A single split accumulates where the result goes.
  const bool direct = split.class_splits == 1 || mean == nullptr;
  const Scratch partial(direct ? 0 : partial_rows * shape.value_dim * sizeof(T));
  T* sums = mean == nullptr || direct ? mean : partial.as<T>();
  const size_t scratch_bytes = k.scratch_bytes(p, false);
  parallel_over(split.tasks(), 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t s = task % split.class_splits;
      const int64_t row = task / split.class_splits * kReadoutRows;
      const int64_t first = std::min(s * split.classes_per_split, shape.num_classes);
      const int64_t last = std::min(first + split.classes_per_split, shape.num_classes);
      const int64_t at = s * n + row;
      k.forward(p, row, std::min(kReadoutRows, n - row), first, last, scratch.get(),
                base.as<T>() + at, sum.as<double>() + at,
                sums == nullptr ? nullptr : sums + at * shape.value_dim);
    }
  });
  combine<T>(shape, split, base.as<T>(), sum.as<double>(), sums, logsumexp, mean);
}

std::tuple<Tensor, Tensor> softmax_readout(Tensor embeddings, Tensor prototypes,
                                           std::optional<Tensor> values,
                                           std::optional<Tensor> exclude, double scale,
                                           bool need_mean, bool normalize) {
  const ReadoutShape shape =
      check_softmax_readout("softmax_readout", embeddings, prototypes, values, exclude, scale);
  embeddings = prepare(embeddings);
  prototypes = prepare(prototypes);
  values = prepare(values);
  exclude = prepare(exclude);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  Tensor logsumexp = torch::stable::new_empty(embeddings, {shape.num_rows}, accumulate);
  Tensor mean = torch::stable::new_empty(
      embeddings, {need_mean ? shape.num_rows : 0, shape.value_dim}, accumulate);
  const ReadoutProblem p =
      make_problem(shape, embeddings, prototypes, values, exclude, scale, normalize);
  check_exclude_range(p);
  auto run = [&](auto zero) {
    using T = decltype(zero);
    run_forward<T>(shape, p, logsumexp.mutable_data_ptr<T>(),
                   need_mean ? mean.mutable_data_ptr<T>() : nullptr);
  };
  if (accumulate == ScalarType::Double) {
    run(0.0);
  } else {
    run(0.0f);
  }
  return {logsumexp, mean};
}

// Sums class splits of the gradient to embeddings into the first one's place.
template <typename T>
void run_backward_rows(const ReadoutShape& shape, const ReadoutProblem& p, const ReadoutBackward& b,
                       T* grad) {
  const Split split(shape);
  const SoftmaxReadoutKernels& k = kernels();
  const int64_t n = shape.num_rows;
  const int64_t elements = n * shape.dim;
  const Scratch partial((split.class_splits - 1) * elements * sizeof(T));
  const size_t scratch_bytes = k.scratch_bytes(p, false);
  parallel_over(split.tasks(), 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t s = task % split.class_splits;
      const int64_t row = task / split.class_splits * kReadoutRows;
      const int64_t first = std::min(s * split.classes_per_split, shape.num_classes);
      const int64_t last = std::min(first + split.classes_per_split, shape.num_classes);
      T* to = s == 0 ? grad : partial.as<T>() + (s - 1) * elements;
      k.backward_rows(p, b, row, std::min(kReadoutRows, n - row), first, last, scratch.get(),
                      to + row * shape.dim);
    }
  });
  parallel_over(elements, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t s = 1; s < split.class_splits; ++s) {
      const T* from = partial.as<T>() + (s - 1) * elements;
      for (int64_t i = begin; i < end; ++i) grad[i] += from[i];
    }
  });
}

template <typename T>
void run_backward_classes(const ReadoutShape& shape, const ReadoutProblem& p,
                          const ReadoutBackward& b, T* grad_prototypes, T* grad_values) {
  const SoftmaxReadoutKernels& k = kernels();
  const int64_t blocks = (shape.num_rows + kReadoutRows - 1) / kReadoutRows;
  const size_t dim_bytes = blocks * k.packed_block_elements(shape.dim) * sizeof(T);
  const size_t value_bytes =
      b.grad_mean == nullptr ? 0 : blocks * k.packed_block_elements(shape.value_dim) * sizeof(T);
  const Scratch columns(dim_bytes), rows(dim_bytes), grad_columns(value_bytes),
      grad_rows(value_bytes);
  const ReadoutPackedRows packed{columns.get(), rows.get(), grad_columns.get(), grad_rows.get()};
  parallel_over(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t row = block * kReadoutRows;
      k.pack_block(p, b, row, std::min(kReadoutRows, shape.num_rows - row), packed);
    }
  });
  const int64_t fair = (shape.num_classes + kTasks - 1) / kTasks;
  const int64_t per_task = std::min(k.classes_per_task(p), std::max(fair, kFewestGradientClasses));
  const int64_t tasks = (shape.num_classes + per_task - 1) / per_task;
  const size_t scratch_bytes = k.scratch_bytes(p, true);
  parallel_over(tasks, 1, [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    for (int64_t task = begin; task < end; ++task) {
      k.backward_classes(p, b, packed, task * per_task,
                         std::min((task + 1) * per_task, shape.num_classes), scratch.get(),
                         grad_prototypes, grad_values);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> softmax_readout_backward(
    Tensor embeddings, Tensor prototypes, std::optional<Tensor> values,
    std::optional<Tensor> exclude, Tensor logsumexp, Tensor coefficient,
    std::optional<Tensor> grad_mean, double scale, bool need_embeddings, bool need_prototypes,
    bool need_values, bool normalize) {
  const ReadoutShape shape = check_softmax_readout_backward(
      embeddings, prototypes, values, exclude, logsumexp, coefficient, grad_mean, scale);
  embeddings = prepare(embeddings);
  prototypes = prepare(prototypes);
  values = prepare(values);
  exclude = prepare(exclude);
  logsumexp = prepare(logsumexp);
  coefficient = prepare(coefficient);
  grad_mean = prepare(grad_mean);
  need_values = need_values && values.has_value();
  const ScalarType accumulate = accumulate_type(shape.dtype);
  Tensor grad_embeddings = torch::stable::new_empty(
      embeddings, {need_embeddings ? shape.num_rows : 0, shape.dim}, accumulate);
  Tensor grad_prototypes = torch::stable::new_empty(
      embeddings, {need_prototypes ? shape.num_classes : 0, shape.dim}, accumulate);
  Tensor grad_values = torch::stable::new_zeros(
      embeddings, {need_values ? shape.num_classes : 0, shape.value_dim}, accumulate);
  const ReadoutProblem p =
      make_problem(shape, embeddings, prototypes, values, exclude, scale, normalize);
  const ReadoutBackward b{logsumexp.const_data_ptr(), coefficient.const_data_ptr(),
                          grad_mean.has_value() ? grad_mean->const_data_ptr() : nullptr};
  auto run = [&](auto zero) {
    using T = decltype(zero);
    if (need_embeddings) {
      run_backward_rows<T>(shape, p, b, grad_embeddings.mutable_data_ptr<T>());
    }
    if (need_prototypes || (need_values && b.grad_mean != nullptr)) {
      run_backward_classes<T>(shape, p, b,
                              need_prototypes ? grad_prototypes.mutable_data_ptr<T>() : nullptr,
                              need_values ? grad_values.mutable_data_ptr<T>() : nullptr);
    }
  };
  if (accumulate == ScalarType::Double) {
    run(0.0);
  } else {
    run(0.0f);
  }
  return {grad_embeddings, grad_prototypes, grad_values};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) {
  m.impl("softmax_readout", TORCH_BOX(&softmax_readout));
  m.impl("softmax_readout_backward", TORCH_BOX(&softmax_readout_backward));
}

}  // namespace fcl::ops::cpu
