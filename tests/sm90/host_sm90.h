// SPDX-License-Identifier: Apache-2.0
// Stand-in for a Hopper multiprocessor (csrc/common/cuda_sm90.cuh), on the host. What is
// asynchronous on the device, tile loads and products, happens either at once or as late as it can:
// products at the wait, loads when no thread can go on. Reading a result, reusing a register or
// overwriting a tile too early then gives wrong numbers; a wait that never ends, an arrival too
// many, and threads of a warpgroup that disagree on a product end the run with a message.
//
// Memory has two views, as on the device: ordinary stores reach the one that products read only
// through publish_stores(). The layouts here are written from the PTX ISA's tables, not from
// common/sm90_layout.h.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "common/half.h"
#include "machine.h"

namespace host_sm90 {

constexpr uint32_t kBase = 1024;  // address of the first byte of shared memory

struct Matrix {  // what the copy engine knows of a matrix of 16-bit values
  const uint16_t* data;
  int64_t rows, columns;
  int box_rows;
};

// 128-byte swizzle, Swizzle<3, 4, 3>: the 16-byte chunk of an address within 128 bytes,
// exclusive-or the number of the 128-byte row within 1024.
inline uint32_t swizzled(uint32_t address) {
  const uint32_t row = address / 128 % 8;
  const uint32_t chunk = address / 16 % 8;
  return address / 128 * 128 + (chunk ^ row) * 16 + address % 16;
}

struct Descriptor {
  uint32_t start, leading, stride;
  explicit Descriptor(uint64_t bits)
      : start(static_cast<uint32_t>(bits & 0x3fff) * 16),
        leading(static_cast<uint32_t>(bits >> 16 & 0x3fff) * 16),
        stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) * 16) {
    if (bits >> 62 != 1) fail("descriptor without the 128-byte swizzle");
    if ((bits >> 49 & 7) != 0) fail("descriptor with a base offset");
  }
  // Element (mn, k) of a K-major operand: ((8, m), (T, 2k)) : ((8T, SBO), (1, T)), T = 8 elements.
  uint32_t k_major(int mn, int k) const {
    const int elements = mn % 8 * 64 + k % 8 + k / 8 * 8;
    return swizzled(start + static_cast<uint32_t>(elements) * 2 +
                    static_cast<uint32_t>(mn / 8) * stride);
  }
  // Of an MN-major operand: ((T, 8, m), (8, k)) : ((1, T, LBO), (8T, SBO)).
  uint32_t mn_major(int mn, int k) const {
    const int elements = mn % 8 + mn / 8 % 8 * 8 + k % 8 * 64;
    return swizzled(start + static_cast<uint32_t>(elements) * 2 +
                    static_cast<uint32_t>(mn / 64) * leading +
                    static_cast<uint32_t>(k / 8) * stride);
  }
};

inline float value_of(uint16_t bits, bool is_bfloat) {
  const fcl::BFloat16 b{bits};
  const fcl::Float16 h{bits};
  return is_bfloat ? fcl::load_as<float>(&b) : fcl::load_as<float>(&h);
}
// Round to nearest even.
template <typename S>
uint16_t bits_of(float value) {
  if constexpr (std::is_same_v<S, fcl::BFloat16>) {
    const uint32_t bits = fcl::float_to_bits(value);
    if (std::isnan(value)) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  } else {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const float size = std::fabs(value);
    if (std::isnan(value)) return 0x7fff;
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size == 0) return sign;
    const int exponent = std::max(std::ilogb(size), -14);
    const auto steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
    return static_cast<uint16_t>(sign | ((exponent + 14) * 1024 + steps));
  }
}

