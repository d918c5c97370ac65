// SPDX-License-Identifier: Apache-2.0
// random_walk, its gradients and its tolerance form on the CPU: one step over balanced ranges of
// rows; the loops over steps are in ops/random_walk.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "common/cpu_isa.h"
#include "common/host.h"
#include "common/text.h"
#include "ops/cpu/csr_host.h"
#include "ops/cpu/random_walk_kernels.h"
#include "ops/cpu/walk_panels.h"
#include "ops/random_walk.h"

namespace fcl::ops::cpu {
namespace {

using torch::stable::contiguous;

const RandomWalkKernels& kernels() {
#ifdef FCL_X86
  return select_by_isa(random_walk_portable, random_walk_avx2, random_walk_avx512);
#else
  return random_walk_portable;
#endif
}

Dtype state_dtype(const Tensor& state) {
  return state.scalar_type() == ScalarType::Double ? Dtype::kFloat64 : Dtype::kFloat32;
}
const char* element(const Tensor& t, int64_t index) {
  return static_cast<const char*>(t.const_data_ptr()) +
         index * (state_dtype(t) == Dtype::kFloat64 ? 8 : 4);
}

// Largest of two, NaN if there is one: std::max would drop it.
double larger(double a, double b) { return b > a || std::isnan(b) ? b : a; }

// Per range of rows: its largest difference, or its column sums; combined in the order of ranges.
class Difference {
 public:
  Difference(WalkNorm norm, int64_t ranges, int64_t dim)
      : norm_(norm),
        dim_(dim),
        width_(norm == WalkNorm::kMax ? 1 : dim),
        partial_(ranges * width_, 0.0) {}

  void add(int64_t range, const Tensor& a, const Tensor* b, int64_t begin, int64_t end) {
    const void* rows_a = element(a, begin * dim_);
    const void* rows_b = b == nullptr ? nullptr : element(*b, begin * dim_);
    double* to = partial_.data() + range * width_;
    if (norm_ == WalkNorm::kMax) {
      *to = kernels().largest(state_dtype(a), rows_a, rows_b, (end - begin) * dim_);
    } else {
      kernels().add_columns(state_dtype(a), rows_a, rows_b, end - begin, dim_, to);
    }
  }

  double result() const {
    double most = 0;
    for (int64_t d = 0; d < width_; ++d) {
      double total = 0;
      for (size_t at = d; at < partial_.size(); at += width_) {
        total = norm_ == WalkNorm::kMax ? larger(total, partial_[at]) : total + partial_[at];
      }
      most = larger(most, total);
    }
    return most;
  }

 private:
  WalkNorm norm_;
  int64_t dim_, width_;
  std::vector<double> partial_;
};

struct CpuBackend {
  WalkStep problem(const WalkGraph& graph, const Tensor& state, const Tensor* restart,
                   double damping, const Tensor& out) const {
    return {state_dtype(state),
            graph.crow.const_data_ptr<int64_t>(),
            graph.col.const_data_ptr(),
            graph.col.scalar_type() == ScalarType::Long,
            graph.values.const_data_ptr(),
            state.const_data_ptr(),
            restart == nullptr ? nullptr : restart->const_data_ptr(),
            out.mutable_data_ptr(),
            state.size(1),
            damping};
  }

  template <typename F>
  void over_ranges(const WalkGraph& graph, const F& f) const {
    const std::vector<int64_t> bounds = balanced_rows(graph.crow);
    parallel_over(static_cast<int64_t>(bounds.size()) - 1, 1, [&](int64_t begin, int64_t end) {
      for (int64_t range = begin; range < end; ++range) f(range, bounds[range], bounds[range + 1]);
    });
  }

  void step(const WalkGraph& graph, const Tensor& state, const Tensor* restart, double damping,
            const Tensor& out) const {
    const WalkStep p = problem(graph, state, restart, damping, out);
    over_ranges(graph, [&](int64_t, int64_t begin, int64_t end) { kernels().step(p, begin, end); });
  }

  // state: bfloat16; out: bfloat16 or float32.
  void step_bf16(const WalkGraph& graph, const Tensor& state, const Tensor& restart, double damping,
                 const Tensor& out) const {
    const WalkStep p = problem(graph, state, &restart, damping, out);
    const bool float_out = out.scalar_type() == ScalarType::Float;
    over_ranges(graph, [&](int64_t, int64_t begin, int64_t end) {
      kernels().step_bf16(p, float_out, begin, end);
    });
  }

  double step_difference(const WalkGraph& graph, const Tensor& state, const Tensor& restart,
                         double damping, const Tensor& out, WalkNorm norm) const {
    const WalkStep p = problem(graph, state, &restart, damping, out);
    Difference difference(norm, num_ranges(graph), state.size(1));
    over_ranges(graph, [&](int64_t range, int64_t begin, int64_t end) {
      kernels().step(p, begin, end);
      // The rows just written are still in the cache.
      difference.add(range, out, &state, begin, end);
    });
    return difference.result();
  }

