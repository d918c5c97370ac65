// SPDX-License-Identifier: Apache-2.0
// The similarities knn_graph knows (formulas in knn_graph.h). Torch-free: kernels share it.
#pragma once

namespace fcl::ops {

enum class KnnMetric { kCosine, kInnerProduct, kSquaredL2 };

}  // namespace fcl::ops
