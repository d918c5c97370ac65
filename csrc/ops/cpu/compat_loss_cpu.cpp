// SPDX-License-Identifier: Apache-2.0
// compat_loss on the CPU: rows are prepared, the readout runs, rows are finished. Formulas:
// ops/compat_loss.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include "common/host.h"
#include "common/large_pages.h"
#include "common/text.h"
#include "ops/compat_loss.h"
#include "ops/compat_row.h"
#include "ops/cpu/softmax_readout_driver.h"
#include "ops/pack_prototypes.h"

namespace fcl::ops::cpu {
namespace {

constexpr double kSmallestNorm = 1e-12;  // F.normalize's eps

struct CompatProblem {
  const char* op;  // its name, for messages
  CompatLossShape shape;
  CompatLossOptions options;
  const void* embeddings;
  const void* prototypes;
  const int64_t* labels;
  const double* mean_prototype;  // [D] or null
  float* logits;                 // kept for the gradient to prototypes, or null
  const void* packed = nullptr;  // what pack_prototypes made of the prototypes, or null
  const void* squared_norms = nullptr;
};

// Where results go; null outputs are skipped.
struct CompatOutputs {
  void* losses;  // [N], T
  void* grad;    // [N, D], T
  void* unit;    // [N, D], S; rows as the readout sees them if normalised
  void* state;   // [kStateRows, N], T
};

// Rows that one thread takes at least: below that, waking another one costs more.
int64_t row_grain(int64_t dim) { return std::max<int64_t>(1, 32768 / dim); }

template <typename S>
double load_double(const S* p) {
  return load_as<double>(p);
}

template <typename S>
constexpr Dtype dtype_of() {
  if constexpr (std::is_same_v<S, float>) return Dtype::kFloat32;
  if constexpr (std::is_same_v<S, double>) return Dtype::kFloat64;
  if constexpr (std::is_same_v<S, BFloat16>) return Dtype::kBfloat16;
  return Dtype::kFloat16;
}

template <typename A, typename B>
double dot(const A* a, const B* b, int64_t dim) {
  return readout_kernels().row_dot({dtype_of<A>(), a}, {dtype_of<B>(), b}, dim);
}

// to = a x + b y
template <typename X, typename Y, typename T>
void weighted_sum(double a, const X* x, double b, const Y* y, int64_t dim, T* to) {
  readout_kernels().row_sum(a, {dtype_of<X>(), x}, b, {dtype_of<Y>(), y}, dim,
                            std::is_same_v<T, double>, to);
}

template <typename S>
double inverse_norm(const S* row, int64_t dim) {
  return 1 / std::max(std::sqrt(dot(row, row, dim)), kSmallestNorm);
}

// Rounds to the storage type S (nearest even).
inline void store_rounded(double value, BFloat16* to) {
  const uint32_t bits = float_to_bits(static_cast<float>(value));
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  to->bits = static_cast<uint16_t>(is_nan ? 0x7fc0u : (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline void store_rounded(double value, Float16* to) {
  // |value| <= 1 or NaN: unit rows. Below 2^-14 the spacing stays 2^-24.
  const double magnitude = std::fabs(value);
  if (!(magnitude <= 1)) {
    to->bits = 0x7e00u;
    return;
  }
  const int exponent = std::max(magnitude > 0 ? std::ilogb(magnitude) : -14, -14);
  const auto steps = static_cast<uint32_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  // A mantissa that rounds up to 2048 carries into the exponent by itself.
  const uint32_t bits =
      steps < 1024 ? steps : (static_cast<uint32_t>(exponent + 15) << 10) + (steps - 1024);
  to->bits = static_cast<uint16_t>(bits | (std::signbit(value) ? 0x8000u : 0u));
}

// to = factor x, rounded to the storage type.
template <typename S>
void scale_row(double factor, const S* x, int64_t dim, S* to) {
  if constexpr (std::is_same_v<S, typename Accumulate<S>::type>) {
    weighted_sum(factor, x, 0, x, dim, to);
  } else {
    for (int64_t d = 0; d < dim; ++d) store_rounded(factor * load_double(x + d), to + d);
  }
}

// The class to leave out per row: its label, or none if the row is ignored.
std::vector<int64_t> excluded_classes(const CompatProblem& p) {
  std::vector<int64_t> exclude(p.shape.num_rows);
  for (int64_t i = 0; i < p.shape.num_rows; ++i) {
    const int64_t label = p.labels[i];
    const bool ignored = label == p.options.ignore_index;
    FCL_REQUIRE(ignored || (label >= 0 && label < p.shape.num_classes), "fcl::", p.op,
                ": expected labels in [0, ", p.shape.num_classes, "), got ", label, " in row ", i);
    exclude[i] = ignored ? -1 : label;
  }
  return exclude;
}

ReadoutProblem readout_problem(const CompatProblem& p, const void* embeddings,
                               const int64_t* exclude) {
  return {p.shape.dtype, embeddings,       p.prototypes,        nullptr,
          exclude,       p.shape.num_rows, p.shape.dim,         p.shape.num_classes,
          p.shape.dim,   p.options.scale,  p.options.normalize, p.logits,
          p.packed,      p.squared_norms};
}

// One row after the readout: loss, gradient in place of the mean, state. Returns the loss. `norm`
// is 1 / |x| where rows are normalised.
template <typename S, typename T>
double finish_row(const CompatProblem& p, int64_t i, int64_t label, double row_weight,
                  const S* unit_rows, double norm, double logsumexp, T* grad, T* state) {
  const int64_t n = p.shape.num_rows;
  const int64_t dim = p.shape.dim;
  const CompatLossOptions& o = p.options;
  if (label < 0) {
    if (grad != nullptr) std::fill_n(grad + i * dim, dim, T(0));
    if (state != nullptr) {
      for (int64_t k = 0; k < kStateRows; ++k) state[k * n + i] = 0;
      // With its own logsumexp its probabilities, which the gradient to prototypes multiplies by
      // 0, are numbers.
      state[kStateLogsumexp * n + i] = static_cast<T>(logsumexp);
    }
    return 0;
  }
  const S* unit = unit_rows + i * dim;
  const S* target = static_cast<const S*>(p.prototypes) + label * dim;
  const double target_norm = o.normalize ? inverse_norm(target, dim) : 1;
  const double target_logit = o.scale * target_norm * dot(unit, target, dim);
  const double smooth_logit =
      p.mean_prototype == nullptr ? 0 : o.scale * dot(unit, p.mean_prototype, dim);
  const double tiny = std::is_same_v<T, double> ? std::numeric_limits<double>::epsilon()
                                                : std::numeric_limits<float>::epsilon();
  const MarginLogit shifted = apply_margin(target_logit, make_margin(o, tiny));
  const CompatRow row = compat_row(logsumexp, target_logit, shifted, smooth_logit,
                                   o.label_smoothing, static_cast<double>(p.shape.num_classes));
  if (state != nullptr) {
    state[kStateLogsumexp * n + i] = static_cast<T>(logsumexp);
    state[kStateOther * n + i] = static_cast<T>(row.other * row_weight);
    state[kStateTarget * n + i] = static_cast<T>(row.target * row_weight);
    state[kStateWeight * n + i] = static_cast<T>(row_weight);
  }
  if (grad == nullptr) return row.loss;
  T* g = grad + i * dim;
  const double factor = o.scale * row_weight;
  weighted_sum(factor * row.other, g, factor * row.target * target_norm, target, dim, g);
  if (p.mean_prototype != nullptr) {
    weighted_sum(1, g, -factor * o.label_smoothing, p.mean_prototype, dim, g);
  }
  if (o.normalize) {
    // Through the norm of the row as given.
    weighted_sum(norm, g, -norm * dot(g, unit, dim), unit, dim, g);
  }
  return row.loss;
}

template <typename S>
void run_forward(const CompatProblem& p, const CompatOutputs& out) {
  using T = typename Accumulate<S>::type;
  const int64_t n = p.shape.num_rows;
  const int64_t dim = p.shape.dim;
  const S* rows = static_cast<const S*>(p.embeddings);
  const std::vector<int64_t> exclude = excluded_classes(p);
  std::vector<double> norms(p.options.normalize ? n : 0);  // 1 / |x|
  if (p.options.normalize) {
    S* unit = static_cast<S*>(out.unit);
    parallel_over(n, row_grain(dim), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const S* x = static_cast<const S*>(p.embeddings) + i * dim;
        norms[i] = inverse_norm(x, dim);
        scale_row(norms[i], x, dim, unit + i * dim);
      }
    });
    rows = unit;
  }
  T* grad = static_cast<T*>(out.grad);
  std::vector<double> logsumexp(n);
  readout_forward<T>(readout_problem(p, rows, exclude.data()), logsumexp.data(), grad);
  const int64_t valid = n - std::count(exclude.begin(), exclude.end(), -1);
  const double row_weight = p.options.reduction == Reduction::kMean
                                ? 1.0 / static_cast<double>(std::max<int64_t>(valid, 1))
                                : 1.0;
  std::vector<double> losses(n);
  parallel_over(n, row_grain(dim), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double norm = p.options.normalize ? norms[i] : 1;
      losses[i] = finish_row<S, T>(p, i, exclude[i], row_weight, rows, norm, logsumexp[i], grad,
                                   static_cast<T*>(out.state));
    }
  });
  T* loss = static_cast<T*>(out.losses);
  if (p.options.reduction == Reduction::kNone) {
    for (int64_t i = 0; i < n; ++i) loss[i] = static_cast<T>(losses[i]);
    return;
  }
  double total = 0;
  for (double value : losses) total += value;
  // No row counts: 0/0, as torch has it.
  if (p.options.reduction == Reduction::kMean) total /= static_cast<double>(valid);
  *loss = static_cast<T>(total);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> compat_loss(
    Tensor embeddings, Tensor prototypes, Tensor labels, std::optional<Tensor> mean_prototype,
    double scale, double margin, bool arcface, double label_smoothing, bool normalize,
    int64_t ignore_index, Text reduction, bool need_embeddings, bool need_prototypes,
    std::optional<Tensor> logits, std::optional<Tensor> packed,
    std::optional<Tensor> squared_norms) {
  const char* op = "compat_loss";
  const CompatLossOptions options{scale,
                                  margin,
                                  arcface,
                                  label_smoothing,
                                  normalize,
                                  ignore_index,
                                  parse_reduction(op, reduction)};
  const CompatLossShape shape =
      check_compat_loss(op, embeddings, prototypes, labels, mean_prototype, options);
  check_compat_logits(op, logits, embeddings, shape);
  check_packed(op, packed, squared_norms, prototypes);
  embeddings = torch::stable::contiguous(embeddings);
  prototypes = torch::stable::contiguous(prototypes);
  labels = torch::stable::contiguous(labels);
  if (mean_prototype.has_value()) mean_prototype = torch::stable::contiguous(*mean_prototype);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  const int64_t n = shape.num_rows;
  const bool per_row = options.reduction == Reduction::kNone;
  Tensor loss = per_row ? torch::stable::new_empty(embeddings, {n}, accumulate)
                        : torch::stable::new_empty(embeddings, {}, accumulate);
  Tensor grad =
      torch::stable::new_empty(embeddings, {need_embeddings ? n : 0, shape.dim}, accumulate);
  Tensor unit = torch::stable::new_empty(embeddings, {normalize ? n : 0, shape.dim});
  Tensor state =
      torch::stable::new_empty(embeddings, {kStateRows, need_prototypes ? n : 0}, accumulate);
  const CompatProblem p{
      op,
      shape,
      options,
      embeddings.const_data_ptr(),
      prototypes.const_data_ptr(),
      labels.const_data_ptr<int64_t>(),
      mean_prototype.has_value() ? mean_prototype->const_data_ptr<double>() : nullptr,
      logits.has_value() ? logits->mutable_data_ptr<float>() : nullptr,
      packed.has_value() ? packed->const_data_ptr() : nullptr,
      packed.has_value() ? squared_norms->const_data_ptr() : nullptr};
  if (p.logits != nullptr)
    want_large_pages(p.logits, sizeof(float) * static_cast<size_t>(logits->numel()));
  const CompatOutputs out{
      loss.mutable_data_ptr(), need_embeddings ? grad.mutable_data_ptr() : nullptr,
      unit.mutable_data_ptr(), need_prototypes ? state.mutable_data_ptr() : nullptr};
  dispatch_dtype(shape.dtype, [&](auto tag) { run_forward<typename decltype(tag)::type>(p, out); });
  return {loss, grad, unit, state};
}

// What every class gets from label smoothing, and what targets get from their own rows; both
// through the normalisation of the prototype they go to.
template <typename S, typename T>
void add_target_rows(const CompatProblem& p, const T* state, const T* grad_loss, bool per_row,
                     T* grad_prototypes) {
  const int64_t n = p.shape.num_rows;
  const int64_t dim = p.shape.dim;
  const S* rows = static_cast<const S*>(p.embeddings);
  const S* prototypes = static_cast<const S*>(p.prototypes);
  // `factor` times a row of embeddings or of a sum of them.
  auto add = [&](int64_t label, double factor, const auto* value) {
    const S* prototype = prototypes + label * dim;
    T* grad = grad_prototypes + label * dim;
    const double norm = p.options.normalize ? inverse_norm(prototype, dim) : 1;
    weighted_sum(1, grad, factor * norm, value, dim, grad);
    if (!p.options.normalize) return;
    const double radial = factor * norm * norm * norm * dot(value, prototype, dim);
    weighted_sum(1, grad, -radial, prototype, dim, grad);
  };
  for (int64_t i = 0; i < n; ++i) {
    if (p.labels[i] == p.options.ignore_index) continue;
    const double g = p.options.scale * static_cast<double>(grad_loss[per_row ? i : 0]);
    add(p.labels[i], g * static_cast<double>(state[kStateTarget * n + i]), rows + i * dim);
  }
  if (p.options.label_smoothing == 0) return;
  std::vector<double> smooth(dim);
  for (int64_t i = 0; i < n; ++i) {
    if (p.labels[i] == p.options.ignore_index) continue;
    const double even = p.options.label_smoothing * p.options.scale *
                        static_cast<double>(grad_loss[per_row ? i : 0]) *
                        static_cast<double>(state[kStateWeight * n + i]) /
                        static_cast<double>(p.shape.num_classes);
    for (int64_t d = 0; d < dim; ++d) smooth[d] -= even * load_double(rows + i * dim + d);
  }
  parallel_over(p.shape.num_classes, row_grain(dim), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) add(c, 1, smooth.data());
  });
}