// One product of this thread, with its warp. Accumulators and register operands of m64nNk16, from
// the figures of the PTX ISA: warp w has rows 16 w ..., its lane l rows l / 4 and l / 4 + 8 of
// them, columns 2 (l % 4) and the next of every eight.
inline void execute(const Product& p) {
  Gate& warp = cluster->block().warps[self->index / 32];
  const auto read = [&](uint32_t address) {
    if (address < kBase || address + 2 > kBase + kMemory) fail("a product reads outside of memory");
    uint16_t bits;
    std::memcpy(&bits, &cluster->block().asynchronous[address - kBase], 2);
    return value_of(bits, p.is_bfloat);
  };
  self->passed = p.a_registers;
  cluster->meet(warp, 32);  // all lanes show their registers
  const int lane = self->index % 32;
  float a[2][16];
  for (int half = 0; half < 2; ++half) {
    const int row = self->index % 128 / 32 * 16 + lane / 4 + 8 * half;
    for (int k = 0; k < 16; ++k) {
      if (p.a_in_registers) {
        // Column k is with lane k % 8 / 2 of the quad, in its registers for the row's half and for
        // the lower or upper eight columns.
        const Thread& holder = (self - lane % 4)[k % 8 / 2];
        const uint32_t both = static_cast<const uint32_t*>(holder.passed)[half + k / 8 * 2];
        a[half][k] = value_of(static_cast<uint16_t>(k % 2 == 0 ? both : both >> 16), p.is_bfloat);
      } else {
        a[half][k] = read(Descriptor(p.a).k_major(row, k));
      }
    }
  }
  const Descriptor b(p.b);
  for (int i = 0; i < p.columns / 4; ++i) {
    const int column = i / 2 * 8 + lane % 4 * 2 + i % 2;
    float sum[2] = {0, 0};
    for (int k = 0; k < 16; ++k) {
      const float value = read(p.b_mn_major ? b.mn_major(column, k) : b.k_major(column, k));
      sum[0] += a[0][k] * value;
      sum[1] += a[1][k] * value;
    }
    for (int half = 0; half < 2; ++half) {
      float& to = p.d[i / 2 * 4 + half * 2 + i % 2];
      to = (p.add ? to : 0.0f) + sum[half];
    }
  }
  cluster->meet(warp, 32);  // all lanes have read the registers
}

struct HostSm90 {
  using TensorMap = Matrix;

  static int thread() { return self->index; }
  static int64_t block_x() { return cluster->block().x; }
  static int64_t block_y() { return cluster->block().y; }
  static int warp() { return self->index / 32; }
  static int cluster_rank() { return self->rank; }
  static int cluster_size() { return static_cast<int>(cluster->blocks.size()); }
  static void sync_cluster() {
    cluster->meet(cluster->everyone, static_cast<int>(cluster->all.size()));
  }
  static void sync_warp() { cluster->meet(cluster->block().warps[self->index / 32], 32); }
  static void sync_threads(int id, int threads) {
    cluster->meet(cluster->block().named[id], threads);
  }
  static void arrive_threads(int id, int threads) { cluster->block().named[id].arrive(threads); }
  template <typename T>
  static T shuffle_xor(T value, int mask) {
    self->passed = &value;
    sync_warp();  // all lanes show their value
    const Thread& other = (self - self->index % 32)[(self->index % 32) ^ mask];
    const T result = *static_cast<const T*>(other.passed);
    sync_warp();  // all lanes have read
    return result;
  }
  static bool any(bool value) {
    bool result = value;
    for (int mask = 1; mask < 32; mask *= 2) result |= shuffle_xor(result, mask);
    return result;
  }
  template <int kCount>
  static void more_registers() {}
  template <int kCount>
  static void fewer_registers() {}

  static uint32_t address(uint32_t offset) { return kBase + offset; }
  template <typename T>
  static void store(uint32_t offset, T value) {
    std::vector<unsigned char> bytes(sizeof(T));
    std::memcpy(bytes.data(), &value, sizeof(T));
    std::memcpy(memory(cluster->block().ordinary, offset, sizeof(T)), &value, sizeof(T));
    self->unpublished.emplace_back(offset, std::move(bytes));
  }
  template <typename T>
  static T load(uint32_t offset) {
    if (offset % sizeof(T) != 0) fail("a load that is not aligned");
    T value;
    std::memcpy(&value, memory(cluster->block().ordinary, offset, sizeof(T)), sizeof(T));
    return value;
  }
  static void require_alignment() {}
  static void publish_stores() {
    for (const auto& [offset, bytes] : self->unpublished) {
      std::memcpy(memory(cluster->block().asynchronous, offset, bytes.size()), bytes.data(),
                  bytes.size());
    }
    self->unpublished.clear();
  }

  static void init_barrier(uint32_t offset, int count) {
    if (offset % 8 != 0) fail("a barrier that is not aligned");
    memory(cluster->block().ordinary, offset, 8);
    Barrier& barrier = cluster->block().barriers[offset];
    barrier.count = barrier.pending = count;
  }
  static void publish_barriers() {}
  static void arrive(uint32_t offset) { arrive_at(offset, self->rank); }
  static void arrive_at(uint32_t offset, int rank) { barrier(rank, offset).arrive(); }
  static void arrive_expecting(uint32_t offset, uint32_t bytes) {
    Barrier& b = barrier(self->rank, offset);
    b.bytes += bytes;
    b.arrive();
  }
  static void wait(uint32_t offset, uint32_t parity) {
    const Barrier& b = barrier(self->rank, offset);
    cluster->wait_until([&b, parity] { return (b.phase & 1) != parity; });
  }

