// The erf GELU, x Phi(x), and its derivative, Phi(x) + x phi(x), of vectors: Phi the normal distribution, phi its
// density.
#pragma once

#include "vexp.h"

namespace ef::EF_NS {

struct Normal {
  Vec cdf, pdf;
};

// For a >= 0, Phi(-a) = e^(-a^2 / 2) t q(t) with t = 1 / (1 + 0.34 a). The polynomial q is fitted to a relative error
// of 5e-8; the rounding of t adds more. Phi is within 2.1e-7 everywhere (tests/csrc/test_core.py measures it). Phi and
// phi share their exponential.
static inline Normal normal(Vec x) {
  const Vec a = x < 0 ? -x : x, t = 1.0f / (1.0f + 0.34f * a), power = vexp(x * x * -0.5f);
  Vec q = t * -0x1.b00ce4p-6f + 0x1.2018b4p-3f;
  q = q * t - 0x1.1a12ccp-2f;
  q = q * t + 0x1.a34ae6p-3f;
  q = q * t - 0x1.7c118cp-5f;
  q = q * t + 0x1.db477cp-4f;
  q = q * t + 0x1.d72f0ap-4f;
  q = q * t + 0x1.16cd26p-3f;
  q = q * t + 0x1.15bf98p-3f;
  const Vec tail = q * t * power;
  return {x < 0 ? tail : 1.0f - tail, power * 0.398942280f};
}

// y = gelu(x) for rows of N; y may be x. If `kept` is not null, x is copied there, (rows, N).
static inline void gelu_rows(const float* x, int64_t ldx, int64_t rows, int64_t N, float* y, int64_t ldy,
                             float* kept = nullptr) {
  for (int64_t r = 0; r < rows; ++r, x += ldx, y += ldy) {
    int64_t n = 0;
    for (; n + kLanes <= N; n += kLanes) {
      const Vec a = load(x + n);
      if (kept) store(kept + r * N + n, a);
      store(y + n, a * normal(a).cdf);
    }
    if (n < N) {
      const Vec a = load_part(x + n, N - n);
      if (kept) store_part(kept + r * N + n, a, N - n);
      store_part(y + n, a * normal(a).cdf, N - n);
    }
  }
}

// dx = dy gelu'(x); dx may be dy. If `packed` is not null, it receives gelu(x), computed again, as the packed B of a
// product (gemm.h).
static inline void gelu_rows_bwd(const float* x, int64_t ldx, const float* dy, int64_t lddy, int64_t rows, int64_t N,
                                 float* dx, int64_t lddx, float* packed) {
  for (int64_t r = 0; r < rows; ++r, x += ldx, dy += lddy, dx += lddx) {
    const auto place = [&](int64_t n) { return packed + (n / kPanel * rows + r) * kPanel + n % kPanel; };
    int64_t n = 0;
    for (; n + kLanes <= N; n += kLanes) {
      const Vec a = load(x + n);
      const Normal at = normal(a);
      store(dx + n, load(dy + n) * (at.cdf + a * at.pdf));
      if (packed) store(place(n), a * at.cdf);
    }
    if (n < N) {
      const Vec a = load_part(x + n, N - n);
      const Normal at = normal(a);
      store_part(dx + n, load_part(dy + n, N - n) * (at.cdf + a * at.pdf), N - n);
      if (packed) store(place(n), a * at.cdf);  // 0 beyond N
      n += kLanes;
    }
    if (packed && n % kPanel) store(place(n), Vec{});
  }
}

}  // namespace ef::EF_NS