// Gradient to prototypes; the embeddings of `p` are the rows as the readout saw them.
template <typename S, typename T>
void run_prototypes(const CompatProblem& p, const T* states, const T* grad_loss, bool per_row,
                    T* to) {
  const int64_t n = p.shape.num_rows;
  const std::vector<int64_t> exclude = excluded_classes(p);
  std::vector<T> coefficient(n);
  for (int64_t i = 0; i < n; ++i) {
    // An ignored row has no say, whatever the gradient of its loss.
    coefficient[i] =
        exclude[i] < 0 ? T(0) : grad_loss[per_row ? i : 0] * states[kStateOther * n + i];
  }
  const ReadoutBackward b{states + kStateLogsumexp * n, coefficient.data(), nullptr};
  readout_backward_classes<T>(readout_problem(p, p.embeddings, exclude.data()), b, to, nullptr);
  add_target_rows<S, T>(p, states, grad_loss, per_row, to);
}

Tensor compat_loss_backward(Tensor embeddings, Tensor prototypes, Tensor labels, Tensor state,
                            Tensor grad_loss, double scale, double label_smoothing, bool normalize,
                            int64_t ignore_index, std::optional<Tensor> logits) {
  const char* op = "compat_loss_backward";
  const CompatLossOptions options{
      scale, 0, false, label_smoothing, normalize, ignore_index, Reduction::kNone};
  const CompatLossShape shape =
      check_compat_loss_backward(op, embeddings, prototypes, labels, state, grad_loss, options);
  check_compat_logits(op, logits, embeddings, shape);
  embeddings = torch::stable::contiguous(embeddings);
  prototypes = torch::stable::contiguous(prototypes);
  labels = torch::stable::contiguous(labels);
  state = torch::stable::contiguous(state);
  grad_loss = torch::stable::contiguous(grad_loss);
  const bool per_row = grad_loss.dim() == 1;
  Tensor grad = torch::stable::new_empty(prototypes, {shape.num_classes, shape.dim},
                                         accumulate_type(shape.dtype));
  const CompatProblem p{op,
                        shape,
                        options,
                        embeddings.const_data_ptr(),
                        prototypes.const_data_ptr(),
                        labels.const_data_ptr<int64_t>(),
                        nullptr,
                        logits.has_value() ? logits->mutable_data_ptr<float>() : nullptr};
  dispatch_dtype(shape.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulate<S>::type;
    run_prototypes<S>(p, state.const_data_ptr<T>(), grad_loss.const_data_ptr<T>(), per_row,
                      grad.mutable_data_ptr<T>());
  });
  return grad;
}

