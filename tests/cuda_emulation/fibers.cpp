// SPDX-License-Identifier: Apache-2.0
// Runs the threads of a block as fibers that switch at barriers only. So a thread runs far ahead of
// the others, and a warp of other warps, and code that misses a barrier reads what they have not
// written yet; running the threads in the opposite order (emulation_reverse) shows the other half
// of such races. Barriers that not all threads of the block (or warp) reach, and device assertions,
// end the launch.
//
// Asynchronous copies arrive as late as they may, or at once where the order is reversed: a kernel
// that does not wait for them, or for the readers of the memory they go to, fails in one of the
// two.
//
// emulation_self_test checks the alarms themselves.
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace fcl_emulation {

int major = 8;
long launches = 0;
long atomics = 0;

namespace {

constexpr int kWarpSize = 32;
constexpr size_t kStackBytes = 64 * 1024;

constexpr int kMostWords = 12;

struct Copy {
  void* to;
  const void* from;  // null: zeros
  size_t bytes;
};

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t start;
  jmp_buf context;
  bool started = false;
  State state = State::kReady;
  uint64_t passed = 0;
  uint32_t words[2][kMostWords];
  int round = 0;
  std::vector<Copy> copies;    // not in a group yet
  std::vector<size_t> groups;  // how many copies each has
  std::vector<Copy> grouped;
};

bool reverse = false;
jmp_buf scheduler;
std::vector<Fiber> fibers;
int current = 0;
const std::function<void()>* thread_function = nullptr;
std::string failure;
std::vector<unsigned char> shared;
size_t shared_size = 0;
constexpr size_t kSharedAlignment = 1024;

unsigned char* aligned_shared() {
  const uintptr_t at = reinterpret_cast<uintptr_t>(shared.data());
  return shared.data() + (kSharedAlignment - at % kSharedAlignment) % kSharedAlignment;
}

// Back to the scheduler, until it resumes this fiber. (_setjmp makes no system call, swapcontext
// makes two.)
__attribute__((noinline)) void wait(State state) {
  fibers[current].state = state;
  if (_setjmp(fibers[current].context) == 0) _longjmp(scheduler, 1);
}

// A fiber runs one thread after another, of all blocks to come.
void enter() {
  for (;;) {
    (*thread_function)();
    wait(State::kDone);
  }
}

__attribute__((noinline)) void resume(int thread) {
  Fiber& fiber = fibers[thread];
  current = thread;
  threadIdx = {static_cast<unsigned>(thread), 0, 0};
  fiber.state = State::kReady;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.context, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  makecontext(&fiber.start, enter, 0);
  setcontext(&fiber.start);
}

int count(State state, int begin, int end) {
  int total = 0;
  for (int t = begin; t < end; ++t) total += fibers[t].state == state;
  return total;
}

// Sets the threads free if they all wait at this barrier.
bool release(State barrier, int begin, int end) {
  if (count(barrier, begin, end) != end - begin) return false;
  for (int t = begin; t < end; ++t) fibers[t].state = State::kReady;
  return true;
}

// A warp runs as far ahead of the others as it can: past its own barriers, up to the block's.
void run_warp(int begin, int end) {
  do {
    for (int i = begin; i < end && failure.empty(); ++i) {
      const int t = reverse ? begin + end - 1 - i : i;
      if (fibers[t].state == State::kReady) resume(t);
    }
  } while (failure.empty() && release(State::kAtWarpBarrier, begin, end));
}

void run_block(int threads) {
  const int warps = (threads + kWarpSize - 1) / kWarpSize;
  for (int t = 0; t < threads; ++t) {
    fibers[t].state = State::kReady;
    fibers[t].copies.clear();
    fibers[t].groups.clear();
    fibers[t].grouped.clear();
  }
  // NaN in every floating type.
  std::fill(shared.begin(), shared.end(), static_cast<unsigned char>(0xff));
  do {
    for (int i = 0; i < warps; ++i) {
      const int warp = reverse ? warps - 1 - i : i;
      run_warp(warp * kWarpSize, std::min((warp + 1) * kWarpSize, threads));
    }
    if (!failure.empty() || count(State::kDone, 0, threads) == threads) return;
  } while (release(State::kAtBlockBarrier, 0, threads));
  failure = "emulation: a barrier that not all threads reach: " +
            std::to_string(count(State::kAtBlockBarrier, 0, threads)) + " wait for the block, " +
            std::to_string(count(State::kAtWarpBarrier, 0, threads)) + " for their warp, " +
            std::to_string(count(State::kDone, 0, threads)) + " have ended";
}

}  // namespace

