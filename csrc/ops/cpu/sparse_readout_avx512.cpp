// SPDX-License-Identifier: Apache-2.0
// sparse_readout compiled for the avx512 instruction set.
#define FCL_SPARSE_READOUT_KERNELS sparse_readout_avx512
#include "ops/cpu/sparse_readout_impl.h"
