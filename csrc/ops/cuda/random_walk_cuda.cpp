// SPDX-License-Identifier: Apache-2.0
// random_walk, its gradients and its tolerance form on CUDA: torch binding. The loops over steps
// are in ops/random_walk.h, and in walk_loop.h for the paths that take any dtype. Only the
// tolerance form waits for the device, once per step. Bad offsets and columns are device
// assertions.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>
#include <utility>

#include "common/text.h"
#include "ops/cuda/csr_cuda.h"
#include "ops/cuda/walk_loop.h"
#include "ops/cuda/walk_path.h"
#include "ops/random_walk.h"

namespace fcl::ops::cuda {
namespace {

using fcl::cuda::CudaScope;
using fcl::cuda::device_scratch;
using torch::stable::contiguous;

bool is_double(const Tensor& t) { return t.scalar_type() == ScalarType::Double; }

// The backend ops/random_walk.h asks for.
class CudaBackend {
 public:
  CudaBackend(const char* op, int64_t dim, const CudaScope& scope)
      : op_(op), path_(walk_path(op, dim)), stream_(scope.stream()) {}

  void step(const WalkGraph& graph, const Tensor& state, const Tensor* restart, double damping,
            const Tensor& out) const {
    const auto rows = [](const Tensor& t) { return columns_of(t, 0, t.size(1)); };
    path_.launch({square(graph), graph.values.const_data_ptr(), rows(state),
                  restart == nullptr ? WalkRows{} : rows(*restart), rows(out), state.size(1),
                  damping, false},
                 stream_);
  }

  // All steps: what walk_steps of ops/random_walk.h does in the dtype of the iterates, rounded to
  // that of the result.
  Tensor walk(const WalkGraph& graph, const WalkSteps& steps) const {
    if (path_.is_general) {
      return walk_loop(steps, true, walk_cache_bytes(op_), [&](WalkStep step) {
        step.graph = square(graph);
        step.values = graph.values.const_data_ptr();
        path_.launch(step, stream_);
      });
    }
    const ScalarType full = graph.values.scalar_type();
    const auto converted = [](const Tensor& t, ScalarType to) {
      return contiguous(torch::stable::to(t, to));
    };
    const Tensor restart = converted(steps.restart, full);
    // This path has no bfloat16 iterates: it rounds as if it had.
    const auto rounded = [&](const Tensor& t) {
      return converted(torch::stable::to(t, ScalarType::BFloat16), full);
    };
    const bool is_same = steps.state.const_data_ptr() == steps.restart.const_data_ptr();
    Tensor state = is_same ? restart : converted(steps.state, full);
    for (int64_t t = 0; t < steps.num_bf16_steps; ++t) {
      state = rounded(walk_steps(*this, graph, state, restart, steps.damping, 1));
    }
    const int64_t left = steps.num_steps - steps.num_bf16_steps;
    return torch::stable::to(walk_steps(*this, graph, state, restart, steps.damping, left),
                             steps.result);
  }

  double step_difference(const WalkGraph& graph, const Tensor& state, const Tensor& restart,
                         double damping, const Tensor& out, WalkNorm norm) const {
    step(graph, state, &restart, damping, out);
    return norm_of(out, &state, norm);
  }

  double norm(const WalkGraph&, const Tensor& t, WalkNorm norm) const {
    return norm_of(t, nullptr, norm);
  }

  double operator_norm(const WalkGraph& graph, WalkNorm norm) const {
    if (norm == WalkNorm::kSum) return operator_norm(transpose(graph), WalkNorm::kMax);
    const int64_t rows = graph.crow.size(0) - 1;
    const Tensor sums = torch::stable::new_empty(graph.values, {rows, 1}, ScalarType::Double);
    launch_absolute_row_sums(square(graph), is_double(graph.values), graph.values.const_data_ptr(),
                             sums.mutable_data_ptr<double>(), stream_);
    return norm_of(sums, nullptr, WalkNorm::kMax);
  }

  void add_edge_dots(const WalkGraph& graph, const Tensor& left, const Tensor& right, double factor,
                     const Tensor& out) const {
    launch_edge_dot(square(graph), is_double(left), left.const_data_ptr(), right.const_data_ptr(),
                    left.size(1), factor, true, out.mutable_data_ptr(), stream_);
  }

  WalkGraph transpose(const WalkGraph& graph) const {
    const TransposedCsr t = transpose_csr(graph.crow, graph.col, graph.crow.size(0) - 1, stream_);
    const Tensor values = torch::stable::empty_like(graph.values);
    launch_gather(is_double(values), graph.values.const_data_ptr(),
                  t.edge_order.const_data_ptr<int64_t>(), values.size(0), values.mutable_data_ptr(),
                  stream_);
    return {t.crow, t.col, values};
  }

  static CsrGraph square(const WalkGraph& graph) {
    return csr_graph(graph.crow, graph.col, graph.crow.size(0) - 1);
  }

