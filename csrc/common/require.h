// SPDX-License-Identifier: Apache-2.0
// What an operator refuses, in one line that starts with its name. Torch's own macro would put a
// place in our sources in front, with the path of the machine that built the wheel.
#pragma once

#include <sstream>
#include <stdexcept>

namespace fcl {

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

}  // namespace fcl

#define FCL_REQUIRE(condition, ...)               \
  do {                                            \
    if (!(condition)) ::fcl::refuse(__VA_ARGS__); \
  } while (false)
