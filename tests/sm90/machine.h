// SPDX-License-Identifier: Apache-2.0
// The blocks of a cluster as fibers that switch only where they wait, with their shared memory and
// barriers. host_sm90.h makes a Hopper of it.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace host_sm90 {

constexpr uint32_t kMemory = 227 * 1024;

[[noreturn]] inline void fail(const std::string& what) { throw std::runtime_error(what); }

struct Barrier {
  int count = 0, pending = 0;
  int64_t bytes = 0;  // announced and not yet there
  uint32_t phase = 0;
  void settle() {
    if (pending != 0 || bytes != 0) return;
    pending = count;
    ++phase;
  }
  void arrive() {
    if (pending == 0) fail("a barrier got more arrivals than it counts");
    --pending;
    settle();
  }
};

struct Gate {  // threads that meet
  int arrived = 0;
  uint32_t generation = 0;
  bool arrive(int expected) {
    if (++arrived < expected) return false;
    arrived = 0;
    ++generation;
    return true;
  }
};

struct Product {
  float* d;
  int columns;
  bool a_in_registers, b_mn_major, is_bfloat, add;
  uint64_t a, b;
  const uint32_t* a_registers;
  bool operator==(const Product& o) const {
    return columns == o.columns && a_in_registers == o.a_in_registers &&
           b_mn_major == o.b_mn_major && add == o.add && b == o.b && (a_in_registers || a == o.a);
  }
};

struct Block {
  std::vector<unsigned char> ordinary, asynchronous;  // the two views of shared memory
  std::map<uint32_t, Barrier> barriers;
  std::map<int, Gate> named;
  std::vector<Gate> warps;
  std::vector<std::vector<Product>> issued;  // by warpgroup, to compare its threads
  int x, y;
};

struct Thread {
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf context;
  bool started = false, done = false;
  std::function<bool()> ready;
  int index, rank;
  bool slow = false;
  std::deque<std::vector<Product>> groups;
  std::vector<Product> open;
  size_t num_issued = 0;
  std::vector<std::pair<uint32_t, std::vector<unsigned char>>> unpublished;
  const void* passed = nullptr;  // shown to the lanes of the warp
};

struct Options {
  bool late_loads = true;  // asynchronous work happens as late as it can, or at once
  bool late_products = true;
  uint64_t order = 0;  // of the threads: 0 ascending, 1 descending, others a random one each time
};

class Cluster;
inline Cluster* cluster = nullptr;
inline Thread* self = nullptr;

class Cluster {
 public:
  Cluster(int size, int threads, Options options) : options(options), threads_(threads) {
    blocks.resize(size);
    all.resize(static_cast<size_t>(size) * threads);
    for (size_t t = 0; t < all.size(); ++t) {
      all[t].stack.reset(new char[kStack]);
      all[t].index = static_cast<int>(t) % threads;
      all[t].rank = static_cast<int>(t) / threads;
    }
  }

  void run(int first_x, int y, const std::function<void()>& body) {
    cluster = this;
    body_ = &body;
    for (size_t b = 0; b < blocks.size(); ++b) {
      Block& block = blocks[b];
      block = Block();
      block.ordinary.assign(kMemory, 0xff);  // NaN
      block.asynchronous.assign(kMemory, 0xff);
      block.warps.resize(threads_ / 32);
      block.issued.resize(threads_ / 128);
      block.x = first_x + static_cast<int>(b);
      block.y = y;
    }
    everyone = Gate();
    for (Thread& t : all) {
      t.started = t.done = false;
      t.ready = nullptr;
      t.groups.clear();
      t.open.clear();
      t.num_issued = 0;
      t.unpublished.clear();
    }
    std::vector<size_t> order(all.size());
    for (size_t i = 0; i < all.size(); ++i) {
      order[i] = options.order == 1 ? all.size() - 1 - i : i;
    }
    std::mt19937_64 random(options.order);
    // One warp falls apart, some of its threads far behind.
    for (size_t i = 0; i < all.size(); ++i) {
      all[i].slow =
          options.order > 1 && i / 32 == options.order % (all.size() / 32) && random() % 4 == 0;
    }
    for (;;) {
      bool any = false;
      bool left = false;
      if (options.order > 1) std::shuffle(order.begin(), order.end(), random);
      for (const size_t i : order) {
        Thread& t = all[i];
        if (t.done) continue;
        left = true;
        if (t.ready && !t.ready()) continue;
        any = true;
        if (t.slow && random() % 128 != 0) continue;
        t.ready = nullptr;
        resume(t);
        if (!failure.empty()) fail(failure);
      }
      if (!left) break;
      if (any) continue;
      if (loads.empty()) fail("block.warpgroup wait for each other:" + waiting());
      const size_t next = options.order == 0 ? 0 : random() % loads.size();
      const auto load = loads[next];
      loads.erase(loads.begin() + static_cast<std::ptrdiff_t>(next));
      load();
    }
    if (!loads.empty()) fail("loads are under way at the end");
    for (const Thread& t : all) {
      if (!t.groups.empty() || !t.open.empty()) fail("products are under way at the end");
    }
    for (const Block& block : blocks) {
      for (const auto& [id, gate] : block.named) {
        if (gate.arrived != 0) fail("threads have arrived where none will wait");
      }
    }
  }

  // Called by fibers.
  void wait_until(std::function<bool()> ready) {
    if (ready()) return;
    self->ready = std::move(ready);
    leave();
  }
  void meet(Gate& gate, int expected) {
    const uint32_t generation = gate.generation;
    if (gate.arrive(expected)) return;
    wait_until([&gate, generation] { return gate.generation != generation; });
  }
  Block& block() { return blocks[self->rank]; }

  std::vector<Block> blocks;
  std::vector<Thread> all;
  std::deque<std::function<void()>> loads;
  Gate everyone;
  Options options;
  std::string failure;

 private:
  static constexpr size_t kStack = 128 * 1024;

  static void enter() {
    try {
      (*cluster->body_)();
    } catch (const std::exception& error) {
      cluster->failure = error.what();
    }
    self->done = true;
    cluster->leave();
  }
  __attribute__((noinline)) void leave() {
    if (_setjmp(self->context) == 0) _longjmp(scheduler_, 1);
  }
  __attribute__((noinline)) void resume(Thread& t) {
    self = &t;
    if (_setjmp(scheduler_) != 0) return;
    if (t.started) _longjmp(t.context, 1);
    t.started = true;
    getcontext(&t.start);
    t.start.uc_stack.ss_sp = t.stack.get();
    t.start.uc_stack.ss_size = kStack;
    makecontext(&t.start, enter, 0);
    setcontext(&t.start);
  }
  std::string waiting() const {
    std::string text;
    for (const Thread& t : all) {
      if (!t.done && t.index % 128 == 0) {
        text += " " + std::to_string(t.rank) + "." + std::to_string(t.index / 128);
      }
    }
    return text;
  }

  int threads_;
  const std::function<void()>* body_ = nullptr;
  jmp_buf scheduler_;
};

}  // namespace host_sm90
