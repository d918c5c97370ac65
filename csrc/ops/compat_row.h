// SPDX-License-Identifier: Apache-2.0
// The torch-free part of compat_loss, for the CPU and for CUDA: its options, and the scalar maths
// of a row (formulas: compat_loss.h). In double, because one row costs nothing beside its C
// classes.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define FCL_HOST_DEVICE __host__ __device__
#else
#define FCL_HOST_DEVICE
#endif

namespace fcl::ops {

enum class Reduction { kNone, kSum, kMean };

struct CompatLossOptions {
  double scale, margin;
  bool arcface;
  double label_smoothing;
  bool normalize;
  int64_t ignore_index;
  Reduction reduction;
};

// Rows of the state that the gradient to prototypes needs.
enum CompatLossState { kStateLogsumexp, kStateOther, kStateTarget, kStateWeight, kStateRows };

struct MarginLogit {
  double logit;  // z'
  double slope;  // dz'/dz
};

// What the rows of a call share of its margin. `tiny` keeps the derivative of the sine finite at
// cosines of +-1.
struct Margin {
  double scale, angle, cosine, sine;
  bool arcface;
  double tiny;
};

inline Margin make_margin(const CompatLossOptions& options, double tiny) {
  return {options.scale,
          options.margin,
          std::cos(options.margin),
          std::sin(options.margin),
          options.arcface,
          tiny};
}

// The target logit z = scale * cosine under a margin. ArcFace continues linearly where theta +
// margin passes pi.
FCL_HOST_DEVICE inline MarginLogit apply_margin(double z, const Margin& margin) {
  if (margin.angle == 0) return {z, 1};
  if (!margin.arcface) return {z - margin.scale * margin.angle, 1};
  const double cosine = z / margin.scale;
  if (!(cosine > -margin.cosine)) {
    return {margin.scale * (cosine - margin.angle * margin.sine), 1};
  }
  const double squared_sine = 1 - cosine * cosine;
  const double sine = sqrt(squared_sine > margin.tiny ? squared_sine : margin.tiny);
  const double slope =
      margin.cosine + (squared_sine > margin.tiny ? cosine / sine * margin.sine : 0);
  return {margin.scale * (cosine * margin.cosine - sine * margin.sine), slope};
}

struct CompatRow {
  double loss;
  double other;   // p_o, weight of the other classes' mean in the gradient
  double target;  // a, weight of the target in the gradient
};

// smooth_logit = s u.wbar; only looked at with label smoothing.
FCL_HOST_DEVICE inline CompatRow compat_row(double logsumexp_others, double target_logit,
                                            MarginLogit shifted, double smooth_logit,
                                            double label_smoothing, double num_classes) {
  const double delta = logsumexp_others - shifted.logit;
  const double small = exp(delta > 0 ? -delta : delta);
  const double loss = (delta > 0 ? delta : 0) + log1p(small);
  const double other = (delta > 0 ? 1 : small) / (1 + small);
  CompatRow row{delta == delta ? loss : delta, delta == delta ? other : delta, 0};
  row.target = -other * shifted.slope;
  if (label_smoothing > 0) {
    const double mean_logit = smooth_logit + (shifted.logit - target_logit) / num_classes;
    row.loss += label_smoothing * (shifted.logit - mean_logit);
    row.target += label_smoothing * (shifted.slope - (shifted.slope - 1) / num_classes);
  }
  return row;
}

}  // namespace fcl::ops
