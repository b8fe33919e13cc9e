// Vectors as wide as the instruction set's, by the compiler's vector extensions: the same source for SSE, AVX2, AVX-512
// and NEON.
#pragma once

#include <stdint.h>
#include <string.h>

namespace ef::EF_NS {

constexpr int kLanes = EF_ISA / 32;
typedef float Vec __attribute__((vector_size(EF_ISA / 8)));
typedef int32_t VecInt __attribute__((vector_size(EF_ISA / 8)));  // also a comparison's result: -1 where true, else 0

static inline Vec load(const float* from) {
  typedef float Anywhere __attribute__((vector_size(EF_ISA / 8), aligned(4), may_alias));
  return *reinterpret_cast<const Anywhere*>(from);
}

static inline void store(float* to, Vec value) {
  typedef float Anywhere __attribute__((vector_size(EF_ISA / 8), aligned(4), may_alias));
  *reinterpret_cast<Anywhere*>(to) = value;
}

// Loads the first `count` lanes; the others are 0.
static inline Vec load_part(const float* from, int64_t count) {
  Vec value = {};
  memcpy(&value, from, size_t(count) * sizeof(float));
  return value;
}

static inline void store_part(float* to, Vec value, int64_t count) {
  memcpy(to, &value, size_t(count) * sizeof(float));
}

static inline Vec splat(float value) { return value - Vec{}; }  // 0 + -0 would be 0

#ifdef __clang__
#define EF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define EF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, VecInt{__VA_ARGS__})
#endif

// The first halves of a and b, interleaved, and the second halves.
#if EF_ISA == 512
static inline Vec interleave_low(Vec a, Vec b) {
  return EF_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
static inline Vec interleave_high(Vec a, Vec b) {
  return EF_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif EF_ISA == 256
static inline Vec interleave_low(Vec a, Vec b) { return EF_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
static inline Vec interleave_high(Vec a, Vec b) { return EF_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }
#else
static inline Vec interleave_low(Vec a, Vec b) { return EF_SHUFFLE(a, b, 0, 4, 1, 5); }
static inline Vec interleave_high(Vec a, Vec b) { return EF_SHUFFLE(a, b, 2, 6, 3, 7); }
#endif

// Transposes the matrix of kLanes vectors in place, by log2(kLanes) perfect shuffles of all its elements.
static inline void transpose(Vec square[kLanes]) {
#pragma GCC unroll 4
  for (int done = 1; done < kLanes; done *= 2) {
    Vec next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave_low(square[i], square[i + kLanes / 2]);
      next[2 * i + 1] = interleave_high(square[i], square[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) square[i] = next[i];
  }
}

static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }  // b where one is NaN

static inline float sum_of(Vec v) {
  // A tree of sums of halves, so that the order is always the same.
#if EF_ISA >= 512
  v += EF_SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += EF_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  v += EF_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
#elif EF_ISA >= 256
  v += EF_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
  v += EF_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
#else
  v += EF_SHUFFLE(v, v, 2, 3, 0, 1);
#endif
  return v[0] + v[1];
}

static inline float dot(const float* a, const float* b, int64_t n) {
  Vec sum = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) sum += load(a + i) * load(b + i);
  if (i < n) sum += load_part(a + i, n - i) * load_part(b + i, n - i);
  return sum_of(sum);
}

static inline float largest_of(Vec v) {
#if EF_ISA >= 512
  v = larger(v, EF_SHUFFLE(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = larger(v, EF_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = larger(v, EF_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
#elif EF_ISA >= 256
  v = larger(v, EF_SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
  v = larger(v, EF_SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
#else
  v = larger(v, EF_SHUFFLE(v, v, 2, 3, 0, 1));
#endif
  return v[0] > v[1] ? v[0] : v[1];
}

}  // namespace ef::EF_NS
