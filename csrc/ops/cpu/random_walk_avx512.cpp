// SPDX-License-Identifier: Apache-2.0
// random_walk compiled for the avx512 instruction set.
#define FCL_RANDOM_WALK_KERNELS random_walk_avx512
#include "ops/cpu/random_walk_impl.h"
