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

const int64_t* int64_data(const std::optional<Tensor>& t) {
  return t.has_value() ? t->const_data_ptr<int64_t>() : nullptr;
}

ReadoutProblem make_problem(const ReadoutShape& shape, const Tensor& embeddings,
                            const Tensor& prototypes, const std::optional<Tensor>& values,
                            const std::optional<Tensor>& exclude,
                            const std::optional<Tensor>& exclude_crow,
                            const std::optional<Tensor>& exclude_col, double scale,
                            bool normalize) {
  return {shape.dtype,
          embeddings.const_data_ptr(),
          prototypes.const_data_ptr(),
          values.has_value() ? values->const_data_ptr() : nullptr,
          int64_data(exclude),
          shape.num_rows,
          shape.dim,
          shape.num_classes,
          shape.value_dim,
          scale,
          normalize,
          nullptr,
          nullptr,
          nullptr,
          int64_data(exclude_crow),
          int64_data(exclude_col)};
}

// The set that a row leaves out: inside of the E classes listed, rising, below C.
void check_excluded_set(const char* op, const ReadoutProblem& p, int64_t row, int64_t num_listed) {
  const int64_t label = p.exclude[row];
  const int64_t begin = p.exclude_crow[label];
  const int64_t end = p.exclude_crow[label + 1];
  FCL_REQUIRE(0 <= begin && begin <= end && end <= num_listed, "fcl::", op,
              ": expected exclude_crow to rise from 0 to ", num_listed, ", got ", begin, " and ",
              end, " at ", label);
  int64_t last = -1;
  for (int64_t e = begin; e < end; ++e) {
    const int64_t excluded = p.exclude_col[e];
    FCL_REQUIRE(excluded > last && excluded < p.num_classes, "fcl::", op,
                ": expected the classes of a set in exclude_col to rise from 0 to ",
                p.num_classes - 1, ", got ", excluded, " after ", last, " in set ", label);
    last = excluded;
  }
}

void check_exclude_range(const char* op, const ReadoutProblem& p,
                         const std::optional<Tensor>& exclude_crow,
                         const std::optional<Tensor>& exclude_col) {
  if (p.exclude == nullptr) return;
  const int64_t bound = exclude_crow.has_value() ? exclude_crow->size(0) - 1 : p.num_classes;
  std::vector<bool> checked(exclude_crow.has_value() ? bound : 0);
  for (int64_t i = 0; i < p.num_rows; ++i) {
    FCL_REQUIRE(p.exclude[i] < bound, "fcl::", op, ": expected labels below ", bound,
                exclude_crow.has_value() ? " sets, got " : " classes, got ", p.exclude[i],
                " in row ", i);
    if (exclude_crow.has_value() && p.exclude[i] >= 0 && !checked[p.exclude[i]]) {
      checked[p.exclude[i]] = true;
      check_excluded_set(op, p, i, exclude_col->size(0));
    }
  }
}

std::tuple<Tensor, Tensor> softmax_readout(
    Tensor embeddings, Tensor prototypes, std::optional<Tensor> values,
    std::optional<Tensor> exclude, double scale, bool need_mean, bool normalize,
    std::optional<Tensor> packed, std::optional<Tensor> squared_norms,
    std::optional<Tensor> exclude_crow, std::optional<Tensor> exclude_col) {
  const char* op = "softmax_readout";
  const ReadoutShape shape = check_softmax_readout(op, embeddings, prototypes, values, exclude,
                                                   exclude_crow, exclude_col, scale);
  embeddings = prepare(embeddings);
  prototypes = prepare(prototypes);
  values = prepare(values);
  exclude = prepare(exclude);
  exclude_crow = prepare(exclude_crow);
  exclude_col = prepare(exclude_col);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  Tensor logsumexp = torch::stable::new_empty(embeddings, {shape.num_rows}, accumulate);
  Tensor mean = torch::stable::new_empty(
      embeddings, {need_mean ? shape.num_rows : 0, shape.value_dim}, accumulate);
  check_packed(op, packed, squared_norms, prototypes);
  ReadoutProblem p = make_problem(shape, embeddings, prototypes, values, exclude, exclude_crow,
                                  exclude_col, scale, normalize);
  if (packed.has_value()) {
    p.packed = packed->const_data_ptr();
    p.squared_norms = squared_norms->const_data_ptr();
  }
  check_exclude_range(op, p, exclude_crow, exclude_col);
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
    bool need_values, bool normalize, std::optional<Tensor> exclude_crow,
    std::optional<Tensor> exclude_col) {
  const ReadoutShape shape =
      check_softmax_readout_backward(embeddings, prototypes, values, exclude, exclude_crow,
                                     exclude_col, logsumexp, coefficient, grad_mean, scale);
  embeddings = prepare(embeddings);
  prototypes = prepare(prototypes);
  values = prepare(values);
  exclude = prepare(exclude);
  exclude_crow = prepare(exclude_crow);
  exclude_col = prepare(exclude_col);
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
  const ReadoutProblem p = make_problem(shape, embeddings, prototypes, values, exclude,
                                        exclude_crow, exclude_col, scale, normalize);
  check_exclude_range("softmax_readout_backward", p, exclude_crow, exclude_col);
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
