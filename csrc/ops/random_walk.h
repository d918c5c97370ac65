// SPDX-License-Identifier: Apache-2.0
// random_walk: random walk with restart on P (N, N), CSR, with damping l in (0, 1):
//   Z_0 = F,  Z_{t+1} = l P Z_t + (1 - l) F,  limit (1 - l) (I - l P)^-1 F.
// Gradients of exactly T steps, with A_T = G and A_t = l P^T A_{t+1}:
//   dF = (l P^T)^T G + (1 - l) sum_{s<T} (l P^T)^s G, the same walk of G on the transpose;
//   dP_e = l sum_t A_{t+1}[row of e] . Z_t[col of e].
// random_walk_tol stops by |Z_{t+1} - Z*| <= c / (1 - c) |Z_{t+1} - Z_t| with c = l |P|: |.| is the
// largest entry and |P| the largest absolute row sum (norm "max"), or the largest absolute column
// sum of both (norm "sum"). For a step brings any two states closer by c, Z_t and Z* too:
//   |Z_{t+1} - Z*| <= c |Z_t - Z*| <= c (|Z_{t+1} - Z_t| + |Z_{t+1} - Z*|).
// |P| is what the weights sum to, above 1 as well: a smaller c would promise too much.
// fclearn/_power.py holds the same rule for a walk that comes back to Python.
// Checks, and the loops over steps as templates over a backend that knows one step.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <limits>
#include <string_view>
#include <tuple>
#include <vector>

#include "ops/csr_transpose.h"

namespace fcl::ops {

enum class WalkNorm { kMax, kSum };

struct WalkShape {
  CsrShape csr;
  Dtype dtype;  // of features
  int64_t dim;
};

inline WalkShape check_random_walk(const char* op, const Tensor& crow_indices,
                                   const Tensor& col_indices, const Tensor& values,
                                   const Tensor& features, double damping) {
  const CsrShape csr = check_csr(op, crow_indices, col_indices);
  const Dtype dtype = check_floating(op, "features", features);
  check_shape(op, "features", features, "[N, D]", {csr.num_rows, -1});
  check_same_device(op, "features", features, crow_indices);
  const bool float_values =
      values.scalar_type() == ScalarType::Float && accumulate_type(dtype) == ScalarType::Float;
  if (!float_values) check_dtype(op, "values", values, features.scalar_type());
  check_shape(op, "values", values, "[E]", {csr.num_edges});
  check_same_device(op, "values", values, crow_indices);
  FCL_REQUIRE(damping > 0 && damping < 1, "fcl::", op,
              ": expected damping in the open interval (0, 1), got ", damping);
  return {csr, dtype, features.size(1)};
}

inline void check_num_steps(const char* op, int64_t num_steps) {
  FCL_REQUIRE(num_steps >= 0, "fcl::", op, ": expected num_steps >= 0, got ", num_steps);
}

// state: dtype of features, or bfloat16 beside float32 features.
inline WalkShape check_random_walk_resume(const Tensor& crow_indices, const Tensor& col_indices,
                                          const Tensor& values, const Tensor& state,
                                          const Tensor& features, double damping, int64_t num_steps,
                                          int64_t num_bf16_steps) {
  const char* op = "random_walk_resume";
  const WalkShape shape =
      check_random_walk(op, crow_indices, col_indices, values, features, damping);
  check_num_steps(op, num_steps);
  const bool is_float = shape.dtype == Dtype::kFloat32;
  FCL_REQUIRE(is_float || shape.dtype == Dtype::kFloat64, "fcl::", op,
              ": expected features of dtype float32 or float64, got ",
              dtype_name(features.scalar_type()));
  if (!is_float || state.scalar_type() != ScalarType::BFloat16) {
    check_dtype(op, "state", state, features.scalar_type());
  }
  check_shape(op, "state", state, "[N, D]", {shape.csr.num_rows, shape.dim});
  check_same_device(op, "state", state, crow_indices);
  FCL_REQUIRE(num_bf16_steps >= 0 && num_bf16_steps <= num_steps, "fcl::", op,
              ": expected num_bf16_steps in [0, num_steps = ", num_steps, "], got ",
              num_bf16_steps);
  FCL_REQUIRE(num_bf16_steps == 0 || is_float, "fcl::", op,
              ": expected features of dtype float32 with num_bf16_steps > 0, got ",
              dtype_name(features.scalar_type()));
  return shape;
}

inline WalkShape check_random_walk_backward(const Tensor& crow_indices, const Tensor& col_indices,
                                            const Tensor& values, const Tensor& features,
                                            const Tensor& grad_output, double damping,
                                            int64_t num_steps) {
  const char* op = "random_walk_backward";
  const WalkShape shape =
      check_random_walk(op, crow_indices, col_indices, values, features, damping);
  check_num_steps(op, num_steps);
  check_dtype(op, "grad_output", grad_output, features.scalar_type());
  check_shape(op, "grad_output", grad_output, "[N, D]", {shape.csr.num_rows, shape.dim});
  check_same_device(op, "grad_output", grad_output, crow_indices);
  return shape;
}

inline WalkNorm check_random_walk_tol(double tol, int64_t max_steps, std::string_view norm) {
  const char* op = "random_walk_tol";
  FCL_REQUIRE(tol > 0 && tol < 1, "fcl::", op, ": expected tol in the open interval (0, 1), got ",
              tol);
  FCL_REQUIRE(max_steps >= 1, "fcl::", op, ": expected max_steps >= 1, got ", max_steps);
  FCL_REQUIRE(norm == "max" || norm == "sum", "fcl::", op, ": expected norm max or sum, got ",
              norm);
  return norm == "max" ? WalkNorm::kMax : WalkNorm::kSum;
}

// A graph ready for the kernels: contiguous, values in the dtype of the iterates.
struct WalkGraph {
  Tensor crow, col, values;
};

// A Backend provides, for contiguous float32 or float64 tensors:
//   void step(graph, state, restart, damping, out): out = damping P state + (1 - damping) restart,
//     or damping P state alone if restart is null;
//   double step_difference(graph, state, restart, damping, out, norm): the same step, and the norm
//     of out - state (NaN if that has a NaN);
//   double norm(graph, tensor, norm) and double operator_norm(graph, norm) as above;
//   void add_edge_dots(graph, left, right, factor, out): out_e += factor left[row] . right[col];
//   WalkGraph transpose(graph).

// The state `num_steps` steps after `initial`; `initial` itself if there are none.
template <typename Backend>
Tensor walk_steps(const Backend& backend, const WalkGraph& graph, const Tensor& initial,
                  const Tensor& restart, double damping, int64_t num_steps) {
  Tensor state = initial;
  Tensor buffers[2];
  for (int64_t t = 0; t < num_steps; ++t) {
    Tensor& out = buffers[t % 2];
    if (t < 2) out = torch::stable::empty_like(initial);
    backend.step(graph, state, &restart, damping, out);
    state = out;
  }
  return state;
}

// sum_t damping A_{t+1}[row] . Z_t[col]. Iterates are kept at every sqrt(T)-th step and recomputed
// in between: about 2 sqrt(T) of them exist at a time, for one more forward walk.
template <typename Backend>
Tensor walk_grad_values(const Backend& backend, const WalkGraph& graph, const WalkGraph& transposed,
                        const Tensor& features, const Tensor& grad_output, double damping,
                        int64_t num_steps) {
  Tensor grad = torch::stable::new_zeros(graph.values, {graph.values.size(0)});
  if (num_steps == 0) return grad;
  const auto stride = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(num_steps))));
  std::vector<Tensor> checkpoints{features};
  for (int64_t t = stride; t < num_steps; t += stride) {
    checkpoints.push_back(
        walk_steps(backend, graph, checkpoints.back(), features, damping, stride));
  }
  Tensor adjoint = grad_output;
  Tensor next = torch::stable::empty_like(grad_output);
  std::vector<Tensor> states(stride);
  for (int64_t t = num_steps - 1; t >= 0; --t) {
    const int64_t begin = t / stride * stride;
    if (t == num_steps - 1 || t % stride == stride - 1) {
      states[0] = checkpoints.back();
      checkpoints.pop_back();
      for (int64_t s = 1; s <= t - begin; ++s) {
        if (!states[s].defined()) states[s] = torch::stable::empty_like(features);
        backend.step(graph, states[s - 1], &features, damping, states[s]);
      }
    }
    backend.add_edge_dots(graph, adjoint, states[t - begin], damping, grad);
    if (t == 0) break;
    backend.step(transposed, adjoint, nullptr, damping, next);
    // grad_output itself must survive: only from the second step on are both buffers ours.
    const Tensor free = t == num_steps - 1 ? torch::stable::empty_like(grad_output) : adjoint;
    adjoint = next;
    next = free;
  }
  return grad;
}

