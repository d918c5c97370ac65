// SPDX-License-Identifier: Apache-2.0
// What CPU drivers share: parallel loops on torch's own thread pool (a second OpenMP runtime would
// fight it for cores) and aligned scratch memory.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
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

// Calls f(task, scratch) for every task of [0, count). Whichever thread is free takes the next one:
// where another process has half of a core, equal shares would all wait for that core.
template <typename F>
void parallel_tasks(int64_t count, size_t scratch_bytes, const F& f) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(count, torch::stable::get_num_threads());
  parallel_over(threads, 1, [&](int64_t, int64_t) {
    const Scratch scratch(scratch_bytes);
    for (int64_t task = next++; task < count; task = next++) f(task, scratch.get());
  });
}

}  // namespace fcl
