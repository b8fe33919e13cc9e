// LayerNorm(residual + dropout(x)) of contiguous rows and its gradients, by one thread, for ops to call while
// the rows are in cache; see electra_fast/ops/dropout_add_layer_norm.py.
//
// A row is taken on its own, from its first column to its last: memory is at its fastest where one row follows the
// other (rows side by side took twice the time out of the cache). A sum is kept in kChains parts, as one would be a
// chain of additions that wait for each other.
#pragma once

#include <math.h>

#include "philox.h"
#include "rows.h"
#include "vec.h"

namespace ef::EF_NS {

struct Norm {
  int64_t D;
  float eps;
  int threshold;  // bytes below it are dropped: 0 keeps all, 256 drops all
  int64_t seed;
};

constexpr int kChains = 4;
static_assert(kBlockColumns % (kChains * kLanes) == 0, "a block of dropout is whole rounds of the chains");

// body(c, chain) for the vectors of columns from `start` to `end`; returns where the rest, less than a vector, begins.
template <class Body>
static inline int64_t chained(int64_t start, int64_t end, Body body) {
  int64_t c = start;
  for (; c + kChains * kLanes <= end; c += kChains * kLanes) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) body(c + chain * kLanes, chain);
  }
  for (; c + kLanes <= end; c += kLanes) body(c, 0);
  return c;
}

static inline float sum_of(const Vec (&chains)[kChains]) {
  return sum_of((chains[0] + chains[1]) + (chains[2] + chains[3]));
}

// Dropout on a row, kBlockColumns columns at a time.
struct RowDropout {
  const float scale;
  const int limit;  // byte >= threshold as byte > limit: -1 keeps all
  uint8_t bytes[kBlockColumns];

  explicit RowDropout(const Norm& norm)
      : scale(norm.threshold < 256 ? 256.0f / float(256 - norm.threshold) : 1.0f), limit(norm.threshold - 1) {}

  void draw(int64_t seed, int64_t row_id, int64_t column) {
    if (limit >= 0) philox_block(seed, row_id, uint32_t(column / 16), 0, bytes);
  }
  // Chosen, not multiplied by 0: a NaN that is dropped is gone.
  Vec of(Vec x, int64_t i) const {
    if (limit < 0) return x;
#if EF_ISA >= 512
    const VecInt drawn = (VecInt)_mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128((const __m128i*)(bytes + i)));
#elif EF_ISA >= 256
    const VecInt drawn = (VecInt)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(bytes + i)));
#else
    const uint8_t* b = bytes + i;
    const VecInt drawn = {b[0], b[1], b[2], b[3]};
#endif
    return drawn > limit ? x * scale : Vec{};
  }
  float of(float x, int64_t i) const { return limit < 0 ? x : bytes[i] > limit ? x * scale : 0.0f; }
};

static inline void norm_fwd(const Norm& norm, const float* x, const float* residual, int64_t row_id,
                            const float* weight, const float* bias, float* out, float* xhat, float* rstd) {
  const int64_t D = norm.D;
  RowDropout dropout(norm);
  Vec sum[kChains] = {};
  float last = 0;
  for (int64_t start = 0; start < D; start += kBlockColumns) {
    const int64_t end = smaller(D, start + kBlockColumns);
    dropout.draw(norm.seed, row_id, start);
    int64_t c = chained(start, end, [&](int64_t c, int chain) {
      const Vec z = load(residual + c) + dropout.of(load(x + c), c - start);
      store(xhat + c, z), sum[chain] += z;
    });
    for (; c < end; ++c) xhat[c] = residual[c] + dropout.of(x[c], c - start), last += xhat[c];
  }
  const float mean = (sum_of(sum) + last) / float(D);
  Vec rest[kChains] = {}, square[kChains] = {};
  float last_rest = 0, last_square = 0;
  int64_t c = chained(0, D, [&](int64_t c, int chain) {
    const Vec centred = load(xhat + c) - mean;
    rest[chain] += centred, square[chain] += centred * centred;
  });
  for (; c < D; ++c) {
    const float centred = xhat[c] - mean;
    last_rest += centred, last_square += centred * centred;
  }
  const float rest_mean = (sum_of(rest) + last_rest) / float(D);  // what the rounding of the mean left
  const float variance = (sum_of(square) + last_square) / float(D) - rest_mean * rest_mean;
  *rstd = 1 / sqrtf((variance < 0 ? 0 : variance) + norm.eps);
  const float scale = *rstd;
  for (c = 0; c + kLanes <= D; c += kLanes) {
    const Vec normed = (load(xhat + c) - mean - rest_mean) * scale;
    store(xhat + c, normed), store(out + c, normed * load(weight + c) + load(bias + c));
  }
  for (; c < D; ++c) {
    const float normed = (xhat[c] - mean - rest_mean) * scale;
    xhat[c] = normed, out[c] = normed * weight[c] + bias[c];
  }
}

