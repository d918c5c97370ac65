// SPDX-License-Identifier: Apache-2.0
// softmax_readout compiled for AVX-512 with the tile products of bfloat16.
#define FCL_READOUT_KERNELS softmax_readout_amx_bf16
#include "ops/cpu/softmax_readout_impl.h"
