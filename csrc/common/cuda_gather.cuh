// SPDX-License-Identifier: Apache-2.0
// Loads and stores that say how the caches should treat them. Compute capability 7.0 and up.
// tests/cuda_emulation has a stand-in of this header for the host.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/cuda_vector.cuh"

namespace fcl::cuda {
namespace {

// Up to 16 bytes at p, or zeros if not `counts` (p is not read then). Rows that a walk gathers come
// back from other multiprocessors, if at all: they do not evict what the L1 cache holds. Volatile,
// so that loads are issued in the order of the program, ahead of the sums that need them.
template <int kSize, typename T>
__device__ __forceinline__ Vector<T, kSize> gather_vector(const T* p, bool counts) {
  constexpr int kBytes = kSize * static_cast<int>(sizeof(T));
  static_assert(kBytes == 2 || kBytes == 4 || kBytes == 8 || kBytes == 16);
  const size_t at = __cvta_generic_to_global(p);
  const int predicate = counts ? 1 : 0;
  Vector<T, kSize> to;
  if constexpr (kBytes == 16) {
    uint32_t words[4];
    asm volatile(
        "{ .reg .pred q; setp.ne.b32 q, %5, 0;\n"
        "mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0;\n"
        "@q ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4]; }"
        : "=&r"(words[0]), "=&r"(words[1]), "=&r"(words[2]), "=&r"(words[3])
        : "l"(at), "r"(predicate));
    memcpy(&to, words, kBytes);
  } else if constexpr (kBytes == 8) {
    uint32_t words[2];
    asm volatile(
        "{ .reg .pred q; setp.ne.b32 q, %3, 0;\n"
        "mov.b32 %0, 0; mov.b32 %1, 0;\n"
        "@q ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2]; }"
        : "=&r"(words[0]), "=&r"(words[1])
        : "l"(at), "r"(predicate));
    memcpy(&to, words, kBytes);
  } else if constexpr (kBytes == 4) {
    uint32_t word;
    asm volatile(
        "{ .reg .pred q; setp.ne.b32 q, %2, 0;\n"
        "mov.b32 %0, 0;\n"
        "@q ld.global.nc.L1::no_allocate.b32 %0, [%1]; }"
        : "=&r"(word)
        : "l"(at), "r"(predicate));
    memcpy(&to, &word, kBytes);
  } else {
    uint16_t half;
    asm volatile(
        "{ .reg .pred q; setp.ne.b32 q, %2, 0;\n"
        "mov.b16 %0, 0;\n"
        "@q ld.global.nc.L1::no_allocate.b16 %0, [%1]; }"
        : "=&h"(half)
        : "l"(at), "r"(predicate));
    memcpy(&to, &half, kBytes);
  }
  return to;
}

// What is read, or written, once and not again soon: first to leave the caches. Pieces of up to 16
// bytes, to which p must be aligned.
template <int kSize, typename T>
__device__ __forceinline__ Vector<T, kSize> load_streaming(const T* p) {
  constexpr int kBytes = kSize * static_cast<int>(sizeof(T));
  Vector<T, kSize> to;
  if constexpr (kBytes >= 16) {
    uint4 pieces[kBytes / 16];
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) pieces[i] = __ldcs(reinterpret_cast<const uint4*>(p) + i);
    memcpy(&to, pieces, kBytes);
  } else if constexpr (kBytes == 8) {
    const uint2 piece = __ldcs(reinterpret_cast<const uint2*>(p));
    memcpy(&to, &piece, kBytes);
  } else if constexpr (kBytes == 4) {
    const unsigned piece = __ldcs(reinterpret_cast<const unsigned*>(p));
    memcpy(&to, &piece, kBytes);
  } else {
    const unsigned short piece = __ldcs(reinterpret_cast<const unsigned short*>(p));
    memcpy(&to, &piece, kBytes);
  }
  return to;
}

template <typename Piece>
__device__ __forceinline__ void store_piece(Piece* p, Piece piece, bool streams) {
  if (streams) {
    __stcs(p, piece);
  } else {
    *p = piece;
  }
}
// The same for a store if `streams`; otherwise an ordinary one, which the second-level cache keeps.
template <int kSize, typename T>
__device__ __forceinline__ void store_pieces(T* p, const Vector<T, kSize>& v, bool streams) {
  constexpr int kBytes = kSize * static_cast<int>(sizeof(T));
  if constexpr (kBytes >= 16) {
    uint4 pieces[kBytes / 16];
    memcpy(pieces, &v, kBytes);
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      store_piece(reinterpret_cast<uint4*>(p) + i, pieces[i], streams);
    }
  } else if constexpr (kBytes == 8) {
    uint2 piece;
    memcpy(&piece, &v, kBytes);
    store_piece(reinterpret_cast<uint2*>(p), piece, streams);
  } else if constexpr (kBytes == 4) {
    unsigned piece;
    memcpy(&piece, &v, kBytes);
    store_piece(reinterpret_cast<unsigned*>(p), piece, streams);
  } else {
    unsigned short piece;
    memcpy(&piece, &v, kBytes);
    store_piece(reinterpret_cast<unsigned short*>(p), piece, streams);
  }
}

}  // namespace
}  // namespace fcl::cuda