  double norm(const WalkGraph& graph, const Tensor& t, WalkNorm norm) const {
    Difference size(norm, num_ranges(graph), t.size(1));
    over_ranges(graph, [&](int64_t range, int64_t begin, int64_t end) {
      size.add(range, t, nullptr, begin, end);
    });
    return size.result();
  }

  double operator_norm(const WalkGraph& graph, WalkNorm norm) const {
    return state_dtype(graph.values) == Dtype::kFloat64
               ? operator_norm_of(graph, graph.values.const_data_ptr<double>(), norm)
               : operator_norm_of(graph, graph.values.const_data_ptr<float>(), norm);
  }

  template <typename T>
  double operator_norm_of(const WalkGraph& graph, const T* values, WalkNorm norm) const {
    const int64_t* crow = graph.crow.const_data_ptr<int64_t>();
    const int64_t num_rows = graph.crow.size(0) - 1;
    const bool wide = graph.col.scalar_type() == ScalarType::Long;
    const int64_t* wide_col = wide ? graph.col.const_data_ptr<int64_t>() : nullptr;
    const int32_t* col = wide ? nullptr : graph.col.const_data_ptr<int32_t>();
    std::vector<double> sums(num_rows, 0.0);
    for (int64_t row = 0; row < num_rows; ++row) {
      for (int64_t e = crow[row]; e < crow[row + 1]; ++e) {
        const int64_t c = wide ? wide_col[e] : col[e];
        if (c >= 0) sums[norm == WalkNorm::kMax ? row : c] += std::abs(values[e]);
      }
    }
    double most = 0;
    for (double sum : sums) most = larger(most, sum);
    return most;
  }

  void add_edge_dots(const WalkGraph& graph, const Tensor& left, const Tensor& right, double factor,
                     const Tensor& out) const {
    edge_dots(graph.crow, graph.col, left, right, factor, true, out);
  }

  WalkGraph transpose(const WalkGraph& graph) const {
    const TransposedCsr t = transpose_csr(graph.crow, graph.col, graph.crow.size(0) - 1);
    const Tensor values = torch::stable::empty_like(graph.values);
    const int64_t* order = t.edge_order.const_data_ptr<int64_t>();
    auto gather = [&](const auto* from, auto* to) {
      parallel_over(values.size(0), 1 << 16, [&](int64_t begin, int64_t end) {
        for (int64_t e = begin; e < end; ++e) to[e] = from[order[e]];
      });
    };
    if (state_dtype(values) == Dtype::kFloat64) {
      gather(graph.values.const_data_ptr<double>(), values.mutable_data_ptr<double>());
    } else {
      gather(graph.values.const_data_ptr<float>(), values.mutable_data_ptr<float>());
    }
    return {t.crow, t.col, values};
  }

