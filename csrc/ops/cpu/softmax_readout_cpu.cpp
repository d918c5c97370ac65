// SPDX-License-Identifier: Apache-2.0
// softmax_readout on the CPU: torch binding.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "ops/cpu/softmax_readout_driver.h"
#include "ops/pack_prototypes.h"
#include "ops/softmax_readout.h"

namespace fcl::ops::cpu {
namespace {

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
          normalize,
          nullptr};
}

void check_exclude_range(const ReadoutProblem& p) {
  if (p.exclude == nullptr) return;
  for (int64_t i = 0; i < p.num_rows; ++i) {
    FCL_REQUIRE(p.exclude[i] < p.num_classes, "fcl::softmax_readout: expected labels below ",
                p.num_classes, " classes, got ", p.exclude[i], " in row ", i);
  }
}

std::tuple<Tensor, Tensor> softmax_readout(Tensor embeddings, Tensor prototypes,
                                           std::optional<Tensor> values,
                                           std::optional<Tensor> exclude, double scale,
                                           bool need_mean, bool normalize,
                                           std::optional<Tensor> packed,
                                           std::optional<Tensor> squared_norms) {
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
  check_packed("softmax_readout", packed, squared_norms, prototypes);
  ReadoutProblem p = make_problem(shape, embeddings, prototypes, values, exclude, scale, normalize);
  if (packed.has_value()) {
    p.packed = packed->const_data_ptr();
    p.squared_norms = squared_norms->const_data_ptr();
  }
  check_exclude_range(p);
  auto run = [&](auto zero) {
    using T = decltype(zero);
    std::vector<double> exact(shape.num_rows);
    readout_forward<T>(p, exact.data(), need_mean ? mean.mutable_data_ptr<T>() : nullptr);
    T* rounded = logsumexp.mutable_data_ptr<T>();
    for (int64_t i = 0; i < shape.num_rows; ++i) rounded[i] = static_cast<T>(exact[i]);
  };
  if (accumulate == ScalarType::Double) {
    run(0.0);
  } else {
    run(0.0f);
  }
  return {logsumexp, mean};
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
      readout_backward_rows<T>(p, b, grad_embeddings.mutable_data_ptr<T>());
    }
    if (need_prototypes || (need_values && b.grad_mean != nullptr)) {
      readout_backward_classes<T>(p, b,
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
