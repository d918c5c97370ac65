// SPDX-License-Identifier: Apache-2.0
// What CPU drivers share: parallel loops on torch's own thread pool (a second OpenMP runtime would
// fight it for cores) and aligned scratch memory.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

#ifdef FCL_SANITIZE_THREAD
#include "common/parallel_threads.h"
#endif

namespace fcl {

// Calls f(begin, end) over disjoint parts of [0, count), on as many threads as torch uses.
template <typename F>
void parallel_over(int64_t count, int64_t grain, const F& f) {
  if (count <= 0) return;
#ifdef FCL_SANITIZE_THREAD
  parallel_threads(count, grain, static_cast<int64_t>(torch::stable::get_num_threads()), f);
#else
  torch::stable::parallel_for(0, count, grain, f);
#endif
}

// 64-byte aligned, uninitialised memory. Each thread keeps a few megabytes of it for its next
// calls: handed back to the system and faulted in again, it would cost a small problem more than
// its arithmetic does.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : block_(cache().take(bytes)) {}
  ~Scratch() { cache().give(block_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* get() const { return block_.data; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(block_.data);
  }

 private:
  struct Block {
    void* data;
    size_t bytes;
  };

  class Cache {
   public:
    ~Cache() {
      for (size_t i = 0; i < count_; ++i) std::free(blocks_[i].data);
    }

    // The smallest block that is large enough, or a new one.
    Block take(size_t bytes) {
      size_t best = count_;
      for (size_t i = 0; i < count_; ++i) {
        if (blocks_[i].bytes < bytes) continue;
        if (best == count_ || blocks_[i].bytes < blocks_[best].bytes) best = i;
      }
      if (best != count_) {
        const Block block = blocks_[best];
        blocks_[best] = blocks_[--count_];
        kept_bytes_ -= block.bytes;
        return block;
      }
      const size_t rounded = (bytes + 63) / 64 * 64 + 64;
      void* data = std::aligned_alloc(64, rounded);
      if (data == nullptr) throw std::bad_alloc();
      return {data, rounded};
    }

    void give(Block block) {
      if (kept_bytes_ + block.bytes > kMostBytes || count_ == blocks_.size()) {
        std::free(block.data);
        return;
      }
      kept_bytes_ += block.bytes;
      blocks_[count_++] = block;
    }

   private:
    static constexpr size_t kMostBytes = size_t{4} << 20;
    std::array<Block, 8> blocks_;
    size_t count_ = 0;
    size_t kept_bytes_ = 0;
  };

  static Cache& cache() {
    thread_local Cache kept;
    return kept;
  }

  Block block_;
};

// A thread that has less to do than this costs more to wake than it saves.
constexpr double kFlopsPerThread = 2e6;

// Calls f(task, scratch) for every task of [0, count), `flops` floating-point operations in all.
// Whichever thread is free takes the next one: where another process has half of a core, equal
// shares would all wait for that core.
template <typename F>
void parallel_tasks(int64_t count, double flops, size_t scratch_bytes, const F& f) {
  std::atomic<int64_t> next{0};
  const auto useful = static_cast<int64_t>(std::min(flops / kFlopsPerThread, 1e6));
  const int64_t threads = std::min({count, std::max<int64_t>(useful, 1),
                                    static_cast<int64_t>(torch::stable::get_num_threads())});
  parallel_over(threads, 1, [&](int64_t, int64_t) {
    const Scratch scratch(scratch_bytes);
    for (int64_t task = next++; task < count; task = next++) f(task, scratch.get());
  });
}

}  // namespace fcl