  static void prefetch(const TensorMap*) {}
  static void load_tile(const TensorMap* map, uint32_t to, uint32_t barrier, int column, int row) {
    load_tile_to_all(map, to, barrier, column, row, 1 << self->rank);
  }
  static void load_tile_to_all(const TensorMap* map, uint32_t to, uint32_t barrier, int column,
                               int row, int blocks) {
    if (to % 128 != 0) fail("a tile that is not aligned");
    if (map->columns % 8 != 0) fail("a matrix whose rows are not multiples of 16 bytes");
    const auto copy = [=] {
      for (size_t rank = 0; rank < cluster->blocks.size(); ++rank) {
        if ((blocks >> rank & 1) != 0)
          copy_tile(*map, static_cast<int>(rank), to, barrier, column, row);
      }
    };
    if (cluster->options.late_loads) {
      cluster->loads.push_back(copy);
    } else {
      copy();
    }
  }

  static void begin_products() {}
  static void commit_products() {
    self->groups.push_back(std::move(self->open));
    self->open.clear();
  }
  template <int kPending>
  static void wait_products() {
    while (self->groups.size() > kPending) {
      if (cluster->options.late_products) {
        for (const Product& p : self->groups.front()) execute(p);
      }
      self->groups.pop_front();
    }
  }
  template <typename Register, int kCount>
  static void hold(Register (&)[kCount]) {}
  template <typename S, bool kMnMajor, int kCount>
  static void product(float (&d)[kCount], uint64_t a, uint64_t b, bool add) {
    issue({d, 2 * kCount, false, kMnMajor, std::is_same_v<S, fcl::BFloat16>, add, a, b, nullptr});
  }
  template <typename S, bool kMnMajor, int kCount>
  static void product(float (&d)[kCount], const uint32_t* a, uint64_t b, bool add) {
    issue({d, 2 * kCount, true, kMnMajor, std::is_same_v<S, fcl::BFloat16>, add, 0, b, a});
  }

  static float infinity() { return std::numeric_limits<float>::infinity(); }
  static float max(float a, float b) { return std::fmax(a, b); }
  static float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
  static float exp2(float x) { return std::exp2(x); }
  template <typename S>
  static uint32_t pack(float low, float high) {
    return bits_of<S>(low) | static_cast<uint32_t>(bits_of<S>(high)) << 16;
  }

 private:
  static unsigned char* memory(std::vector<unsigned char>& view, uint32_t offset, size_t bytes) {
    if (offset + bytes > view.size()) fail("an address outside of shared memory");
    return &view[offset];
  }
  static Barrier& barrier(int rank, uint32_t offset) {
    const auto found = cluster->blocks[rank].barriers.find(offset);
    if (found == cluster->blocks[rank].barriers.end()) fail("a barrier that was not made");
    return found->second;
  }
  // Zeros past the matrix; all bytes of the box count.
  static void copy_tile(const Matrix& map, int rank, uint32_t to, uint32_t barrier_at, int column,
                        int row) {
    Block& block = cluster->blocks[rank];
    for (int r = 0; r < map.box_rows; ++r) {
      for (int c = 0; c < 64; ++c) {
        const bool inside = row + r < map.rows && column + c < map.columns;
        const uint16_t value =
            inside ? map.data[static_cast<int64_t>(row + r) * map.columns + column + c] : 0;
        const uint32_t offset =
            swizzled(kBase + to + static_cast<uint32_t>(r * 128 + c * 2)) - kBase;
        std::memcpy(memory(block.ordinary, offset, 2), &value, 2);
        std::memcpy(memory(block.asynchronous, offset, 2), &value, 2);
      }
    }
    Barrier& b = barrier(rank, barrier_at);
    b.bytes -= map.box_rows * 128;
    b.settle();
  }
  static void issue(const Product& p) {
    std::vector<Product>& issued = cluster->block().issued[self->index / 128];
    if (self->num_issued == issued.size()) issued.push_back(p);
    if (!(issued[self->num_issued++] == p)) fail("a warpgroup disagrees on a product");
    if (cluster->options.late_products) {
      // What was there is gone, though the result is not there yet.
      for (int i = 0; !p.add && i < p.columns / 2; ++i) p.d[i] = NAN;
    } else {
      execute(p);
    }
    self->open.push_back(p);
  }
};

}  // namespace host_sm90
