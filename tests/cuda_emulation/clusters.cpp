// SPDX-License-Identifier: Apache-2.0
// Launches in clusters, on the Hopper machine of tests/sm90: in the one order of threads its
// asynchronous work happens as late as it may, in the other loads come at once and some threads are
// far behind.
#include "cuda_runtime.h"
#include "machine.h"

namespace fcl_emulation {

void run_clusters(dim3 grid, int threads, size_t shared_bytes, int size,
                  const std::function<void()>& thread) {
  if (grid.x % size != 0) host_sm90::fail("a grid that is not made of whole clusters");
  if (shared_bytes > host_sm90::kMemory) host_sm90::fail("more shared memory than there is");
  const bool is_reverse = reversed();
  host_sm90::Cluster machine(size, threads, {!is_reverse, true, is_reverse ? 96u : 97u});
  for (unsigned x = 0; x < grid.x; x += static_cast<unsigned>(size)) {
    for (unsigned y = 0; y < grid.y; ++y) {
      machine.run(static_cast<int>(x), static_cast<int>(y), thread);
    }
  }
}

}  // namespace fcl_emulation
