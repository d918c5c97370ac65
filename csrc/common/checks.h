// SPDX-License-Identifier: Apache-2.0
// Argument checks of the operators. Every message names the operator, the argument, what was
// expected and what was given; the fakes in fcl_ext/_registrations/ refuse the same in the same
// words.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "common/half.h"
#include "common/require.h"

namespace fcl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_string(const Tensor& t) {
  std::string text = "[";
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (d > 0) text += ", ";
    text += std::to_string(t.size(d));
  }
  return text + "]";
}

// "expected embeddings of shape [N, D], got [3]": sizes < 0 accept anything.
inline void check_shape(const char* op, const char* name, const Tensor& t, const char* letters,
                        std::initializer_list<int64_t> sizes) {
  bool ok = t.dim() == static_cast<int64_t>(sizes.size());
  if (ok) {
    int64_t d = 0;
    for (int64_t size : sizes) ok = ok && (size < 0 || t.size(d) == size), ++d;
  }
  if (ok) return;
  std::string known;
  for (int64_t size : sizes) {
    if (!known.empty()) known += ", ";
    known += size < 0 ? "*" : std::to_string(size);
  }
  FCL_REQUIRE(false, "fcl::", op, ": expected ", name, " of shape ", letters, " = [", known,
              "], got ", shape_string(t));
}

// As users of torch write it: float32, not Float.
inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return torch::headeronly::toString(type);
  }
}

inline void check_dtype(const char* op, const char* name, const Tensor& t, ScalarType expected) {
  FCL_REQUIRE(t.scalar_type() == expected, "fcl::", op, ": expected ", name, " of dtype ",
              dtype_name(expected), ", got ", dtype_name(t.scalar_type()));
}

inline void check_same_device(const char* op, const char* name, const Tensor& t,
                              const Tensor& reference) {
  FCL_REQUIRE(
      t.is_cpu() == reference.is_cpu() && t.get_device_index() == reference.get_device_index(),
      "fcl::", op, ": expected ", name, " on the same device as the other tensors");
}

// The storage dtype the kernels have for a dtype of torch, if they have one.
inline std::optional<Dtype> storage_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBfloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      return std::nullopt;
  }
}

// The storage dtype of a floating tensor the kernels support.
inline Dtype check_floating(const char* op, const char* name, const Tensor& t) {
  const std::optional<Dtype> dtype = storage_dtype(t.scalar_type());
  FCL_REQUIRE(dtype.has_value(), "fcl::", op, ": expected ", name,
              " of dtype float32, float64, bfloat16 or float16, got ", dtype_name(t.scalar_type()));
  return *dtype;
}

// Half types accumulate in float32, float64 in itself.
inline ScalarType accumulate_type(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

// Of logits: its product with log2(e) must be a float.
inline void check_scale(const char* op, double scale) {
  FCL_REQUIRE(std::isfinite(scale) && scale > 0, "fcl::", op,
              ": expected scale > 0 and finite, got ", scale);
  FCL_REQUIRE(scale <= 1e38, "fcl::", op, ": expected scale <= 1e38, got ", scale);
}

}  // namespace fcl
