// SPDX-License-Identifier: Apache-2.0
// sparse_readout compiled for the avx2 instruction set.
#define FCL_SPARSE_READOUT_KERNELS sparse_readout_avx2
#include "ops/cpu/sparse_readout_impl.h"
