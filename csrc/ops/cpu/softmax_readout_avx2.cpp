// SPDX-License-Identifier: Apache-2.0
// softmax_readout compiled for the avx2 instruction set.
#define FCL_READOUT_KERNELS softmax_readout_avx2
#include "ops/cpu/softmax_readout_impl.h"