// What the two operators above do, without a tensor for anything that nobody sees.
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
  const CompatLossShape shape =
      check_compat_loss(op, embeddings, prototypes, labels, mean_prototype, options);
  embeddings = torch::stable::contiguous(embeddings);
  prototypes = torch::stable::contiguous(prototypes);
  labels = torch::stable::contiguous(labels);
  if (mean_prototype.has_value()) mean_prototype = torch::stable::contiguous(*mean_prototype);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  const int64_t n = shape.num_rows;
  Tensor loss = torch::stable::new_empty(embeddings, {}, accumulate);
  Tensor grad = torch::stable::new_empty(embeddings, {n, shape.dim}, accumulate);
  Tensor grad_prototypes =
      torch::stable::new_empty(embeddings, {shape.num_classes, shape.dim}, accumulate);
  dispatch_dtype(shape.dtype, [&](auto tag) {
    using S = typename decltype(tag)::type;
    using T = typename Accumulate<S>::type;
    const bool keeps_logits = std::is_same_v<S, float>;
    const int64_t blocks = (n + kLogitRows - 1) / kLogitRows;
    // Not Scratch: these would take the large blocks that the readout comes back for.
    const auto logits = std::make_unique_for_overwrite<float[]>(
        keeps_logits ? blocks * kLogitRows * shape.num_classes : 0);
    const auto unit = std::make_unique_for_overwrite<S[]>(normalize ? n * shape.dim : 0);
    const auto state = std::make_unique_for_overwrite<T[]>(kStateRows * n);
    CompatProblem p{op,
                    shape,
                    options,
                    embeddings.const_data_ptr(),
                    prototypes.const_data_ptr(),
                    labels.const_data_ptr<int64_t>(),
                    mean_prototype.has_value() ? mean_prototype->const_data_ptr<double>() : nullptr,
                    keeps_logits ? logits.get() : nullptr};
    run_forward<S>(p, {loss.mutable_data_ptr(), grad.mutable_data_ptr(), unit.get(), state.get()});
    if (normalize) p.embeddings = unit.get();
    const T one = 1;
    run_prototypes<S>(p, state.get(), &one, false, grad_prototypes.mutable_data_ptr<T>());
  });
  return {loss, grad, grad_prototypes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) {
  m.impl("compat_loss", TORCH_BOX(&compat_loss));
  m.impl("compat_loss_backward", TORCH_BOX(&compat_loss_backward));
  m.impl("compat_loss_gradients", TORCH_BOX(&compat_loss_gradients));
}

}  // namespace fcl::ops::cpu
