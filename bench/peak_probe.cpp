// SPDX-License-Identifier: Apache-2.0
// What the machine can do right now: independent multiply-adds on registers alone, and rows of
// memory read in random order. Compiled by bench/peak_probe.py when a benchmark runs, never part of
// the package.
#include <immintrin.h>

#include <cstdint>

// 24 (AVX-512) or 12 (AVX2) independent chains hide the latency of any current core.
#define ZMM_CHAINS "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23"
#define YMM_CHAINS "0,1,2,3,4,5,6,7,8,9,10,11"

// `rounds` times one `multiply` of `factor` with itself per chain, in registers of `kind`. The
// registers are written first, in the same block: what one happens to hold may be a denormal
// number, and an instruction that meets one takes over a hundred cycles on some processors.
#define PROBE_LOOP(kind, chains, left, right, multiply, factor, rounds, ...)                   \
  do {                                                                                         \
    int64_t remaining = rounds;                                                                \
    asm volatile("vbroadcastss %1, %%" kind left "\n vbroadcastss %1, %%" kind right           \
                 "\n"                                                                          \
                 ".irp r," chains "\n vbroadcastss %1, %%" kind                                \
                 "\\r\n .endr\n"                                                               \
                 "1:\n"                                                                        \
                 ".irp r," chains "\n " multiply " %%" kind left ", %%" kind right ", %%" kind \
                 "\\r\n .endr\n"                                                               \
                 "dec %0\n jnz 1b\n"                                                           \
                 : "+r"(remaining)                                                             \
                 : "m"(factor)                                                                 \
                 : "cc", __VA_ARGS__);                                                         \
  } while (0)

#define LOW_REGISTERS                                                                      \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define ALL_REGISTERS                                                                             \
  LOW_REGISTERS, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", \
      "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31"

namespace {
const float kOne = 1;
const uint32_t kPairOfOnes = 0x3f803f80;  // two bfloat16
}  // namespace

extern "C" {

// Each returns the floating-point operations it did.
__attribute__((target("avx512f"))) double probe_avx512(int64_t rounds) {
  PROBE_LOOP("zmm", ZMM_CHAINS, "30", "31", "vfmadd231ps", kOne, rounds, ALL_REGISTERS);
  return static_cast<double>(rounds) * 24 * 16 * 2;
}

__attribute__((target("avx512f"))) double probe_avx512_bf16(int64_t rounds) {
  PROBE_LOOP("zmm", ZMM_CHAINS, "30", "31", "vdpbf16ps", kPairOfOnes, rounds, ALL_REGISTERS);
  return static_cast<double>(rounds) * 24 * 32 * 2;
}

// Four tiles of sums, as many as a product with two operands of two tiles each has.
__attribute__((target("amx-tile,amx-bf16"))) double probe_amx_bf16(int64_t rounds) {
  struct Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  alignas(64) static constexpr Config kWholeTiles;
  alignas(64) static constexpr uint16_t kZeros[16 * 32] = {};
  _tile_loadconfig(&kWholeTiles);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, kZeros, 64);
  _tile_loadd(5, kZeros, 64);
  _tile_loadd(6, kZeros, 64);
  _tile_loadd(7, kZeros, 64);
  for (int64_t i = 0; i < rounds; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return static_cast<double>(rounds) * 4 * 16 * 16 * 32 * 2;
}

double probe_avx2(int64_t rounds) {
  PROBE_LOOP("ymm", YMM_CHAINS, "14", "15", "vfmadd231ps", kOne, rounds, LOW_REGISTERS);
  return static_cast<double>(rounds) * 12 * 8 * 2;
}

// Sums the rows `ids` of a matrix [.., dim], 128 floats at a time in registers, later rows
// prefetched; what it gives back keeps the compiler from leaving the work out.
float probe_gather(const float* rows, const int32_t* ids, int64_t count, int64_t dim) {
  constexpr int kColumns = 128;
  constexpr int64_t kAhead = 24;
  float total = 0;
  for (int64_t offset = 0; offset + kColumns <= dim; offset += kColumns) {
    float sums[kColumns] = {};
    for (int64_t i = 0; i < count; ++i) {
      if (i + kAhead < count) {
        const char* next = reinterpret_cast<const char*>(rows + ids[i + kAhead] * dim + offset);
        for (int line = 0; line < kColumns / 16; ++line) __builtin_prefetch(next + 64 * line);
      }
      const float* row = rows + ids[i] * dim + offset;
      for (int j = 0; j < kColumns; ++j) sums[j] += row[j];
    }
    for (float sum : sums) total += sum;
  }
  return total;
}

}  // extern "C"
