// SPDX-License-Identifier: Apache-2.0
// softmax_readout compiled for the portable instruction set.
#define FCL_READOUT_KERNELS softmax_readout_portable
#include "ops/cpu/softmax_readout_impl.h"
