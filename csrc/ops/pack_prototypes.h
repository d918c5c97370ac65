// SPDX-License-Identifier: Apache-2.0
// pack_prototypes: frozen prototypes in the layout the CPU kernels multiply from, made once instead
// of once a pass, at unit length if they count so. The layout is the processor's own
// (ReadoutProblem::packed): nothing to be stored or read elsewhere. Its size is not: room for C
// rows of D numbers, D rounded up to the widest panel of any processor.
#pragma once

#include <optional>

#include "common/checks.h"
#include "ops/cpu/softmax_readout_kernels.h"

namespace fcl::ops {

inline int64_t packed_width(int64_t dim) {
  return (dim + cpu::kPackedPadding - 1) / cpu::kPackedPadding * cpu::kPackedPadding;
}

inline Dtype check_pack_prototypes(const char* op, const Tensor& prototypes) {
  const Dtype dtype = check_floating(op, "prototypes", prototypes);
  FCL_REQUIRE(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64, "fcl::", op,
              ": prototypes are packed in float32 and float64 only");
  check_shape(op, "prototypes", prototypes, "[C, D]", {-1, -1});
  FCL_REQUIRE(prototypes.size(0) > 0 && prototypes.size(1) > 0, "fcl::", op,
              ": expected prototypes with at least one class and one dim, got shape ",
              shape_string(prototypes));
  return dtype;
}

// What came packed must fit the prototypes.
inline void check_packed(const char* op, const std::optional<Tensor>& packed,
                         const std::optional<Tensor>& squared_norms, const Tensor& prototypes) {
  FCL_REQUIRE(packed.has_value() == squared_norms.has_value(), "fcl::", op,
              ": expected packed and squared_norms together");
  if (!packed.has_value()) return;
  check_pack_prototypes(op, prototypes);
  const int64_t classes = prototypes.size(0);
  auto check = [&](const char* name, const Tensor& tensor) {
    check_dtype(op, name, tensor, prototypes.scalar_type());
    check_same_device(op, name, tensor, prototypes);
    FCL_REQUIRE(tensor.is_contiguous(), "fcl::", op, ": expected ", name, " to be contiguous");
  };
  check("packed", *packed);
  check_shape(op, "packed", *packed, "[C * D rounded up to 32]",
              {classes * packed_width(prototypes.size(1))});
  check("squared_norms", *squared_norms);
  check_shape(op, "squared_norms", *squared_norms, "[C]", {classes});
}

}  // namespace fcl::ops
