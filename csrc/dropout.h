// Dropout of a row in vector registers: an element is kept if its random byte (philox.h) is not below the threshold.
#pragma once

#include "arguments.h"
#include "philox.h"
#include "vec.h"

namespace ef::EF_NS {

// The factor of the elements that are kept, which preserves the mean: 256 / (256 - threshold). 1 if all are dropped.
static inline float dropout_scale(int threshold) { return threshold < 256 ? 256.0f / float(256 - threshold) : 1.0f; }

// The Dropout of the rows from `first` on.
static inline Dropout from_row(const Dropout& dropout, int64_t first) {
  return {dropout.row_ids + first, dropout.seed, dropout.threshold};
}

// kLanes bytes as 32-bit integers. Intrinsics, since GCC 12 converts __builtin_convertvector one byte at a time.
static inline VecInt widened(const uint8_t* bytes) {
#if EF_ISA >= 512
  return (VecInt)_mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
#elif EF_ISA >= 256
  return (VecInt)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
#else
  return VecInt{bytes[0], bytes[1], bytes[2], bytes[3]};
#endif
}

namespace {  // internal, as static is for functions: no symbol of theirs leaves the instruction set's object

// Dropout of kBlockColumns columns of a row at a time. draw(column) comes first; i in kept() and of() counts from that
// column.
struct RowDropout {
  const float scale;
  const int limit;  // threshold - 1: an element is kept if its byte > limit, so -1 keeps all
  uint8_t bytes[kBlockColumns];

  explicit RowDropout(int threshold) : scale(dropout_scale(threshold)), limit(threshold - 1) {}

  void draw(int64_t seed, int64_t row_id, int64_t column, uint32_t plane = 0) {
    if (limit >= 0) philox_block(seed, row_id, uint32_t(column / 16), plane, bytes);
  }
  // All bits 1 where the element is kept, else 0.
  VecInt kept(int64_t i) const { return widened(bytes + i) > limit; }
  // Dropped elements are replaced by 0, not multiplied by it, so that a NaN is dropped, too.
  Vec of(Vec x, int64_t i) const { return limit < 0 ? x : kept(i) ? x * scale : Vec{}; }
  float of(float x, int64_t i) const { return limit < 0 ? x : bytes[i] > limit ? x * scale : 0.0f; }
};

}  // namespace
}  // namespace ef::EF_NS
