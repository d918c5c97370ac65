// SPDX-License-Identifier: Apache-2.0
// Takes the place of csrc/common/cuda_sm90.cuh: the machine of tests/sm90/host_sm90.h. Launches in
// clusters run on it (clusters.cpp).
#pragma once

#include "cuda_runtime.h"
#include "host_sm90.h"

#define __CUDA_ARCH_FEAT_SM90_ALL
#define __grid_constant__

namespace fcl::cuda {

struct Sm90 : host_sm90::HostSm90 {
  static void stop() { host_sm90::fail("a kernel that was not built for this device"); }
};

}  // namespace fcl::cuda