static inline void norm_bwd(const Norm& norm, const float* dout, const float* xhat, float rstd, const float* weight,
                            int64_t row_id, float* dx, float* dresidual, float* dweight, float* dbias) {
  const int64_t D = norm.D;
  // With g = weight dout: dz = rstd (g - mean(g) - xhat mean(g xhat)). g waits in dx, rounded as its mean has it: where
  // all cancels, as in rows of one column, the rest of an unrounded product times rstd would be anything.
  Vec sum[kChains] = {}, dot[kChains] = {};
  float mean = 0, slope = 0;
  int64_t c = chained(0, D, [&](int64_t c, int chain) {
    const Vec d = load(dout + c), normed = load(xhat + c), g = d * load(weight + c);
    store(dweight + c, load(dweight + c) + d * normed), store(dbias + c, load(dbias + c) + d);
    sum[chain] += g, dot[chain] += g * normed;
    store(dx + c, g);
  });
  for (; c < D; ++c) {
    const float d = dout[c], normed = xhat[c], g = d * weight[c];
    dweight[c] += d * normed, dbias[c] += d;
    mean += g, slope += g * normed;
    dx[c] = g;
  }
  mean = (mean + sum_of(sum)) / float(D), slope = (slope + sum_of(dot)) / float(D);
  RowDropout dropout(norm);
  for (int64_t start = 0; start < D; start += kBlockColumns) {
    const int64_t end = smaller(D, start + kBlockColumns);
    dropout.draw(norm.seed, row_id, start);
    for (c = start; c + kLanes <= end; c += kLanes) {
      const Vec dz = (load(dx + c) - mean - load(xhat + c) * slope) * rstd;
      store(dresidual + c, dz), store(dx + c, dropout.of(dz, c - start));
    }
    for (; c < end; ++c) {
      const float dz = (dx[c] - mean - xhat[c] * slope) * rstd;
      dresidual[c] = dz, dx[c] = dropout.of(dz, c - start);
    }
  }
}

// out = weight * xhat + bias, xhat = (z - mean) rstd, z = residual + dropout(x). out, xhat (rows, D), rstd (rows,);
// xhat may be x or out.
static inline void norm_rows_fwd(const Norm& norm, int64_t rows, const float* x, const float* residual,
                                 const int64_t* row_ids, const float* weight, const float* bias, float* out,
                                 float* xhat, float* rstd) {
  const int64_t D = norm.D;
  for (int64_t r = 0; r < rows; ++r)
    norm_fwd(norm, x + r * D, residual + r * D, row_ids[r], weight, bias, out + r * D, xhat + r * D, rstd + r);
}

// dresidual is the gradient of the residual, so of z, dx that of x; dweight, dbias (D,) are added to. dx may be dout.
static inline void norm_rows_bwd(const Norm& norm, int64_t rows, const float* dout, const float* xhat,
                                 const float* rstd, const float* weight, const int64_t* row_ids, float* dx,
                                 float* dresidual, float* dweight, float* dbias) {
  const int64_t D = norm.D;
  for (int64_t r = 0; r < rows; ++r)
    norm_bwd(norm, dout + r * D, xhat + r * D, rstd[r], weight, row_ids[r], dx + r * D, dresidual + r * D, dweight,
             dbias);
}

namespace {

// norm_rows_bwd for blocks on threads. Gradients of the parameters are summed by a few rows first: one chain through
// all would round worse.
struct NormGradient {
  const Norm norm;
  Sum dweight, dbias;
  Floats shares;  // of each part, of both

  NormGradient(const Norm& norm, float* dweight, float* dbias, int64_t parts)
      : norm(norm), dweight(dweight, norm.D, parts), dbias(dbias, norm.D, parts), shares(parts * 2 * norm.D) {}
  void start(int64_t part) { dweight.start(part), dbias.start(part); }
  void rows(int64_t part, int64_t rows, const float* dout, const float* xhat, const float* rstd, const float* weight,
            const int64_t* row_ids, float* dx, float* dresidual) {
    const int64_t D = norm.D;
    float *own = shares.at + part * 2 * D, *dw = dweight.of(part), *db = dbias.of(part);
    for (int64_t r = 0; r < rows; r += 64) {
      memset(own, 0, size_t(2 * D) * sizeof(float));
      norm_rows_bwd(norm, smaller(64, rows - r), dout + r * D, xhat + r * D, rstd + r, weight, row_ids + r, dx + r * D,
                    dresidual + r * D, own, own + D);
      for (int64_t d = 0; d < D; ++d) dw[d] += own[d], db[d] += own[D + d];
    }
  }
  void finish() { dweight.finish(), dbias.finish(); }
};

}  // namespace
}  // namespace ef::EF_NS