namespace {

// Product of a warp's fragments, from the first lane that came out of the barrier of a round.
struct Product {
  int round = 0;
  double at[16][8];
};
Product products[1024 / kWarpSize];

template <int kDepth>
void multiply(Product& product) {
  constexpr int kGroup = kDepth / 8;
  double a[16][kDepth];
  double b[kDepth][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4;
    const int t = lane % 4;
    float values[kDepth * 3 / 4];
    std::memcpy(values, words_of(lane), sizeof(values));
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < kGroup; ++j) {
        a[g + i % 2 * 8][(t + i / 2 * 4) * kGroup + j] = values[i * kGroup + j];
        if (i < 2) b[(t + i * 4) * kGroup + j][g] = values[(4 + i) * kGroup + j];
      }
    }
  }
  for (int r = 0; r < 16; ++r) {
    double sum[8] = {};
    for (int k = 0; k < kDepth; ++k) {
      for (int c = 0; c < 8; ++c) sum[c] += a[r][k] * b[k][c];
    }
    std::copy(sum, sum + 8, product.at[r]);
  }
}

}  // namespace

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread) {
  ++launches;
  shared_size = shared_bytes;
  shared.resize(shared_bytes + kSharedAlignment);
  gridDim = grid;
  blockDim = block;
  thread_function = &thread;
  failure.clear();
  if (fibers.size() < block.x) fibers.resize(block.x);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block(static_cast<int>(block.x));
        if (failure.empty()) continue;
        fibers.clear();  // they are stuck where the kernel failed
        for (Product& product : products) product.round = 0;
        throw std::runtime_error(failure);
      }
    }
  }
}

void wait_block() { wait(State::kAtBlockBarrier); }
void wait_warp() { wait(State::kAtWarpBarrier); }
int lane() { return current % kWarpSize; }

void fail(const char* what) {
  failure = std::string("emulation: ") + what;
  wait_block();  // for ever
}

unsigned char* shared_memory(uint32_t offset, uint32_t bytes) {
  if (offset % bytes != 0) fail("an address in shared memory that is not aligned");
  if (offset + bytes > shared_size) fail("an address past the shared memory");
  return aligned_shared() + offset;
}

