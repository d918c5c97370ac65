// SPDX-License-Identifier: Apache-2.0
// edge_dot compiled for the avx2 instruction set.
#define FCL_EDGE_DOT_KERNELS edge_dot_avx2
#include "ops/cpu/edge_dot_impl.h"
