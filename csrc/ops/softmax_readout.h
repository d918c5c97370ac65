// SPDX-License-Identifier: Apache-2.0
// softmax_readout: for rows x_i, prototypes W_c, values V_c (default W) and scale s,
//   lse_i  = log sum_c exp(s x_i . W_c)                      [N]
//   mean_i = sum_c softmax_c(s x_i . W_c) V_c                [N, Dv]
// With W frozen and V = W, the gradient of lse to x is s * mean: loss and gradient come out of one
// pass and the N x C logits never exist. Backward, with p = softmax and a_i = g_lse - g_mean .
// mean:
//   dz_ic = p_ic (a_i + g_mean_i . V_c),  dx = s dz W,  dW = s dz^T x,  dV = p^T g_mean.
// A class per row, or on the CPU a set of classes, may be left out of both sums: what a loss adds
// back by itself keeps every digit (ops/compat_loss.h).
// One copy of the argument checks, called first in every backend's kernel.
#pragma once

#include <optional>

#include "common/checks.h"

namespace fcl::ops {

struct ReadoutShape {
  Dtype dtype;
  int64_t num_rows, dim, num_classes, value_dim;
};

inline ReadoutShape check_softmax_readout(const char* op, const Tensor& embeddings,
                                          const Tensor& prototypes,
                                          const std::optional<Tensor>& values,
                                          const std::optional<Tensor>& exclude,
                                          const std::optional<Tensor>& exclude_crow,
                                          const std::optional<Tensor>& exclude_col, double scale) {
  const Dtype dtype = check_floating(op, "embeddings", embeddings);
  check_shape(op, "embeddings", embeddings, "[N, D]", {-1, -1});
  const int64_t n = embeddings.size(0);
  const int64_t d = embeddings.size(1);
  check_dtype(op, "prototypes", prototypes, embeddings.scalar_type());
  check_shape(op, "prototypes", prototypes, "[C, D]", {-1, d});
  check_same_device(op, "prototypes", prototypes, embeddings);
  const int64_t c = prototypes.size(0);
  FCL_REQUIRE(c > 0 && d > 0, "fcl::", op,
              ": expected prototypes with at least one class and one dim, got shape ",
              shape_string(prototypes));
  int64_t value_dim = d;
  if (values.has_value()) {
    check_dtype(op, "values", *values, embeddings.scalar_type());
    check_shape(op, "values", *values, "[C, Dv]", {c, -1});
    check_same_device(op, "values", *values, embeddings);
    value_dim = values->size(1);
    FCL_REQUIRE(value_dim > 0, "fcl::", op, ": expected values with at least one dim, got ",
                shape_string(*values));
  }
  if (exclude.has_value()) {
    check_dtype(op, "exclude", *exclude, ScalarType::Long);
    check_shape(op, "exclude", *exclude, "[N]", {n});
    check_same_device(op, "exclude", *exclude, embeddings);
  }
  FCL_REQUIRE(exclude_crow.has_value() == exclude_col.has_value() &&
                  (exclude.has_value() || !exclude_crow.has_value()),
              "fcl::", op, ": expected exclude with both of exclude_crow and exclude_col, or none");
  if (exclude_crow.has_value()) {
    check_dtype(op, "exclude_crow", *exclude_crow, ScalarType::Long);
    check_shape(op, "exclude_crow", *exclude_crow, "[L + 1]", {-1});
    check_same_device(op, "exclude_crow", *exclude_crow, embeddings);
    FCL_REQUIRE(exclude_crow->size(0) > 0, "fcl::", op,
                ": expected exclude_crow of shape [L + 1], got [0]");
    check_dtype(op, "exclude_col", *exclude_col, ScalarType::Long);
    check_shape(op, "exclude_col", *exclude_col, "[E]", {-1});
    check_same_device(op, "exclude_col", *exclude_col, embeddings);
  }
  check_scale(op, scale);
  return {dtype, n, d, c, value_dim};
}

inline ReadoutShape check_softmax_readout_backward(
    const Tensor& embeddings, const Tensor& prototypes, const std::optional<Tensor>& values,
    const std::optional<Tensor>& exclude, const std::optional<Tensor>& exclude_crow,
    const std::optional<Tensor>& exclude_col, const Tensor& logsumexp, const Tensor& coefficient,
    const std::optional<Tensor>& grad_mean, double scale) {
  const char* op = "softmax_readout_backward";
  const ReadoutShape shape = check_softmax_readout(op, embeddings, prototypes, values, exclude,
                                                   exclude_crow, exclude_col, scale);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  check_dtype(op, "logsumexp", logsumexp, accumulate);
  check_shape(op, "logsumexp", logsumexp, "[N]", {shape.num_rows});
  check_same_device(op, "logsumexp", logsumexp, embeddings);
  check_dtype(op, "coefficient", coefficient, accumulate);
  check_shape(op, "coefficient", coefficient, "[N]", {shape.num_rows});
  check_same_device(op, "coefficient", coefficient, embeddings);
  if (grad_mean.has_value()) {
    check_dtype(op, "grad_mean", *grad_mean, accumulate);
    check_shape(op, "grad_mean", *grad_mean, "[N, Dv]", {shape.num_rows, shape.value_dim});
    check_same_device(op, "grad_mean", *grad_mean, embeddings);
  }
  return shape;
}

}  // namespace fcl::ops
