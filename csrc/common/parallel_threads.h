// SPDX-License-Identifier: Apache-2.0
// The parallel loop of a ThreadSanitizer build (FCL_SANITIZE=thread). The sanitizer does not see
// the barriers of torch's OpenMP runtime, which is not instrumented, and would report every loop as
// a race; threads that are started and joined here it understands.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace fcl {

// Calls f(begin, end) over disjoint parts of [0, count), none shorter than `grain` but the last,
// each on a thread of its own. The first exception is thrown again after all have ended.
template <typename F>
void parallel_threads(int64_t count, int64_t grain, int64_t most_threads, const F& f) {
  const int64_t share = (count + most_threads - 1) / most_threads;
  const int64_t part = std::max({share, grain, int64_t{1}});
  std::exception_ptr failure;
  std::mutex guard;
  std::vector<std::thread> workers;
  for (int64_t begin = 0; begin < count; begin += part) {
    workers.emplace_back([&, begin] {
      try {
        f(begin, std::min(begin + part, count));
      } catch (...) {
        const std::lock_guard<std::mutex> lock(guard);
        if (!failure) failure = std::current_exception();
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace fcl
