// SPDX-License-Identifier: Apache-2.0
// Stand-in for CUDA's header of the same name.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) { return {bits}; }

inline uint16_t __half_as_ushort(__half h) { return h.bits; }

inline float __half2float(__half h) {
  const int exponent = h.bits >> 10 & 31;
  const int mantissa = h.bits & 1023;
  const float sign = (h.bits & 0x8000) != 0 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa != 0 ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
}

// To nearest, ties to even.
inline __half __double2half(double x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return {0x7fff};
  const double magnitude = std::fabs(x);
  if (magnitude >= 65520.0) return {static_cast<uint16_t>(sign | 0x7c00)};
  const int exponent = magnitude == 0 ? -24 : std::max(std::ilogb(magnitude) - 10, -24);
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -exponent)));
  // Normal numbers' own leading bit adds 1 to the exponent; a mantissa of 2048 carries into it.
  return {static_cast<uint16_t>(sign + ((exponent + 24) << 10) + mantissa)};
}
