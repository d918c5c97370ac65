// SPDX-License-Identifier: Apache-2.0
// What the CPU drivers of knn_graph and knn_search share.
#pragma once

#include <vector>

#include "ops/cpu/knn_graph_kernels.h"

namespace fcl::ops::cpu {

// Kernels for the instruction set of this CPU.
const KnnGraphKernels& knn_kernels();

// Packs blocks of rows in parallel; raises for the first row that cannot be searched, of argument
// `name`, whose row `first` the problem begins with.
void pack_blocks(const char* op, const char* name, const KnnProblem& p, const KnnTables& tables,
                 const std::vector<KnnBlock>& blocks, size_t scratch_bytes, int64_t first);

}  // namespace fcl::ops::cpu
