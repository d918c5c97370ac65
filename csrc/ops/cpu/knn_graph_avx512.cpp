// SPDX-License-Identifier: Apache-2.0
// knn_graph compiled for the avx512 instruction set.
#define FCL_KNN_GRAPH_KERNELS knn_graph_avx512
#include "ops/cpu/knn_graph_impl.h"
