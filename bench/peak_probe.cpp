// SPDX-License-Identifier: Apache-2.0
// What the machine can do right now: independent multiply-adds on registers alone, and rows of
// memory read in random order. Compiled by bench/peak_probe.py when a benchmark runs, never part of
// the package.
#include <cstdint>

// 24 (AVX-512) or 12 (AVX2) independent chains hide the latency of any current core. What the
// registers hold does not matter: the units take as long.
#define ZMM_CHAINS "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23"
#define YMM_CHAINS "0,1,2,3,4,5,6,7,8,9,10,11"

extern "C" {

// Each returns the floating-point operations it did.
double probe_avx512(int64_t rounds) {
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile(".irp r," ZMM_CHAINS "\n vfmadd231ps %%zmm30, %%zmm31, %%zmm\\r\n .endr" ::
                     : "memory");
  }
  return static_cast<double>(rounds) * 24 * 16 * 2;
}

double probe_avx512_bf16(int64_t rounds) {
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile(".irp r," ZMM_CHAINS "\n vdpbf16ps %%zmm30, %%zmm31, %%zmm\\r\n .endr" ::
                     : "memory");
  }
  return static_cast<double>(rounds) * 24 * 32 * 2;
}

double probe_avx2(int64_t rounds) {
  for (int64_t i = 0; i < rounds; ++i) {
    asm volatile(".irp r," YMM_CHAINS "\n vfmadd231ps %%ymm14, %%ymm15, %%ymm\\r\n .endr" ::
                     : "memory");
  }
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
