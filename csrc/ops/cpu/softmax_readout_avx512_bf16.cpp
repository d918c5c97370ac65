// SPDX-License-Identifier: Apache-2.0
// softmax_readout compiled for the avx512 instruction set with its bfloat16 dot products.
#define FCL_READOUT_KERNELS softmax_readout_avx512_bf16
#include "ops/cpu/softmax_readout_impl.h"
