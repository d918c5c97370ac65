// SPDX-License-Identifier: Apache-2.0
// class_walk on the CPU: a sparse product per step. A thread adds up one row in an array over all
// classes, of which it clears only what it has touched. Rows are cut at once, so that no more than
// the result of a step is ever stored.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/host.h"
#include "ops/class_walk.h"
#include "ops/cpu/csr_host.h"

namespace fcl::ops::cpu {
namespace {

using torch::stable::contiguous;

struct SparseRows {
  std::vector<int64_t> crow;
  std::vector<int32_t> classes;
  std::vector<float> weights;
};

template <typename Index>
struct ClassWalk {
  const int64_t* crow;
  const Index* col;
  const float* values;
  const int64_t* labels;
  int64_t num_rows, num_classes;
  double damping, drop;
  std::vector<int64_t> ranges;  // of rows, with about equal work

  // One step; rows of the result are sorted by class.
  SparseRows step(const SparseRows& state) const {
    const auto num_ranges = static_cast<int64_t>(ranges.size()) - 1;
    std::vector<SparseRows> parts(num_ranges);
    SparseRows out;
    out.crow.assign(num_rows + 1, 0);
    parallel_over(num_ranges, 1, [&](int64_t begin, int64_t end) {
      std::vector<double> sums(num_classes, 0.0);
      std::vector<int32_t> touched;
      for (int64_t range = begin; range < end; ++range) {
        for (int64_t row = ranges[range]; row < ranges[range + 1]; ++row) {
          add_row(state, row, sums, touched);
          out.crow[row + 1] = cut(sums, touched, parts[range]);
        }
      }
    });
    for (int64_t row = 0; row < num_rows; ++row) out.crow[row + 1] += out.crow[row];
    out.classes.resize(out.crow[num_rows]);
    out.weights.resize(out.crow[num_rows]);
    parallel_over(num_ranges, 1, [&](int64_t begin, int64_t end) {
      for (int64_t range = begin; range < end; ++range) {
        const int64_t at = out.crow[ranges[range]];
        std::copy(parts[range].classes.begin(), parts[range].classes.end(),
                  out.classes.begin() + at);
        std::copy(parts[range].weights.begin(), parts[range].weights.end(),
                  out.weights.begin() + at);
      }
    });
    return out;
  }

 private:
  void add_row(const SparseRows& state, int64_t row, std::vector<double>& sums,
               std::vector<int32_t>& touched) const {
    auto add = [&](int32_t label, double weight) {
      if (weight == 0) return;
      if (sums[label] == 0) touched.push_back(label);
      sums[label] += weight;
    };
    for (int64_t e = crow[row]; e < crow[row + 1]; ++e) {
      if (col[e] < 0) continue;
      const double weight = damping * static_cast<double>(values[e]);
      for (int64_t i = state.crow[col[e]]; i < state.crow[col[e] + 1]; ++i) {
        add(state.classes[i], weight * static_cast<double>(state.weights[i]));
      }
    }
    if (labels[row] >= 0) add(static_cast<int32_t>(labels[row]), 1 - damping);
  }

  // Moves the row out of sums, without its smallest entries; returns how many are left.
  int64_t cut(std::vector<double>& sums, std::vector<int32_t>& touched, SparseRows& out) const {
    // Classes break ties, so that the result does not depend on the order of the sum.
    std::sort(touched.begin(), touched.end(),
              [&](int32_t a, int32_t b) { return sums[a] != sums[b] ? sums[a] < sums[b] : a < b; });
    double dropped = 0;
    size_t first = 0;
    while (first < touched.size() && dropped + sums[touched[first]] <= drop) {
      dropped += sums[touched[first++]];
    }
    std::sort(touched.begin() + first, touched.end());
    for (size_t i = first; i < touched.size(); ++i) {
      out.classes.push_back(touched[i]);
      out.weights.push_back(static_cast<float>(sums[touched[i]]));
    }
    for (int32_t label : touched) sums[label] = 0;
    const auto kept = static_cast<int64_t>(touched.size() - first);
    touched.clear();
    return kept;
  }
};

template <typename Index>
void check_entries(const ClassWalk<Index>& p) {
  for (int64_t row = 0; row < p.num_rows; ++row) {
    FCL_REQUIRE(p.labels[row] < p.num_classes,
                "fcl::class_walk: expected labels below num_classes = ", p.num_classes, ", got ",
                p.labels[row], " at row ", row);
    double sum = 0;
    for (int64_t e = p.crow[row]; e < p.crow[row + 1]; ++e) {
      if (p.col[e] < 0) continue;
      // Written so that a NaN is refused too.
      FCL_REQUIRE(p.values[e] >= 0, "fcl::class_walk: expected values >= 0, got ", p.values[e],
                  " at edge ", e);
      sum += static_cast<double>(p.values[e]);
    }
    // Rounded weights may sum to a little more than 1.
    FCL_REQUIRE(sum <= 1 + 1e-4,
                "fcl::class_walk: expected every row of the graph to sum to at most 1 (no "
                "bound holds without that), got ",
                sum, " in row ", row);
  }
}

template <typename F>
void with_columns(const Tensor& col, const F& f) {
  if (col.scalar_type() == ScalarType::Long) {
    f(col.const_data_ptr<int64_t>());
  } else {
    f(col.const_data_ptr<int32_t>());
  }
}

std::tuple<Tensor, Tensor, Tensor> class_walk(Tensor crow_indices, Tensor col_indices,
                                              Tensor values, Tensor labels, int64_t num_classes,
                                              double damping, double drop, int64_t num_steps) {
  const CsrShape shape = check_class_walk(crow_indices, col_indices, values, labels, num_classes,
                                          damping, drop, num_steps);
  const Tensor crow = contiguous(crow_indices);
  const Tensor col = contiguous(col_indices);
  const Tensor weights = contiguous(values);
  const Tensor classes = contiguous(labels);
  check_csr_entries("class_walk", crow, col, shape.num_rows);
  SparseRows state;
  state.crow.assign(shape.num_rows + 1, 0);
  with_columns(col, [&](const auto* columns) {
    using Index = std::remove_cv_t<std::remove_reference_t<decltype(*columns)>>;
    const ClassWalk<Index> p{crow.const_data_ptr<int64_t>(),
                             columns,
                             weights.const_data_ptr<float>(),
                             classes.const_data_ptr<int64_t>(),
                             shape.num_rows,
                             num_classes,
                             damping,
                             drop,
                             balanced_rows(crow)};
    check_entries(p);
    for (int64_t t = 0; t < num_steps; ++t) state = p.step(state);
  });
  const auto count = static_cast<int64_t>(state.classes.size());
  const Tensor out_crow = torch::stable::empty_like(crow);
  const Tensor out_classes = torch::stable::new_empty(crow, {count}, ScalarType::Int);
  const Tensor out_weights = torch::stable::new_empty(weights, {count});
  std::copy(state.crow.begin(), state.crow.end(), out_crow.mutable_data_ptr<int64_t>());
  std::copy(state.classes.begin(), state.classes.end(), out_classes.mutable_data_ptr<int32_t>());
  std::copy(state.weights.begin(), state.weights.end(), out_weights.mutable_data_ptr<float>());
  return {out_crow, out_classes, out_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) { m.impl("class_walk", TORCH_BOX(&class_walk)); }

}  // namespace fcl::ops::cpu
