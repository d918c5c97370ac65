// SPDX-License-Identifier: Apache-2.0
// The scalar part of compat_loss, per row, for the CPU and for CUDA: see compat_loss.h. In double,
// because one row costs nothing beside its C classes.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define FCL_HOST_DEVICE __host__ __device__
#else
#define FCL_HOST_DEVICE
#endif

namespace fcl::ops {

struct MarginLogit {
  double logit;  // z'
  double slope;  // dz'/dz
};

// The target logit z = scale * cosine under a margin. ArcFace continues linearly where theta +
// margin passes pi. `tiny` keeps the derivative of the sine finite at cosines of +-1.
FCL_HOST_DEVICE inline MarginLogit apply_margin(double z, double scale, double margin, bool arcface,
                                                double tiny) {
  if (margin == 0) return {z, 1};
  if (!arcface) return {z - scale * margin, 1};
  const double cosine = z / scale;
  const double cos_margin = cos(margin);
  const double sin_margin = sin(margin);
  if (!(cosine > -cos_margin)) return {scale * (cosine - margin * sin_margin), 1};
  const double squared_sine = 1 - cosine * cosine;
  const double sine = sqrt(squared_sine > tiny ? squared_sine : tiny);
  const double slope = cos_margin + (squared_sine > tiny ? cosine / sine * sin_margin : 0);
  return {scale * (cosine * cos_margin - sine * sin_margin), slope};
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