namespace {

void carry_out(const Copy& copy) {
  if (copy.from == nullptr) {
    std::memset(copy.to, 0, copy.bytes);
  } else {
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
}

}  // namespace

void copy_async(void* to, const void* from, size_t bytes) {
  const Copy copy{to, from, bytes};
  if (reverse) {
    carry_out(copy);
  } else {
    fibers[current].copies.push_back(copy);
  }
}

void commit_copies() {
  Fiber& fiber = fibers[current];
  fiber.groups.push_back(fiber.copies.size());
  fiber.grouped.insert(fiber.grouped.end(), fiber.copies.begin(), fiber.copies.end());
  fiber.copies.clear();
}

void wait_copies(size_t pending) {
  Fiber& fiber = fibers[current];
  while (fiber.groups.size() > pending) {
    const auto end = fiber.grouped.begin() + static_cast<std::ptrdiff_t>(fiber.groups.front());
    std::for_each(fiber.grouped.begin(), end, carry_out);
    fiber.grouped.erase(fiber.grouped.begin(), end);
    fiber.groups.erase(fiber.groups.begin());
  }
}

// Rounds alternate between two buffers: who is in the next round has read those of this one.
void exchange_words(const uint32_t* mine, int count) {
  Fiber& fiber = fibers[current];
  std::copy(mine, mine + count, fiber.words[++fiber.round & 1]);
  wait_warp();
}

const uint32_t* words_of(int lane) {
  return fibers[current / kWarpSize * kWarpSize + lane].words[fibers[current].round & 1];
}

template <int kDepth>
void multiply_fragments(const float (&mine)[kDepth * 3 / 4], double (&sums)[4]) {
  uint32_t words[kDepth * 3 / 4];
  std::memcpy(words, mine, sizeof(words));
  exchange_words(words, kDepth * 3 / 4);
  Product& product = products[current / kWarpSize];
  if (product.round != fibers[current].round) {
    multiply<kDepth>(product);
    product.round = fibers[current].round;
  }
  for (int i = 0; i < 4; ++i) sums[i] = product.at[lane() / 4 + i / 2 * 8][lane() % 4 * 2 + i % 2];
}
template void multiply_fragments<8>(const float (&)[6], double (&)[4]);
template void multiply_fragments<16>(const float (&)[12], double (&)[4]);

uint64_t exchange(uint64_t mine, int lane) {
  const int warp = current / kWarpSize * kWarpSize;
  fibers[current].passed = mine;
  wait_warp();  // all have passed theirs
  const uint64_t result = fibers[warp + lane].passed;
  wait_warp();  // all have read
  return result;
}

unsigned ballot(bool mine) {
  const int warp = current / kWarpSize * kWarpSize;
  fibers[current].passed = mine;
  wait_warp();
  unsigned mask = 0;
  for (int l = 0; l < kWarpSize; ++l) {
    if (fibers[warp + l].passed != 0) mask |= 1u << l;
  }
  wait_warp();
  return mask;
}

}  // namespace fcl_emulation

namespace {

// Each thread adds its neighbours' numbers; without the barrier it meets numbers not yet written.
void neighbour_kernel(bool with_barrier, int* wrong) {
  __shared__ int numbers[64];
  const int t = static_cast<int>(threadIdx.x);
  numbers[t] = 0;
  __syncthreads();
  numbers[t] = t;
  if (with_barrier) __syncthreads();
  if (numbers[(t + 1) % 64] != (t + 1) % 64) *wrong = 1;
}

void skipped_barrier_kernel(int) {
  if (threadIdx.x != 5) __syncthreads();
}

void skipped_shuffle_kernel(int) {
  if (threadIdx.x % 32 < 16) __shfl_xor_sync(~0u, 1, 1);
}

}  // namespace

bool fcl_emulation::reversed() { return reverse; }

extern "C" {

__attribute__((visibility("default"))) void emulation_reverse(int on) {
  fcl_emulation::reverse = on != 0;
}
// Kernels launched so far (without those in clusters).
__attribute__((visibility("default"))) long emulation_launches() { return fcl_emulation::launches; }
// Atomic additions so far.
__attribute__((visibility("default"))) long emulation_atomics() { return fcl_emulation::atomics; }
// Major compute capability of the device.
__attribute__((visibility("default"))) void emulation_capability(int major) {
  fcl_emulation::major = major;
}

// assert() ends here: the .cu files are compiled with __assert_fail renamed to this.
void emulation_assert_fail(const char* expression, const char* file, unsigned line, const char*) {
  fcl_emulation::failure =
      std::string("device-side assert: ") + file + ":" + std::to_string(line) + ": " + expression;
  fcl_emulation::wait_block();  // for ever
}

// 1 if the kernel of that number gave a wrong result or an error.
__attribute__((visibility("default"))) int emulation_self_test(int number) {
  cudaLaunchConfig_t config;
  config.blockDim = dim3(64);
  int wrong = 0;
  try {
    if (number == 0) cudaLaunchKernelEx(&config, neighbour_kernel, false, &wrong);
    if (number == 1) cudaLaunchKernelEx(&config, skipped_barrier_kernel, 0);
    if (number == 2) cudaLaunchKernelEx(&config, skipped_shuffle_kernel, 0);
    if (number == 3) cudaLaunchKernelEx(&config, neighbour_kernel, true, &wrong);
  } catch (const std::runtime_error&) {
    return 1;
  }
  return wrong;
}
}
