// Philox-4x32-10 (Salmon et al., SC 2011). The conventions are those of electra_fast/ops/_philox.py:
// the key is the seed's two halves, the counter is (the row's two halves, group, plane), and dropout reads the four
// words of a counter as sixteen bytes.
#pragma once

#include <stdint.h>
#include <string.h>

#if EF_ISA >= 256
#include <immintrin.h>
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "words are stored as bytes in little-endian order");

namespace ef::EF_NS {

struct Words {
  uint32_t w[4];
};

static inline Words philox(int64_t seed, int64_t row, uint32_t group, uint32_t plane) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(uint64_t(seed) >> 32);
  uint32_t c0 = uint32_t(row), c1 = uint32_t(uint64_t(row) >> 32), c2 = group, c3 = plane;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(c0) * 0xD2511F53u, p1 = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0, c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1, c3 = uint32_t(p0);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

constexpr int kBlockGroups = 8;  // groups that philox_block computes at once
constexpr int kBlockColumns = 16 * kBlockGroups;

#if EF_ISA >= 256
// Eight counters, four in a and four in b. A word of a counter is the low half of a 64-bit lane. vpmuludq reads only
// that half, so the upper one need not be cleared.
struct Counters {
  __m256i a0, a1, a2, a3, b0, b1, b2, b3;
};

static inline void philox_rounds(int64_t seed, Counters& c) {
  const __m256i m0 = _mm256_set1_epi64x(0xD2511F53), m1 = _mm256_set1_epi64x(0xCD9E8D57);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(uint64_t(seed) >> 32);
  for (int round = 0; round < 10; ++round) {
    const __m256i key0 = _mm256_set1_epi64x(k0), key1 = _mm256_set1_epi64x(k1);
    const __m256i pa0 = _mm256_mul_epu32(c.a0, m0), pa1 = _mm256_mul_epu32(c.a2, m1);
    const __m256i pb0 = _mm256_mul_epu32(c.b0, m0), pb1 = _mm256_mul_epu32(c.b2, m1);
    c.a0 = _mm256_xor_si256(_mm256_srli_epi64(pa1, 32), _mm256_xor_si256(c.a1, key0)), c.a1 = pa1;
    c.b0 = _mm256_xor_si256(_mm256_srli_epi64(pb1, 32), _mm256_xor_si256(c.b1, key0)), c.b1 = pb1;
    c.a2 = _mm256_xor_si256(_mm256_srli_epi64(pa0, 32), _mm256_xor_si256(c.a3, key1)), c.a3 = pa0;
    c.b2 = _mm256_xor_si256(_mm256_srli_epi64(pb0, 32), _mm256_xor_si256(c.b3, key1)), c.b3 = pb0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
}

// Two words of each counter in one 64-bit lane, the first in the low half.
static inline __m256i join(__m256i low, __m256i high) {
  return _mm256_blend_epi32(low, _mm256_slli_epi64(high, 32), 0xAA);
}
#endif

// The bytes of the eight groups from `group` on, in the order of the columns they stand for.
static inline void philox_block(int64_t seed, int64_t row, uint32_t group, uint32_t plane, uint8_t* out) {
#if EF_ISA >= 256
  // a holds groups 0 to 3 and b 4 to 7, the middle two swapped so that the last unpack puts the bytes in order.
  const __m256i order = _mm256_add_epi64(_mm256_set1_epi64x(group), _mm256_setr_epi64x(0, 2, 1, 3));
  const __m256i r = _mm256_set1_epi64x(row), above = _mm256_srli_epi64(r, 32), p = _mm256_set1_epi64x(plane);
  Counters c{r, above, order, p, r, above, _mm256_add_epi64(order, _mm256_set1_epi64x(4)), p};
  philox_rounds(seed, c);
  const __m256i a01 = join(c.a0, c.a1), a23 = join(c.a2, c.a3), b01 = join(c.b0, c.b1), b23 = join(c.b2, c.b3);
  __m256i* to = reinterpret_cast<__m256i*>(out);
  _mm256_storeu_si256(to + 0, _mm256_unpacklo_epi64(a01, a23));
  _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi64(a01, a23));
  _mm256_storeu_si256(to + 2, _mm256_unpacklo_epi64(b01, b23));
  _mm256_storeu_si256(to + 3, _mm256_unpackhi_epi64(b01, b23));
#else
  for (int g = 0; g < kBlockGroups; ++g) {
    const Words words = philox(seed, row, group + g, plane);
    memcpy(out + 16 * g, words.w, 16);
  }
#endif
}

// The first two words of each row (group and plane 0), the second in the low half.
static inline void philox_rows(int64_t seed, const int64_t* rows, int64_t count, uint64_t* out) {
  int64_t i = 0;
#if EF_ISA >= 256
  for (; i + 8 <= count; i += 8) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + i + 4)), zero = _mm256_setzero_si256();
    Counters c{a, _mm256_srli_epi64(a, 32), zero, zero, b, _mm256_srli_epi64(b, 32), zero, zero};
    philox_rounds(seed, c);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), join(c.a1, c.a0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i + 4), join(c.b1, c.b0));
  }
#endif
  for (; i < count; ++i) {
    const Words words = philox(seed, rows[i], 0, 0);
    out[i] = uint64_t(words.w[0]) << 32 | words.w[1];
  }
}

}  // namespace ef::EF_NS
