// SPDX-License-Identifier: Apache-2.0
// The layout maths of csrc/common/sm90_layout.h against the tables of the PTX ISA as host_sm90.h
// has them, and how csrc/ops/cuda/readout_sm90*.h cut the work. Prints what is wrong.
#include <algorithm>
#include <cstdio>
#include <set>
#include <utility>

#include "common/sm90_layout.h"
#include "host_sm90.h"
#include "ops/cuda/readout_sm90.h"
#include "ops/cuda/readout_sm90_stored.h"

namespace {

using namespace fcl::sm90;
using host_sm90::Descriptor;
using host_sm90::kBase;

int wrong = 0;

void expect(bool holds, const char* what, int a, int b, int c) {
  if (holds || ++wrong > 20) return;
  std::printf("%s: %d %d %d\n", what, a, b, c);
}

// Byte address where the copy engine writes element (row, column) of a tile at `base`.
uint32_t written(uint32_t base, int rows, int row, int column) {
  const int panel = base + column / 64 * rows * 128;
  return host_sm90::swizzled(panel + row * 128 + column % 64 * 2);
}

void check_tile(int rows, int columns) {
  const uint32_t base = kBase + 3 * kPatternBytes;
  std::set<uint32_t> seen;
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < columns; ++column) {
      const uint32_t at = written(base, rows, row, column);
      expect(base + tile_offset(rows, row, column) == at, "tile_offset", rows, row, column);
      const uint32_t first = tile_offset(rows, row, column / 64 * 64 + column % 8);
      expect(base + chunk_offset(first, column % 64 / 8) == at, "chunk_offset", rows, row, column);
      expect(seen.insert(at).second && at < base + rows * columns * 2, "overlap", rows, row,
             column);
      // The tile as B of logits = rows . tile^T: n is the row, k the column.
      const uint64_t k_step =
          advance(k_major_descriptor(base), k_major_step(rows, column / kProductDepth));
      expect(Descriptor(k_step).k_major(row, column % kProductDepth) == at, "K-major", rows, row,
             column);
      // The tile as B of sums += weights . tile: n is the column, k the row.
      const uint64_t mn_step =
          advance(mn_major_descriptor(base, rows), mn_major_step(row / kProductDepth));
      expect(Descriptor(mn_step).mn_major(column, row % kProductDepth) == at, "MN-major", rows, row,
             column);
    }
  }
  // The second consumer's rows, and the second block's part of a tile that two blocks load.
  for (int part = 8; part < rows; part += 8) {
    expect(tile_offset(rows, part, 0) % kPatternBytes == 0, "part is aligned", rows, part, 0);
    const uint64_t rest = k_major_descriptor(base + tile_offset(rows, part, 0));
    for (int column = 0; column < columns; ++column) {
      const uint64_t step = advance(rest, k_major_step(rows, column / kProductDepth));
      expect(
          Descriptor(step).k_major(0, column % kProductDepth) == written(base, rows, part, column),
          "part", rows, part, column);
    }
  }
}

void check_fragments() {
  for (int columns = 8; columns <= 256; columns += 8) {
    std::set<int> seen;
    for (int thread = 0; thread < kWarpgroup; ++thread) {
      for (int i = 0; i < columns / 2; ++i) {
        const int row = accumulator_row(thread, i);
        const int column = accumulator_column(thread, i);
        expect(row / 16 == thread / 32 && row % 8 == thread % 32 / 4, "row", thread, i, row);
        expect(column % 8 / 2 == thread % 4, "column", thread, i, column);
        expect(column / 8 == i / 4 && row % 16 / 8 == i % 4 / 2 && column % 2 == i % 2, "order",
               thread, i, column);
        seen.insert(row * 256 + column);
      }
    }
    expect(static_cast<int>(seen.size()) == kProductRows * columns, "accumulators cover", columns,
           static_cast<int>(seen.size()), 0);
  }
  // Accumulators 8 k ... 8 k + 7, packed in pairs, are the registers of step k.
  for (int thread = 0; thread < kWarpgroup; ++thread) {
    for (int k = 0; k < 16; ++k) {
      for (int i = 0; i < 8; ++i) {
        expect(operand_row(thread, i) == accumulator_row(thread, 8 * k + i), "operand row", thread,
               k, i);
        expect(operand_column(thread, i) + 16 * k == accumulator_column(thread, 8 * k + i),
               "operand column", thread, k, i);
      }
    }
  }
}

