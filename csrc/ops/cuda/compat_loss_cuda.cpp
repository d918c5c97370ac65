// SPDX-License-Identifier: Apache-2.0
// compat_loss on CUDA: torch binding. A label out of range is a device assertion.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "common/cuda_stream.h"
#include "common/text.h"
#include "ops/compat_loss.h"
#include "ops/cuda/compat_loss_kernels.h"

namespace fcl::ops::cuda {
namespace {

using fcl::cuda::contiguous;
using fcl::cuda::CudaScope;
using fcl::cuda::device_scratch;
using torch::stable::contiguous;

CompatProblem make_problem(const CompatLossShape& shape, const Tensor& embeddings,
                           const Tensor& prototypes, const Tensor& labels,
                           const std::optional<Tensor>& mean_prototype,
                           const CompatLossOptions& options) {
  return {shape.dtype,
          embeddings.const_data_ptr(),
          prototypes.const_data_ptr(),
          labels.const_data_ptr<int64_t>(),
          mean_prototype.has_value() ? mean_prototype->const_data_ptr<double>() : nullptr,
          shape.num_rows,
          shape.dim,
          shape.num_classes,
          options};
}

// `op` is the operator that was called, which messages name.
std::tuple<Tensor, Tensor, Tensor, Tensor> run_forward(const char* op, Tensor embeddings,
                                                       Tensor prototypes, Tensor labels,
                                                       std::optional<Tensor> mean_prototype,
                                                       const CompatLossOptions& options,
                                                       bool need_embeddings, bool need_prototypes,
                                                       const std::optional<Tensor>& logits) {
  const CompatLossShape shape =
      check_compat_loss(op, embeddings, prototypes, labels, mean_prototype, options);
  check_compat_logits(op, logits, embeddings, shape);
  const CudaScope scope(embeddings);
  embeddings = contiguous(embeddings);
  prototypes = contiguous(prototypes);
  labels = contiguous(labels);
  mean_prototype = contiguous(mean_prototype);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  const int64_t n = shape.num_rows;
  Tensor loss = options.reduction == Reduction::kNone
                    ? torch::stable::new_empty(embeddings, {n}, accumulate)
                    : torch::stable::new_empty(embeddings, {}, accumulate);
  Tensor grad =
      torch::stable::new_empty(embeddings, {need_embeddings ? n : 0, shape.dim}, accumulate);
  Tensor unit = torch::stable::new_empty(embeddings, {options.normalize ? n : 0, shape.dim});
  Tensor state =
      torch::stable::new_empty(embeddings, {kStateRows, need_prototypes ? n : 0}, accumulate);
  const CompatProblem p =
      make_problem(shape, embeddings, prototypes, labels, mean_prototype, options);
  const CompatOutputs out{
      loss.mutable_data_ptr(), need_embeddings ? grad.mutable_data_ptr() : nullptr,
      unit.mutable_data_ptr(), need_prototypes ? state.mutable_data_ptr() : nullptr};
  const Tensor memory = device_scratch(embeddings, compat_scratch_bytes(p));
  const CompatScratch scratch = compat_scratch(p, memory.mutable_data_ptr());
  launch_compat_prepare(p, scratch, out, scope.stream());
  if (n > 0) {
    const ReadoutProblem readout = compat_readout(p, scratch, out);
    const Tensor partials =
        device_scratch(embeddings, readout_forward_scratch(readout, need_embeddings));
    launch_readout_forward(readout, partials.mutable_data_ptr(), scratch.logsumexp, out.grad,
                           scope.stream());
  }
  launch_compat_finish(p, scratch, out, scope.stream());
  return {loss, grad, unit, state};
}

Tensor run_prototypes(const char* op, Tensor embeddings, Tensor prototypes, Tensor labels,
                      Tensor state, Tensor grad_loss, double scale, double label_smoothing,
                      bool normalize, int64_t ignore_index, const std::optional<Tensor>& logits) {
  const CompatLossOptions options{
      scale, 0, false, label_smoothing, normalize, ignore_index, Reduction::kNone};
  const CompatLossShape shape =
      check_compat_loss_backward(op, embeddings, prototypes, labels, state, grad_loss, options);
  check_compat_logits(op, logits, embeddings, shape);
  const CudaScope scope(embeddings);
  for (Tensor* t : {&embeddings, &prototypes, &labels, &state, &grad_loss}) *t = contiguous(*t);
  Tensor grad = torch::stable::new_empty(prototypes, {shape.num_classes, shape.dim},
                                         accumulate_type(shape.dtype));
  const CompatProblem p =
      make_problem(shape, embeddings, prototypes, labels, std::nullopt, options);
  const CompatBackward b{state.const_data_ptr(), grad_loss.const_data_ptr(), grad_loss.dim() == 1};
  const Tensor memory = device_scratch(embeddings, compat_backward_scratch_bytes(p));
  const CompatBackwardScratch scratch = compat_backward_scratch(p, memory.mutable_data_ptr());
  launch_compat_coefficients(p, b, scratch, scope.stream());
  const ReadoutProblem readout = compat_readout(p, scratch);
  const ReadoutBackward terms = compat_readout_backward(p, b, scratch);
  const ReadoutGradient which = ReadoutGradient::kPrototypes;
  const Tensor partials =
      device_scratch(embeddings, readout_backward_scratch(readout, terms, which));
  launch_readout_backward(readout, terms, which, false, partials.mutable_data_ptr(),
                          grad.mutable_data_ptr(), scope.stream());
  launch_compat_targets(p, b, scratch, grad.mutable_data_ptr(), scope.stream());
  return grad;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> compat_loss(
    Tensor embeddings, Tensor prototypes, Tensor labels, std::optional<Tensor> mean_prototype,
    double scale, double margin, bool arcface, double label_smoothing, bool normalize,
    int64_t ignore_index, Text reduction, bool need_embeddings, bool need_prototypes,
    std::optional<Tensor> logits, std::optional<Tensor> packed,
    [[maybe_unused]] std::optional<Tensor> squared_norms) {
  const char* op = "compat_loss";
  FCL_REQUIRE(!packed.has_value(), "fcl::", op, ": prototypes are packed on the CPU only");
  const CompatLossOptions options{scale,
                                  margin,
                                  arcface,
                                  label_smoothing,
                                  normalize,
                                  ignore_index,
                                  parse_reduction(op, reduction)};
  return run_forward(op, embeddings, prototypes, labels, mean_prototype, options, need_embeddings,
                     need_prototypes, logits);
}

Tensor compat_loss_backward(Tensor embeddings, Tensor prototypes, Tensor labels, Tensor state,
                            Tensor grad_loss, double scale, double label_smoothing, bool normalize,
                            int64_t ignore_index, std::optional<Tensor> logits) {
  return run_prototypes("compat_loss_backward", embeddings, prototypes, labels, state, grad_loss,
                        scale, label_smoothing, normalize, ignore_index, logits);
}

std::tuple<Tensor, Tensor, Tensor> compat_loss_gradients(Tensor embeddings, Tensor prototypes,
                                                         Tensor labels,
                                                         std::optional<Tensor> mean_prototype,
                                                         double scale, double margin, bool arcface,
                                                         double label_smoothing, bool normalize,
                                                         int64_t ignore_index, Text reduction) {
  const char* op = "compat_loss_gradients";
  check_scalar_reduction(op, reduction);
  const CompatLossOptions options{scale,
                                  margin,
                                  arcface,
                                  label_smoothing,
                                  normalize,
                                  ignore_index,
                                  parse_reduction(op, reduction)};
  auto [loss, grad, unit, state] = run_forward(op, embeddings, prototypes, labels, mean_prototype,
                                               options, true, true, std::nullopt);
  Tensor one = torch::stable::new_empty(loss, {});
  torch::stable::fill_(one, 1.0);
  const Tensor grad_prototypes =
      run_prototypes(op, normalize ? unit : embeddings, prototypes, labels, state, one, scale,
                     label_smoothing, normalize, ignore_index, std::nullopt);
  return {loss, grad, grad_prototypes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CUDA, m) {
  m.impl("compat_loss", TORCH_BOX(&compat_loss));
  m.impl("compat_loss_backward", TORCH_BOX(&compat_loss_backward));
  m.impl("compat_loss_gradients", TORCH_BOX(&compat_loss_gradients));
}

}  // namespace fcl::ops::cuda