 private:
  double norm_of(const Tensor& a, const Tensor* b, WalkNorm norm) const {
    const int64_t rows = a.size(0);
    const int64_t dim = a.size(1);
    const Tensor scratch = device_scratch(a, static_cast<int64_t>(norm_scratch(rows, dim)));
    return norm_of_difference(is_double(a), norm == WalkNorm::kSum, a.const_data_ptr(),
                              b == nullptr ? nullptr : b->const_data_ptr(), rows, dim,
                              scratch.mutable_data_ptr(), stream_);
  }

  const char* op_;
  const WalkPath& path_;
  cudaStream_t stream_;
};

Tensor as_state(const Tensor& t, ScalarType dtype) {
  return contiguous(torch::stable::to(t, dtype));
}

WalkGraph prepare(const char* op, const WalkShape& shape, const Tensor& crow, const Tensor& col,
                  const Tensor& values, const CudaScope& scope) {
  WalkGraph graph{contiguous(crow), contiguous(col),
                  as_state(values, accumulate_type(shape.dtype))};
  launch_check_csr(op, CudaBackend::square(graph), scope.stream());
  return graph;
}

Tensor random_walk(Tensor crow_indices, Tensor col_indices, Tensor values, Tensor features,
                   double damping, int64_t num_steps) {
  const char* op = "random_walk";
  const WalkShape shape =
      check_random_walk(op, crow_indices, col_indices, values, features, damping);
  check_num_steps(op, num_steps);
  const CudaScope scope(crow_indices);
  const WalkGraph graph = prepare(op, shape, crow_indices, col_indices, values, scope);
  // An operator's output must not be its input.
  if (num_steps == 0) return torch::stable::clone(contiguous(features));
  const Tensor start = contiguous(features);
  return CudaBackend(op, shape.dim, scope)
      .walk(graph, {start, start, damping, num_steps, 0, features.scalar_type()});
}

Tensor random_walk_resume(Tensor crow_indices, Tensor col_indices, Tensor values, Tensor state,
                          Tensor features, double damping, int64_t num_steps,
                          int64_t num_bf16_steps) {
  const char* op = "random_walk_resume";
  const WalkShape shape = check_random_walk_resume(crow_indices, col_indices, values, state,
                                                   features, damping, num_steps, num_bf16_steps);
  const CudaScope scope(crow_indices);
  const WalkGraph graph = prepare(op, shape, crow_indices, col_indices, values, scope);
  if (num_steps == 0) return torch::stable::clone(contiguous(state));
  const bool ends_in_bf16 = num_bf16_steps == num_steps;
  const Tensor start =
      num_bf16_steps > 0 ? torch::stable::to(state, ScalarType::BFloat16) : std::move(state);
  return CudaBackend(op, shape.dim, scope)
      .walk(graph, {contiguous(start), contiguous(features), damping, num_steps, num_bf16_steps,
                    ends_in_bf16 ? ScalarType::BFloat16 : features.scalar_type()});
}

std::tuple<Tensor, Tensor> random_walk_backward(Tensor crow_indices, Tensor col_indices,
                                                Tensor values, Tensor features, Tensor grad_output,
                                                double damping, int64_t num_steps,
                                                bool need_features, bool need_values) {
  const WalkShape shape = check_random_walk_backward(crow_indices, col_indices, values, features,
                                                     grad_output, damping, num_steps);
  const CudaScope scope(crow_indices);
  const WalkGraph graph =
      prepare("random_walk_backward", shape, crow_indices, col_indices, values, scope);
  const CudaBackend backend("random_walk_backward", shape.dim, scope);
  const WalkGraph transposed = backend.transpose(graph);
  const ScalarType accumulate = accumulate_type(shape.dtype);
  Tensor grad_features = torch::stable::new_empty(features, {0, shape.dim});
  Tensor grad_values = torch::stable::new_empty(values, {0});
  if (need_features) {
    const Tensor given = contiguous(grad_output);
    grad_features = num_steps == 0 ? torch::stable::clone(given)
                                   : backend.walk(transposed, {given, given, damping, num_steps, 0,
                                                               features.scalar_type()});
  }
  if (need_values) {
    grad_values = torch::stable::to(
        walk_grad_values(backend, graph, transposed, as_state(features, accumulate),
                         as_state(grad_output, accumulate), damping, num_steps),
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
  const CudaScope scope(crow_indices);
  const WalkGraph graph = prepare(op, shape, crow_indices, col_indices, values, scope);
  const Tensor start = as_state(features, accumulate_type(shape.dtype));
  const WalkLimit limit = walk_to_limit(CudaBackend(op, shape.dim, scope), graph, start, damping,
                                        tol, max_steps, walk_norm);
  const Tensor num_steps = torch::stable::empty({}, ScalarType::Long, std::nullopt,
                                                torch::stable::Device(torch::headeronly::kCPU));
  *num_steps.mutable_data_ptr<int64_t>() = limit.num_steps;
  return {torch::stable::to(limit.state, features.scalar_type()), num_steps};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CUDA, m) {
  m.impl("random_walk", TORCH_BOX(&random_walk));
  m.impl("random_walk_backward", TORCH_BOX(&random_walk_backward));
  m.impl("random_walk_resume", TORCH_BOX(&random_walk_resume));
  m.impl("random_walk_tol", TORCH_BOX(&random_walk_tol));
}

}  // namespace fcl::ops::cuda