  static int64_t num_ranges(const WalkGraph& graph) {
    return static_cast<int64_t>(balanced_rows(graph.crow).size()) - 1;
  }
};

Tensor as_state(const Tensor& t, ScalarType dtype) {
  return contiguous(torch::stable::to(t, dtype));
}

WalkGraph prepare(const char* op, const WalkShape& shape, const Tensor& crow, const Tensor& col,
                  const Tensor& values) {
  WalkGraph graph{contiguous(crow), contiguous(col),
                  as_state(values, accumulate_type(shape.dtype))};
  check_csr_entries(op, graph.crow, graph.col, shape.csr.num_rows);
  return graph;
}

// Columns that fill a cache line: what a panel is made of.
int64_t line_columns(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : 16; }

Tensor random_walk(Tensor crow_indices, Tensor col_indices, Tensor values, Tensor features,
                   double damping, int64_t num_steps) {
  const char* op = "random_walk";
  const WalkShape shape =
      check_random_walk(op, crow_indices, col_indices, values, features, damping);
  check_num_steps(op, num_steps);
  const WalkGraph graph = prepare(op, shape, crow_indices, col_indices, values);
  // An operator's output must not be its input.
  if (num_steps == 0) return torch::stable::clone(contiguous(features));
  const Tensor start = as_state(features, accumulate_type(shape.dtype));
  const int64_t width = panel_width(graph, start, line_columns(state_dtype(start)), num_steps);
  auto walk = [&](const Tensor& state, const Tensor& restart) {
    return walk_steps(CpuBackend(), graph, state, restart, damping, num_steps);
  };
  const Tensor walked = width == 0 ? walk(start, start) : walk_panels(start, start, width, walk);
  return torch::stable::to(walked, features.scalar_type());
}

Tensor resume(const WalkGraph& graph, const Tensor& state, const Tensor& restart, double damping,
              int64_t num_steps, int64_t num_bf16_steps) {
  const CpuBackend backend;
  Tensor now =
      contiguous(num_bf16_steps > 0 ? torch::stable::to(state, ScalarType::BFloat16) : state);
  Tensor buffers[2];
  for (int64_t t = 0; t < num_bf16_steps; ++t) {
    Tensor& out = buffers[t % 2];
    if (t < 2) out = torch::stable::empty_like(now);
    backend.step_bf16(graph, now, restart, damping, out);
    now = out;
  }
  int64_t left = num_steps - num_bf16_steps;
  if (left > 0 && now.scalar_type() == ScalarType::BFloat16) {
    const Tensor out = torch::stable::empty_like(restart);
    backend.step_bf16(graph, now, restart, damping, out);
    now = out;
    --left;
  }
  return walk_steps(backend, graph, now, restart, damping, left);
}

// Steps of which the first `num_bf16_steps` store their result as bfloat16, the others as float.
Tensor random_walk_resume(Tensor crow_indices, Tensor col_indices, Tensor values, Tensor state,
                          Tensor features, double damping, int64_t num_steps,
                          int64_t num_bf16_steps) {
  const WalkShape shape = check_random_walk_resume(crow_indices, col_indices, values, state,
                                                   features, damping, num_steps, num_bf16_steps);
  const WalkGraph graph = prepare("random_walk_resume", shape, crow_indices, col_indices, values);
  const Tensor restart = contiguous(features);
  // An operator's output must not be its input.
  if (num_steps == 0) return torch::stable::clone(contiguous(state));
  auto walk = [&](const Tensor& from, const Tensor& to) {
    return resume(graph, from, to, damping, num_steps, num_bf16_steps);
  };
  // What is bfloat16 has twice as many columns in a cache line.
  const bool is_bf16 = num_bf16_steps > 0 || state.scalar_type() == ScalarType::BFloat16;
  const int64_t unit = (is_bf16 ? 2 : 1) * line_columns(shape.dtype);
  const int64_t width = panel_width(graph, restart, unit, num_steps);
  state = contiguous(state);
  return width == 0 ? walk(state, restart) : walk_panels(state, restart, width, walk);
}

std::tuple<Tensor, Tensor> random_walk_backward(Tensor crow_indices, Tensor col_indices,
                                                Tensor values, Tensor features, Tensor grad_output,
                                                double damping, int64_t num_steps,
                                                bool need_features, bool need_values) {
  const WalkShape shape = check_random_walk_backward(crow_indices, col_indices, values, features,
                                                     grad_output, damping, num_steps);
  const WalkGraph graph = prepare("random_walk_backward", shape, crow_indices, col_indices, values);
  const CpuBackend backend;
  const WalkGraph transposed = backend.transpose(graph);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  const Tensor grad = as_state(grad_output, accumulate);
  Tensor grad_features = torch::stable::new_empty(features, {0, shape.dim});
  Tensor grad_values = torch::stable::new_empty(values, {0});
  if (need_features) {
    const Tensor walked = walk_steps(backend, transposed, grad, grad, damping, num_steps);
    grad_features = torch::stable::to(num_steps == 0 ? torch::stable::clone(walked) : walked,
                                      features.scalar_type());
  }
  if (need_values) {
    grad_values = torch::stable::to(
        walk_grad_values(backend, graph, transposed, as_state(features, accumulate), grad, damping,
                         num_steps),
        values.scalar_type());
  }
  return {grad_features, grad_values};
}

std::tuple<Tensor, Tensor> random_walk_tol(Tensor crow_indices, Tensor col_indices, Tensor values,
                                           Tensor features, double damping, double tol,
                                           int64_t max_steps, Text norm) {
  const char* op = "random_walk_tol";
  const WalkShape shape =
      check_random_walk(op, crow_indices, col_indices, values, features, damping);
  const WalkNorm walk_norm = check_random_walk_tol(tol, max_steps, norm);
  const WalkGraph graph = prepare(op, shape, crow_indices, col_indices, values);
  const Tensor start = as_state(features, accumulate_type(shape.dtype));
  const WalkLimit limit =
      walk_to_limit(CpuBackend(), graph, start, damping, tol, max_steps, walk_norm);
  const Tensor num_steps = torch::stable::new_empty(crow_indices, {});
  *num_steps.mutable_data_ptr<int64_t>() = limit.num_steps;
  return {torch::stable::to(limit.state, features.scalar_type()), num_steps};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) {
  m.impl("random_walk", TORCH_BOX(&random_walk));
  m.impl("random_walk_backward", TORCH_BOX(&random_walk_backward));
  m.impl("random_walk_resume", TORCH_BOX(&random_walk_resume));
  m.impl("random_walk_tol", TORCH_BOX(&random_walk_tol));
}

}  // namespace fcl::ops::cpu
