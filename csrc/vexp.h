// exp and log of vectors, within 2 ulp (tests/csrc/test_core.py measures them over their whole range).
#pragma once

#include "vec.h"

namespace ef::EF_NS {

// exp(x) for x <= 88; 0 below -87.3, where it would be subnormal; NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2: 2^n from the bits of n, e^r = 1 + r + r^2 q(r), q fitted for the relative error.
static inline Vec vexp(Vec x) {
  const float shift = 12583039.0f;  // 1.5 * 2^23 + 127: adding it rounds x to n, and the low bits are n + 127
  const Vec shifted = x * 1.44269504f + shift;
  const Vec n = shifted - shift;
  // ln 2 in two parts. The first has few bits, so that n times it is exact, without FMA too.
  const Vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec q = r * 0x1.6a2434p-10f + 0x1.1239e2p-7f;
  q = q * r + 0x1.5558f2p-5f;
  q = q * r + 0x1.555492p-3f;
  q = q * r + 0x1.fffffcp-2f;
  q = q * r + 1.0f;
  q = q * r + 1.0f;
  const Vec power = (Vec)((VecInt)shifted << 23);
  return x < -87.3f ? Vec{} : q * power;
}

// log(x) for x >= 0; -inf for 0, NaN for NaN. Subnormal x count as 0.
//
// x = m 2^e with m in [sqrt 1/2, sqrt 2), z = m - 1: log(x) = e ln 2 + z - z^2 / 2 + z^3 q(z).
static inline Vec vlog(Vec x) {
  typedef uint32_t VecWord __attribute__((vector_size(EF_ISA / 8)));  // unsigned: it may wrap if x is negative or NaN
  const VecInt bits = (VecInt)((VecWord)x - 0x3f3504f3);  // minus sqrt 1/2, so that the exponent steps there
  const VecInt exponent = bits >> 23;
  const Vec z = (Vec)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
  Vec q = z * -0.07858825f + 0.12881762f;
  q = q * z - 0.13129115f;
  q = q * z + 0.1418119f;
  q = q * z - 0.16624513f;
  q = q * z + 0.20002286f;
  q = q * z - 0.2500081f;
  q = q * z + 0.33333316f;
  const Vec e = __builtin_convertvector(exponent, Vec);
  const Vec z2 = z * z;
  const Vec result = e * 0.693359375f + (z + (z2 * z * q + (e * -2.12194440e-4f - 0.5f * z2)));
  const Vec edge = x < 1.17549435e-38f ? splat(-__builtin_inff()) : x;  // 0 or less, infinite, NaN
  return (x >= 1.17549435e-38f) & (x <= 3.4028234e38f) ? result : edge;
}

}  // namespace ef::EF_NS
