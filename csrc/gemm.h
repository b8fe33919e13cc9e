// C = A B in float32, on one thread, for ops that use a block of C while it is in cache, before they compute the next.
//
// B is packed first: in panels of kPanel columns, whose rows are kPanel consecutive floats, so that a product reads a
// panel from its first float to its last. The last panel is filled up with zeros. A is read where it is. An element of
// C is a sum of multiply-adds over kDepth terms of K at a time, in order: its bits do not depend on the other rows, nor
// on the block that it is in.
#pragma once

#include <string.h>

#include "vec.h"

namespace ef::EF_NS {

constexpr int kPanel = 2 * kLanes;
// The rows of C that are computed at once: with two vectors each, they fill the registers (16, or 32 with AVX-512),
// except those that A and B need.
constexpr int kSliver = EF_ISA >= 512 ? 12 : 6;
// The terms of K that are summed at once: a panel's part is then 32 KiB. With half of it, C would be written twice as
// often; with more, the sums would round worse.
constexpr int64_t kDepth = kPanel > 16 ? 8192 / kPanel : 512;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
static inline int64_t packed_size(int64_t K, int64_t N) { return panels(N) * K * kPanel; }

// Packs b (K, N), whose rows are ldb apart.
static inline void pack(const float* b, int64_t ldb, int64_t K, int64_t N, float* packed) {
  for (int64_t n = 0; n < N; n += kPanel) {
    for (int64_t k = 0; k < K; ++k, packed += kPanel) {
      const float* from = b + k * ldb + n;
      if (n + kPanel <= N) {
        store(packed, load(from)), store(packed + kLanes, load(from + kLanes));
      } else {
        for (int64_t i = 0; i < kPanel; ++i) packed[i] = n + i < N ? from[i] : 0.0f;
      }
    }
  }
}

// Packs the transpose of b (N, K).
static inline void pack_transposed(const float* b, int64_t ldb, int64_t K, int64_t N, float* packed) {
  for (int64_t n = 0; n < N; n += kPanel, packed += K * kPanel) {
    const int64_t squares = n + kPanel <= N ? K / kLanes * kLanes : 0;
    for (int64_t k = 0; k < squares; k += kLanes) {
      for (int half = 0; half < kPanel; half += kLanes) {
        Vec square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = load(b + (n + half + i) * ldb + k);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) store(packed + (k + i) * kPanel + half, square[i]);
      }
    }
    for (int64_t k = squares; k < K; ++k)
      for (int64_t i = 0; i < kPanel; ++i) packed[k * kPanel + i] = n + i < N ? b[(n + i) * ldb + k] : 0.0f;
  }
}

// c (rows, N) = the first rows of the transpose of a panel `across` (N, kPanel).
static inline void unpack_transposed(const float* across, int64_t N, int64_t rows, float* c, int64_t ldc) {
  int64_t n = 0;
  for (; n + kLanes <= N; n += kLanes, across += kLanes * kPanel) {
    for (int half = 0; half < kPanel && half < rows; half += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load(across + i * kPanel + half);
      transpose(square);
      for (int i = 0; i < kLanes && half + i < rows; ++i) store(c + (half + i) * ldc + n, square[i]);
    }
  }
  for (; n < N; ++n, across += kPanel)
    for (int64_t r = 0; r < rows; ++r) c[r * ldc + n] = across[r];
}

// Computes ROWS rows and the first `columns` of kPanel columns of C: A B, plus the matrix at `plus` if that is not
// null. A's element (i, k) is a[i * lda + k]; if TRANSPOSED, a[k * lda + i].
//
// Not inlined, since it uses all registers, and the compiler would spill some for its caller's values.
template <int ROWS, bool TRANSPOSED>
__attribute__((noinline)) static void sliver(const float* a, int64_t lda, const float* panel, int64_t K, float* c,
                                             int64_t ldc, const float* plus, int64_t ldplus, int64_t columns) {
  Vec sums[ROWS][2] = {};
  if (plus == c)  // prefetched, as it may not be in cache: it arrives while the sums are computed
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) __builtin_prefetch(c + i * ldc, 1), __builtin_prefetch(c + i * ldc + kPanel - 1, 1);
  for (int64_t k = 0; k < K; ++k, panel += kPanel) {
    const Vec b0 = load(panel), b1 = load(panel + kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const float x = TRANSPOSED ? a[i] : a[i * lda];
      sums[i][0] += b0 * x, sums[i][1] += b1 * x;
    }
    a += TRANSPOSED ? lda : 1;
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i, c += ldc, plus += ldplus) {
    if (columns >= kPanel) {
      store(c, plus ? load(plus) + sums[i][0] : sums[i][0]);
      store(c + kLanes, plus ? load(plus + kLanes) + sums[i][1] : sums[i][1]);
    } else {
      float row[kPanel];
      store(row, sums[i][0]), store(row + kLanes, sums[i][1]);
      for (int64_t j = 0; j < columns; ++j) c[j] = plus ? plus[j] + row[j] : row[j];
    }
  }
}

template <bool TRANSPOSED>
static inline void slivers(int64_t rows, const float* a, int64_t lda, const float* panel, int64_t K, float* c,
                           int64_t ldc, const float* plus, int64_t ldplus, int64_t columns) {
  switch (rows) {
#define EF_SLIVER(n) \
  case n:            \
    return sliver<(n <= kSliver ? n : 1), TRANSPOSED>(a, lda, panel, K, c, ldc, plus, ldplus, columns)
    EF_SLIVER(1);
    EF_SLIVER(2);
    EF_SLIVER(3);
    EF_SLIVER(4);
    EF_SLIVER(5);
    EF_SLIVER(6);
    EF_SLIVER(7);
    EF_SLIVER(8);
    EF_SLIVER(9);
    EF_SLIVER(10);
    EF_SLIVER(11);
    EF_SLIVER(12);
#undef EF_SLIVER
  }
}

// c (M, N) = a (M, K) times the packed b (K, N). If `plus` is not null, the matrix there is added, whose rows are
// ldplus apart: it may be c itself, or with ldplus = 0 one row that is added to every row.
template <bool TRANSPOSED>
static inline void product(const float* a, int64_t lda, const float* packed, int64_t M, int64_t K, int64_t N, float* c,
                           int64_t ldc, const float* plus = nullptr, int64_t ldplus = 0) {
  for (int64_t n = 0; n < N; n += kPanel, packed += K * kPanel) {
    for (int64_t k = 0; k == 0 || k < K; k += kDepth) {
      const int64_t depth = K - k < kDepth ? K - k : kDepth;
      const float* from = a + (TRANSPOSED ? k * lda : k);
      for (int64_t m = 0; m < M; m += kSliver) {
        const int64_t rows = M - m < kSliver ? M - m : kSliver;
        float* to = c + m * ldc + n;
        const float* given = k > 0 ? to : plus ? plus + m * ldplus + n : nullptr;
        slivers<TRANSPOSED>(rows, from + (TRANSPOSED ? m : m * lda), lda, packed + k * kPanel, depth, to, ldc, given,
                            k > 0  ? ldc
                            : plus ? ldplus
                                   : 0,
                            N - n);
      }
    }
  }
}

}  // namespace ef::EF_NS
