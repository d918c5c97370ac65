// SPDX-License-Identifier: Apache-2.0
// sparse_readout compiled for the portable instruction set.
#define FCL_SPARSE_READOUT_KERNELS sparse_readout_portable
#include "ops/cpu/sparse_readout_impl.h"
