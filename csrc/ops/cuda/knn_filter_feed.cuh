// SPDX-License-Identifier: Apache-2.0
// How rows come to shared memory for the filter of knn_graph: panels of a tile's columns (rows of
// the same matrix) in two stages, one on its way while the other is multiplied. The block's own
// rows stay where they are short enough; otherwise their panels come with those of the columns.
#pragma once

#include "common/mma_panel.cuh"
#include "ops/cuda/knn_bound.cuh"

namespace fcl::ops::cuda {

inline constexpr int kFilterWarps = 4;
inline constexpr int kFilterThreads = kFilterWarps * fcl::cuda::kWarp;
inline constexpr int kFilterRows = 128;     // of a block
inline constexpr int kFilterColumns = 128;  // of a tile
inline constexpr int kFilterPanelBytes = kFilterRows * fcl::cuda::kPanelBytes;
inline constexpr int kFilterTermBytes = kFilterColumns * static_cast<int>(sizeof(KnnTerm));
static_assert(kFilterRows == kFilterColumns && kFilterThreads == kFilterColumns);

// Where panels lie in the shared memory: both stages, the rows that stay, terms of two tiles.
struct FilterLayout {
  int panels;  // of a row
  bool stays;

  __host__ __device__ int stage_bytes() const { return (stays ? 1 : 2) * kFilterPanelBytes; }
  __host__ __device__ int rows_at() const { return 2 * stage_bytes(); }
  __host__ __device__ int terms_at() const {
    return rows_at() + (stays ? panels * kFilterPanelBytes : 0);
  }
  __host__ __device__ int bytes() const { return terms_at() + 2 * kFilterTermBytes; }
};

namespace {

using namespace fcl::cuda;

template <typename S>
class FilterFeed {
 public:
  // A panel of a tile of columns.
  struct Place {
    int64_t column;
    int panel;
  };

  __device__ __forceinline__ FilterFeed(const Matrix<S>& matrix, const KnnTerm* terms,
                                        FilterLayout layout, int64_t first_row)
      : matrix_(matrix), terms_(terms), layout_(layout), first_row_(first_row) {}

  __device__ __forceinline__ void load_rows() const {
    if (!layout_.stays) return;
    for (int panel = 0; panel < layout_.panels; ++panel) {
      copy_panel<kFilterRows, kFilterThreads>(left(panel, 0), matrix_, first_row_,
                                              panel * kPanelColumns<S>);
    }
  }

  // Starts the copies of a group; nothing past the last tile.
  __device__ __forceinline__ void load(Place place, int stage) const {
    if (place.column < matrix_.rows) {
      const int64_t d = static_cast<int64_t>(place.panel) * kPanelColumns<S>;
      copy_panel<kFilterColumns, kFilterThreads>(right(stage), matrix_, place.column, d);
      if (!layout_.stays) {
        copy_panel<kFilterRows, kFilterThreads>(left(place.panel, stage), matrix_, first_row_, d);
      }
      if (place.panel == 0) {
        const int64_t row = place.column + threadIdx.x;
        const bool inside = row < matrix_.rows;
        copy_async(terms(place.column) + threadIdx.x * static_cast<uint32_t>(sizeof(KnnTerm)),
                   terms_ + (inside ? row : 0), inside);
      }
    }
    commit_copies();
  }

  __device__ __forceinline__ uint32_t right(int stage) const {
    return shared_base() + static_cast<uint32_t>(stage * layout_.stage_bytes());
  }
  __device__ __forceinline__ uint32_t left(int panel, int stage) const {
    if (!layout_.stays) return right(stage) + kFilterPanelBytes;
    return shared_base() + static_cast<uint32_t>(layout_.rows_at() + panel * kFilterPanelBytes);
  }
  // Of a tile: neighbouring tiles have different memory.
  __device__ __forceinline__ uint32_t terms(int64_t column) const {
    const int parity = static_cast<int>(column / kFilterColumns % 2);
    return shared_base() + static_cast<uint32_t>(layout_.terms_at() + parity * kFilterTermBytes);
  }

 private:
  Matrix<S> matrix_;
  const KnnTerm* terms_;
  FilterLayout layout_;
  int64_t first_row_;
};

}  // namespace
}  // namespace fcl::ops::cuda
