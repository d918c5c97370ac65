// SPDX-License-Identifier: Apache-2.0
// Included ahead of schema.cpp and the CUDA bindings: registers them as torch.ops.fcl_emulated.*
// for CPU tensors, beside the real operators.
#pragma once

#include <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY
#define STABLE_TORCH_LIBRARY(ns, m) _STABLE_TORCH_LIBRARY_FRAGMENT(fcl_emulated, m, C10_UID)
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) \
  _STABLE_TORCH_LIBRARY_IMPL(fcl_emulated, CPU, m, C10_UID)