void check_splits() {
  using fcl::ops::cuda::Sm90Split;
  for (const int multiprocessors : {1, 4, 78, 114, 132}) {
    for (const int64_t rows : {1, 64, 128, 129, 384, 1024, 4096, 5000, 32768, 1000000}) {
      for (const int64_t classes : {1, 79, 80, 81, 1000, 10000, 100000, 1000000, 10000000}) {
        const Sm90Split s = fcl::ops::cuda::split_sm90(rows, classes, 128, 80, multiprocessors);
        const int at[] = {multiprocessors, static_cast<int>(rows), static_cast<int>(classes)};
        const int64_t covered = static_cast<int64_t>(s.splits) * s.tiles_per_split * 80;
        expect(s.row_tiles * 128 >= rows && s.row_tiles % s.cluster == 0, "rows", at[0], at[1],
               at[2]);
        expect(covered >= classes, "classes", at[0], at[1], at[2]);
        expect(covered - int64_t{80} * s.tiles_per_split < classes, "empty split", at[0], at[1],
               at[2]);
        expect(s.splits >= 1 && s.splits <= 65535, "splits", at[0], at[1], at[2]);
      }
    }
  }
  // Large problems keep nearly all multiprocessors busy nearly all of the time.
  for (const int64_t rows : {64, 1024, 2048, 4096, 32768}) {
    const Sm90Split s = fcl::ops::cuda::split_sm90(rows, 1000000, 128, 80, 132);
    const int64_t waves = (s.row_tiles * s.splits + 131) / 132;
    const double busy = static_cast<double>(rows + 127 - (rows + 127) % 128) / 128 * 12500 /
                        (132.0 * static_cast<double>(waves * s.tiles_per_split));
    expect(busy > 0.95, "percent busy", static_cast<int>(rows), static_cast<int>(100 * busy), 0);
  }
}

void check_stored_plans() {
  using namespace fcl::ops::cuda;
  const Sm90StoredLimits limits;
  for (const int multiprocessors : {1, 78, 132}) {
    for (const int64_t left : {1, 64, 129, 1024, 5000, 32768, 1000000}) {
      for (const int64_t right : {1, 256, 257, 1000, 100000, 10000000}) {
        for (const int64_t dim : {64, 520, 1024, 4096}) {
          const Sm90StoredPlan plan =
              plan_sm90_stored({left, right, dim, dim, true}, multiprocessors);
          const int at[] = {static_cast<int>(left), static_cast<int>(right), static_cast<int>(dim)};
          const auto holds = [&](bool condition, const char* what) {
            expect(condition, what, at[0], at[1], at[2]);
          };
          holds(plan.weight_bytes() <= limits.weight_bytes, "stored weights");
          holds(plan.row_tiles % plan.cluster == 0, "row tiles");
          holds(plan.sum_tiles * 256 <= limits.flush, "terms of a sum");
          holds(plan.panels * 256 >= dim && plan.panels * 256 < dim + 256, "panels");
          for (const auto& [splits, tiles] : {std::pair{plan.weight_splits, plan.weight_tiles},
                                              std::pair{plan.sum_splits, plan.sum_tiles}}) {
            holds(splits * tiles >= plan.chunk_tiles, "splits cover the chunk");
            holds((splits - 1) * tiles < plan.chunk_tiles, "an empty split");
          }
          // Every pair of rows is in one chunk.
          int64_t pairs = 0;
          int64_t left_end = 0;
          int64_t right_end = 0;
          plan.run(left, right, [&](const Sm90Chunk& chunk, int number, int row_tiles) {
            if (number == 0) {
              holds(chunk.left_begin == left_end && chunk.right_begin == 0, "block follows block");
              left_end = chunk.left_begin + chunk.left_rows;
              right_end = 0;
            }
            holds(chunk.right_begin == right_end, "chunk follows chunk");
            right_end += chunk.columns;
            const int64_t rows = std::min(left - chunk.left_begin, chunk.left_rows);
            const int64_t columns = std::min(right - chunk.right_begin, chunk.columns);
            holds(row_tiles * 128 >= rows && row_tiles <= plan.row_tiles, "row tiles of a block");
            holds(row_tiles % plan.cluster == 0, "clusters of a block");
            holds(chunk.tiles * 256 >= columns && chunk.tiles <= plan.chunk_tiles, "tiles");
            pairs += rows * columns;
          });
          holds(pairs == left * right, "pairs of rows");
        }
      }
    }
  }
  // Large problems keep nearly all multiprocessors busy nearly all of the time.
  for (const int64_t rows : {64, 128, 1024, 2048, 4096, 32768}) {
    for (const int64_t dim : {1024, 2048}) {
      const Sm90StoredPlan plan = plan_sm90_stored({rows, 1000000, dim, dim, true}, 132);
      const auto busy = [&](int64_t blocks, int64_t splits, int64_t tiles) {
        const int64_t waves = (blocks * splits + 131) / 132;
        return static_cast<double>(blocks * plan.chunk_tiles) /
               (132.0 * static_cast<double>(waves * tiles));
      };
      const double weights = busy(plan.row_tiles, plan.weight_splits, plan.weight_tiles);
      const double sums = busy(plan.row_tiles * plan.panels, plan.sum_splits, plan.sum_tiles);
      expect(weights > 0.9, "percent busy with weights", static_cast<int>(rows),
             static_cast<int>(dim), static_cast<int>(100 * weights));
      expect(sums > 0.85, "percent busy with sums", static_cast<int>(rows), static_cast<int>(dim),
             static_cast<int>(100 * sums));
    }
  }
}

}  // namespace

int main() {
  for (const int rows : {16, 32, 48, 64, 80, 96, 128}) {
    for (const int columns : {64, 128, 192, 256}) check_tile(rows, columns);
  }
  check_fragments();
  check_splits();
  check_stored_plans();
  return wrong == 0 ? 0 : 1;
}
