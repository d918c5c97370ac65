// SPDX-License-Identifier: Apache-2.0
// Arrays that share one piece of scratch memory.
#pragma once

#include <cstdint>

namespace fcl::cuda {

// Hands out arrays one after the other, from multiples of 16 bytes on. Over null it only counts.
class ScratchArrays {
 public:
  explicit ScratchArrays(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count * static_cast<int64_t>(sizeof(T))));
  }
  void* take_bytes(int64_t bytes) {
    void* at = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += (bytes + 15) / 16 * 16;
    return at;
  }
  int64_t bytes() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace fcl::cuda
