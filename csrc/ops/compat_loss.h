// SPDX-License-Identifier: Apache-2.0
// compat_loss: cross-entropy of rows against prototypes, loss and gradient in one pass. With u the
// row (at unit length if normalised), t its target prototype, z = s u.t, and the readout over the
// OTHER classes (lse_o, mean_o), a margin turns z into z' and
//   loss = log(1 + e^(lse_o - z')) + label_smoothing (z' - zbar),
//   zbar = s u.wbar + (z' - z) / C,  wbar = mean of all prototypes,
//   dloss/du = s (p_o mean_o + a t - label_smoothing wbar),  p_o = sigmoid(lse_o - z'),
//   a = slope (label_smoothing - p_o) - label_smoothing (slope - 1) / C,  slope = dz'/dz.
// Leaving the target out keeps every digit of a small loss: lse - z of a row that is nearly right
// would be the difference of two nearly equal numbers, and so would its gradient.
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "common/checks.h"
#include "ops/compat_row.h"

namespace fcl::ops {

struct CompatLossShape {
  Dtype dtype;
  int64_t num_rows, dim, num_classes;
};

inline Reduction parse_reduction(const char* op, const std::string& name) {
  if (name == "none") return Reduction::kNone;
  if (name == "sum") return Reduction::kSum;
  FCL_REQUIRE(name == "mean", "fcl::", op, ": expected reduction mean, sum or none, got ", name);
  return Reduction::kMean;
}

inline CompatLossShape check_compat_loss(const char* op, const Tensor& embeddings,
                                         const Tensor& prototypes, const Tensor& labels,
                                         const std::optional<Tensor>& mean_prototype,
                                         const CompatLossOptions& options) {
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
  check_dtype(op, "labels", labels, ScalarType::Long);
  check_shape(op, "labels", labels, "[N]", {n});
  check_same_device(op, "labels", labels, embeddings);
  check_scale(op, options.scale);
  FCL_REQUIRE(options.margin >= 0 && options.margin < 3.141592653589793, "fcl::", op,
              ": expected margin in [0, pi), got ", options.margin);
  FCL_REQUIRE(options.label_smoothing >= 0 && options.label_smoothing <= 1, "fcl::", op,
              ": expected label_smoothing in [0, 1], got ", options.label_smoothing);
  FCL_REQUIRE(mean_prototype.has_value() == (options.label_smoothing > 0), "fcl::", op,
              ": mean_prototype is needed for label smoothing, and for nothing else");
  if (mean_prototype.has_value()) {
    check_dtype(op, "mean_prototype", *mean_prototype, ScalarType::Double);
    check_shape(op, "mean_prototype", *mean_prototype, "[D]", {d});
    check_same_device(op, "mean_prototype", *mean_prototype, embeddings);
  }
  return {dtype, n, d, c};
}

inline CompatLossShape check_compat_loss_backward(const char* op, const Tensor& embeddings,
                                                  const Tensor& prototypes, const Tensor& labels,
                                                  const Tensor& state, const Tensor& grad_loss,
                                                  const CompatLossOptions& options) {
  CompatLossOptions rest = options;
  rest.label_smoothing = 0;  // its mean prototype has done its part
  const CompatLossShape shape =
      check_compat_loss(op, embeddings, prototypes, labels, std::nullopt, rest);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  check_dtype(op, "state", state, accumulate);
  check_shape(op, "state", state, "[4, N]", {kStateRows, shape.num_rows});
  check_same_device(op, "state", state, embeddings);
  check_dtype(op, "grad_loss", grad_loss, accumulate);
  if (grad_loss.dim() != 0) check_shape(op, "grad_loss", grad_loss, "[N] or []", {shape.num_rows});
  check_same_device(op, "grad_loss", grad_loss, embeddings);
  return shape;
}

inline void check_scalar_reduction(const char* op, const std::string& reduction) {
  FCL_REQUIRE(reduction == "mean" || reduction == "sum", "fcl::", op,
              ": expected reduction mean or sum, got ", reduction);
}

// Room for the logits of every row: blocks of kLogitRows rows, transposed.
inline constexpr int64_t kLogitRows = 128;

inline void check_compat_logits(const char* op, const std::optional<Tensor>& logits,
                                const Tensor& embeddings, const CompatLossShape& shape) {
  if (!logits.has_value()) return;
  FCL_REQUIRE(embeddings.is_cpu() && shape.dtype == Dtype::kFloat32, "fcl::", op,
              ": logits are kept on the CPU and in float32 only");
  check_dtype(op, "logits", *logits, ScalarType::Float);
  check_shape(op, "logits", *logits, "[N / 128 rounded up, C, 128]",
              {(shape.num_rows + kLogitRows - 1) / kLogitRows, shape.num_classes, kLogitRows});
  check_same_device(op, "logits", *logits, embeddings);
  FCL_REQUIRE(logits->is_contiguous(), "fcl::", op, ": expected contiguous logits");
}

}  // namespace fcl::ops
