// SPDX-License-Identifier: Apache-2.0
// random_walk compiled for the portable instruction set.
#define FCL_RANDOM_WALK_KERNELS random_walk_portable
#include "ops/cpu/random_walk_impl.h"
