// SPDX-License-Identifier: Apache-2.0
// pack_prototypes on the CPU. Layout and who reads it: ops/pack_prototypes.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "common/large_pages.h"
#include "ops/cpu/softmax_readout_driver.h"
#include "ops/pack_prototypes.h"

namespace fcl::ops::cpu {
namespace {

constexpr uintptr_t kAlignment = 128;
constexpr int64_t kSlack = kAlignment / sizeof(float);

std::tuple<Tensor, Tensor> run_pack_prototypes(Tensor prototypes, bool normalize) {
  const Dtype dtype = check_pack_prototypes("pack_prototypes", prototypes);
  prototypes = torch::stable::contiguous(prototypes);
  const int64_t classes = prototypes.size(0);
  const int64_t dim = prototypes.size(1);
  const int64_t elements = classes * packed_width(dim);
  Tensor packed = torch::stable::new_empty(prototypes, {elements + kSlack});
  // A class's part of a panel, two cache lines, must not lie across two pairs of lines: reading it
  // then takes half as long again where rows are few.
  const auto misplaced = reinterpret_cast<uintptr_t>(packed.data_ptr()) % kAlignment;
  const auto size = static_cast<uintptr_t>(prototypes.element_size());
  const auto skipped = static_cast<int64_t>((kAlignment - misplaced) % kAlignment / size);
  packed = torch::stable::narrow(packed, 0, skipped, elements);
  Tensor squared_norms = torch::stable::new_empty(prototypes, {classes});
  want_large_pages(packed.mutable_data_ptr(), size * static_cast<size_t>(elements));
  ReadoutProblem p{};
  p.dtype = dtype;
  p.prototypes = prototypes.const_data_ptr();
  p.num_classes = classes;
  p.dim = dim;
  p.normalize = normalize;
  pack_prototypes(p, packed.mutable_data_ptr(), squared_norms.mutable_data_ptr());
  return {packed, squared_norms};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fcl, CPU, m) {
  m.impl("pack_prototypes", TORCH_BOX(&run_pack_prototypes));
}

}  // namespace fcl::ops::cpu
