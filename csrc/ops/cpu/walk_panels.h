// SPDX-License-Identifier: Apache-2.0
// A walk over a few columns at a time. Where nearby rows gather nothing in common, every row of the
// state comes from memory; a panel of columns narrow enough to stay in the last-level cache comes
// from there, for all steps. Where rows do share (a prepared graph), whole rows are better: each
// edge is then read once per step, not once per panel.
#pragma once

#include <cstdint>
#include <functional>

#include "ops/random_walk.h"

namespace fcl::ops::cpu {

// Columns of a panel for a walk of `restart` [N, D], or 0 for all columns as they lie. `unit`:
// columns that kernels work on at a time; panels are multiples of it, filled up with zeros.
int64_t panel_width(const WalkGraph& graph, const Tensor& restart, int64_t unit, int64_t num_steps);

// What `walk` makes of each panel of `state` and `restart` (which may be one tensor), put together
// to [N, D].
Tensor walk_panels(const Tensor& state, const Tensor& restart, int64_t width,
                   const std::function<Tensor(const Tensor&, const Tensor&)>& walk);

}  // namespace fcl::ops::cpu
