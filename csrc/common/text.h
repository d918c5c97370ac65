// SPDX-License-Identifier: Apache-2.0
// A string argument of an operator. torch's own conversion to std::string (up to 2.13) never frees
// the copy it makes: some 50 bytes a call, which also keep the allocator from joining the larger
// blocks around them.
#pragma once

#include <torch/csrc/stable/stableivalue_conversions.h>

#include <cstdint>
#include <string>

#include "common/require.h"

namespace fcl {

struct Text : std::string {
  using std::string::string;
};

}  // namespace fcl

template <>
struct torch::stable::detail::ToImpl<fcl::Text> {
  static fcl::Text call(StableIValue value, uint64_t /*version*/, bool /*is_internal*/) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length = 0;
    const char* data = nullptr;
    if (torch_string_length(handle, &length) != 0 || torch_string_c_str(handle, &data) != 0) {
      fcl::refuse("fcl: torch cannot read the string it has passed");
    }
    fcl::Text text(data, length);
    torch_delete_string(handle);
    return text;
  }
};