struct WalkLimit {
  Tensor state;
  int64_t num_steps;
};

template <typename Backend>
WalkLimit walk_to_limit(const Backend& backend, const WalkGraph& graph, const Tensor& features,
                        double damping, double tol, int64_t max_steps, WalkNorm norm) {
  const char* op = "fcl::random_walk_tol";
  const double weight = backend.operator_norm(graph, norm);
  const char* lines = norm == WalkNorm::kMax ? "row" : "column";
  // Rounded weights may sum to a little more than 1; the bound below counts that in.
  FCL_REQUIRE(weight <= 1 + 1e-4, op, ": expected every ", lines,
              " of the graph to have absolute weights that sum to at most 1 (without that no "
              "error bound holds: normalise, or use num_steps), got ",
              weight);
  const double contraction = damping * weight;
  FCL_REQUIRE(contraction < 1, op, ": expected damping times the largest ", lines,
              " sum to be below 1, got ", damping, " * ", weight);
  const double scale = backend.norm(graph, features, norm);
  FCL_REQUIRE(std::isfinite(scale), op, ": expected finite features");
  const double epsilon = features.scalar_type() == ScalarType::Double
                             ? std::numeric_limits<double>::epsilon()
                             : static_cast<double>(std::numeric_limits<float>::epsilon());
  // Exact differences halve within this many steps. Where they take more than twice as long they
  // are rounding noise, and no further step would bring the limit nearer.
  const double halving = contraction > 0 ? std::ceil(std::log(0.5) / std::log(contraction)) : 1;
  Tensor state = features;
  Tensor buffers[2];
  double error = std::numeric_limits<double>::infinity();
  double halved = error;
  int64_t halved_at = 0;
  for (int64_t t = 0; t < max_steps; ++t) {
    Tensor& out = buffers[t % 2];
    if (t < 2) out = torch::stable::empty_like(features);
    const double difference = backend.step_difference(graph, state, features, damping, out, norm);
    state = out;
    FCL_REQUIRE(std::isfinite(difference), op, ": expected finite values and features, but step ",
                t + 1, " gave a NaN or an infinity");
    error = contraction / (1 - contraction) * difference;
    if (difference <= halved / 2) {
      halved = difference;
      halved_at = t;
    }
    const bool is_noise =
        static_cast<double>(t - halved_at) > 2 * halving && difference <= 16 * epsilon * scale;
    if (error <= tol * scale || is_noise) return {state, t + 1};
  }
  FCL_REQUIRE(false, op, ": expected to come within tol = ", tol, " in max_steps = ", max_steps,
              ", but the error bound is still ", error / scale);
}

}  // namespace fcl::ops
