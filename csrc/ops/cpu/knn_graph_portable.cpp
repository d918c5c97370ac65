// SPDX-License-Identifier: Apache-2.0
// knn_graph compiled for the portable instruction set.
#define FCL_KNN_GRAPH_KERNELS knn_graph_portable
#include "ops/cpu/knn_graph_impl.h"
