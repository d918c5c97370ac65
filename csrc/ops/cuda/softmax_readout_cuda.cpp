// SPDX-License-Identifier: Apache-2.0
// softmax_readout on CUDA: torch binding. An excluded class that is not below C is a device
// assertion.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/cuda_stream.h"
#include "ops/cuda/inverse_norms.h"
#include "ops/cuda/softmax_readout_kernels.h"
#include "ops/softmax_readout.h"

namespace fcl::ops::cuda {
namespace {

using fcl::cuda::contiguous;
using fcl::cuda::CudaScope;
using fcl::cuda::data_or_null;
using fcl::cuda::device_scratch;
using torch::stable::contiguous;

ReadoutProblem make_problem(const ReadoutShape& shape, const Tensor& embeddings,
                            const Tensor& prototypes, const std::optional<Tensor>& values,
                            const std::optional<Tensor>& exclude, double scale) {
  return {shape.dtype,
          embeddings.const_data_ptr(),
          prototypes.const_data_ptr(),
          values.has_value() ? values->const_data_ptr() : prototypes.const_data_ptr(),
          static_cast<const int64_t*>(data_or_null(exclude)),
          shape.num_rows,
          shape.dim,
          shape.num_classes,
          shape.value_dim,
          scale,
          nullptr};
}

// With normalize, sets the problem's inverse norms; returns the tensor that holds them.
Tensor set_norms(const char* op, bool normalize, const Tensor& prototypes, const CudaScope& scope,
                 ReadoutProblem& p) {
  Tensor norms = torch::stable::new_empty(prototypes, {normalize ? p.num_classes : 0},
                                          accumulate_type(p.dtype));
  if (normalize) {
    launch_inverse_norms(op, p.dtype, p.prototypes, p.num_classes, p.dim, norms.mutable_data_ptr(),
                         scope.stream());
    p.inverse_norms = norms.const_data_ptr();
  }
  return norms;
}

// Values of their own, also where they are the prototypes' memory: to the kernels one address means
// values that normalize scales too.
std::optional<Tensor> own_values(const std::optional<Tensor>& values, const Tensor& prototypes) {
  const std::optional<Tensor> own = contiguous(values);
  if (!own.has_value() || own->const_data_ptr() != prototypes.const_data_ptr()) return own;
  return torch::stable::clone(*own);
}

void refuse_sets(const char* op, const std::optional<Tensor>& exclude_crow) {
  FCL_REQUIRE(!exclude_crow.has_value(), "fcl::", op,
              ": sets of classes are left out on the CPU only");
}

std::tuple<Tensor, Tensor> softmax_readout(
    Tensor embeddings, Tensor prototypes, std::optional<Tensor> values,
    std::optional<Tensor> exclude, double scale, bool need_mean, bool normalize,
    std::optional<Tensor> packed, [[maybe_unused]] std::optional<Tensor> squared_norms,
    std::optional<Tensor> exclude_crow, std::optional<Tensor> exclude_col) {
  const char* op = "softmax_readout";
  FCL_REQUIRE(!packed.has_value(), "fcl::", op, ": prototypes are packed on the CPU only");
  const ReadoutShape shape = check_softmax_readout(op, embeddings, prototypes, values, exclude,
                                                   exclude_crow, exclude_col, scale);
  refuse_sets(op, exclude_crow);
  const CudaScope scope(embeddings);
  embeddings = contiguous(embeddings);
  prototypes = contiguous(prototypes);
  values = normalize ? own_values(values, prototypes) : contiguous(values);
  exclude = contiguous(exclude);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  Tensor logsumexp = torch::stable::new_empty(embeddings, {shape.num_rows}, accumulate);
  Tensor mean = torch::stable::new_empty(
      embeddings, {need_mean ? shape.num_rows : 0, shape.value_dim}, accumulate);
  ReadoutProblem p = make_problem(shape, embeddings, prototypes, values, exclude, scale);
  const Tensor norms = set_norms(op, normalize, prototypes, scope, p);
  const Tensor scratch = device_scratch(embeddings, readout_forward_scratch(p, need_mean));
  launch_readout_forward(p, scratch.mutable_data_ptr(), logsumexp.mutable_data_ptr(),
                         need_mean ? mean.mutable_data_ptr() : nullptr, scope.stream());
  return {logsumexp, mean};
}

void run_backward(const ReadoutProblem& p, const ReadoutBackward& b, ReadoutGradient which,
                  bool accumulate, const Tensor& grad, const CudaScope& scope) {
  const Tensor scratch = device_scratch(grad, readout_backward_scratch(p, b, which));
  launch_readout_backward(p, b, which, accumulate, scratch.mutable_data_ptr(),
                          grad.mutable_data_ptr(), scope.stream());
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
  refuse_sets("softmax_readout_backward", exclude_crow);
  const CudaScope scope(embeddings);
  embeddings = contiguous(embeddings);
  prototypes = contiguous(prototypes);
  values = normalize ? own_values(values, prototypes) : contiguous(values);
  exclude = contiguous(exclude);
  logsumexp = contiguous(logsumexp);
  coefficient = contiguous(coefficient);
  grad_mean = contiguous(grad_mean);
  need_values = need_values && values.has_value();
  const ScalarType accumulate = accumulate_type(shape.dtype);
  Tensor grad_embeddings = torch::stable::new_empty(
      embeddings, {need_embeddings ? shape.num_rows : 0, shape.dim}, accumulate);
  Tensor grad_prototypes = torch::stable::new_empty(
      embeddings, {need_prototypes ? shape.num_classes : 0, shape.dim}, accumulate);
  Tensor grad_values = torch::stable::new_zeros(
      embeddings, {need_values ? shape.num_classes : 0, shape.value_dim}, accumulate);
  ReadoutProblem p = make_problem(shape, embeddings, prototypes, values, exclude, scale);
  const Tensor norms = set_norms("softmax_readout_backward", normalize, prototypes, scope, p);
  const ReadoutBackward b{logsumexp.const_data_ptr(), coefficient.const_data_ptr(),
                          data_or_null(grad_mean)};
  if (need_embeddings && shape.num_rows > 0) {
    run_backward(p, b, ReadoutGradient::kEmbeddings, false, grad_embeddings, scope);
  }
  if (need_prototypes) {
    run_backward(p, b, ReadoutGradient::kPrototypes, false, grad_prototypes, scope);
    // Prototypes that are the values too get both gradients.
    if (!values.has_value() && grad_mean.has_value()) {
      run_backward(p, b, ReadoutGradient::kValues, true, grad_prototypes, scope);
    }
    if (normalize) {
      launch_readout_unscale(p, grad_prototypes.mutable_data_ptr(), scope.stream());
    }
  }
  if (need_values && grad_mean.has_value()) {
    run_backward(p, b, ReadoutGradient::kValues, false, grad_values, scope);
  }
  return {grad_embeddings, grad_prototypes, grad_values};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CUDA, m) {
  m.impl("softmax_readout", TORCH_BOX(&softmax_readout));
  m.impl("softmax_readout_backward", TORCH_BOX(&softmax_readout_backward));
}

}  // namespace fcl::ops::cuda
