// SPDX-License-Identifier: Apache-2.0
// Table of the paths of random_walk on CUDA, and the choice of panels.
#include "ops/cuda/walk_path.h"

#include <algorithm>
#include <cstdlib>

namespace fcl::ops::cuda {
namespace {

constexpr const WalkPath* kWalk[] = {&kWalkGather, &kWalkSimt};

// Memory moves in sectors of this size.
constexpr int64_t kSectorBytes = 32;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

const WalkPath& walk_path(const char* op, int64_t dim) {
  return fcl::cuda::choose_path<kWalk>(op, fcl::cuda::current_device(op), dim);
}

int64_t walk_cache_bytes(const char* op) {
  if (const char* given = std::getenv("FCL_CUDA_CACHE_BYTES"); given != nullptr && *given != '\0') {
    return std::atoll(given);
  }
  return fcl::cuda::current_device(op).l2_bytes / 5 * 3;
}

int64_t walk_panel_columns(int64_t num_rows, int64_t dim, int64_t element_bytes, int64_t num_steps,
                           int64_t cache_bytes) {
  const int64_t column_bytes = num_rows * element_bytes;
  const int64_t unit = kSectorBytes / element_bytes;
  // The first step of a panel reads the features, which no panel makes smaller.
  if (num_steps < 2 || column_bytes == 0 || column_bytes * dim <= cache_bytes) return dim;
  if (column_bytes * unit > cache_bytes) return dim;
  const int64_t fitting = cache_bytes / column_bytes / unit * unit;
  const int64_t panels = divide_up(dim, fitting);
  return std::min(dim, divide_up(divide_up(dim, panels), unit) * unit);
}

bool set_walk_verified(std::string_view op, std::string_view path, bool is_verified) {
  if (op == "random_walk") return fcl::cuda::set_verified<kWalk>(path, is_verified);
  // Its only path: an operator of its own, which fclearn calls once it is verified.
  return op == "random_walk_union" && path == "union";
}

}  // namespace fcl::ops::cuda
