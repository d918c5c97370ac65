// SPDX-License-Identifier: Apache-2.0
// What CPU drivers share: parallel loops on torch's own thread pool (a second OpenMP runtime would
// fight it for cores) and aligned scratch memory.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <cstdlib>
#include <new>

namespace fcl {

// Calls f(begin, end) over disjoint parts of [0, count), on as many threads as torch uses.
template <typename F>
void parallel_over(int64_t count, int64_t grain, const F& f) {
  if (count <= 0) return;
  torch::stable::parallel_for(0, count, grain, f);
}

// 64-byte aligned, uninitialised memory.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : data_(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64)) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* get() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
};

}  // namespace fcl
