// LayerNorm(residual + dropout(x)) of contiguous rows and its gradients, by one thread, for ops to call while
// the rows are in cache; see electra_fast/ops/dropout_add_layer_norm.py.
//
// Four rows go side by side: the sums of one row are a chain of dependent additions, four chains fill the pipeline.
// What a row gives does not depend on its neighbours.
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

// Dropout on R rows, kBlockColumns columns at a time.
template <int R>
struct RowsDropout {
  const float scale;
  const int limit;  // byte >= threshold as byte > limit: -1 keeps all
  uint8_t bytes[R][kBlockColumns];

  explicit RowsDropout(const Norm& norm)
      : scale(norm.threshold < 256 ? 256.0f / float(256 - norm.threshold) : 1.0f), limit(norm.threshold - 1) {}

  void draw(int64_t seed, const int64_t* row_ids, int64_t column) {
    for (int r = 0; limit >= 0 && r < R; ++r) philox_block(seed, row_ids[r], uint32_t(column / 16), 0, bytes[r]);
  }
  // Chosen, not multiplied by 0: a NaN that is dropped is gone.
  Vec of(Vec x, int r, int64_t i) const {
    if (limit < 0) return x;
#if EF_ISA >= 512
    const VecInt drawn = (VecInt)_mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128((const __m128i*)(bytes[r] + i)));
#elif EF_ISA >= 256
    const VecInt drawn = (VecInt)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(bytes[r] + i)));
#else
    const uint8_t* b = bytes[r] + i;
    const VecInt drawn = {b[0], b[1], b[2], b[3]};
#endif
    return drawn > limit ? x * scale : Vec{};
  }
  float of(float x, int r, int64_t i) const { return limit < 0 ? x : bytes[r][i] > limit ? x * scale : 0.0f; }
};

template <int R>
static inline void norm_fwd(const Norm& norm, const float* x, const float* residual, const int64_t* row_ids,
                            const float* weight, const float* bias, float* out, float* xhat, float* rstd) {
  const int64_t D = norm.D;
  RowsDropout<R> dropout(norm);
  Vec sum[R] = {};
  float last[R] = {};
  for (int64_t start = 0; start < D; start += kBlockColumns) {
    const int64_t end = start + kBlockColumns < D ? start + kBlockColumns : D;
    dropout.draw(norm.seed, row_ids, start);
    int64_t c = start;
    for (; c + kLanes <= end; c += kLanes) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int64_t at = r * D + c;
        const Vec z = load(residual + at) + dropout.of(load(x + at), r, c - start);
        store(xhat + at, z), sum[r] += z;
      }
    }
    for (; c < end; ++c) {
      for (int r = 0; r < R; ++r) {
        const int64_t at = r * D + c;
        xhat[at] = residual[at] + dropout.of(x[at], r, c - start);
        last[r] += xhat[at];
      }
    }
  }
  float mean[R], rest_mean[R];
  Vec rest[R] = {}, square[R] = {};
  float last_rest[R] = {}, last_square[R] = {};
  for (int r = 0; r < R; ++r) mean[r] = (sum_of(sum[r]) + last[r]) / float(D);
  int64_t c = 0;
  for (; c + kLanes <= D; c += kLanes) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec centred = load(xhat + r * D + c) - mean[r];
      rest[r] += centred, square[r] += centred * centred;
    }
  }
  for (; c < D; ++c) {
    for (int r = 0; r < R; ++r) {
      const float centred = xhat[r * D + c] - mean[r];
      last_rest[r] += centred, last_square[r] += centred * centred;
    }
  }
  for (int r = 0; r < R; ++r) {
    rest_mean[r] = (sum_of(rest[r]) + last_rest[r]) / float(D);  // what the rounding of the mean left
    const float variance = (sum_of(square[r]) + last_square[r]) / float(D) - rest_mean[r] * rest_mean[r];
    rstd[r] = 1 / sqrtf((variance < 0 ? 0 : variance) + norm.eps);
  }
  for (c = 0; c + kLanes <= D; c += kLanes) {
    const Vec w = load(weight + c), b = load(bias + c);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec normed = (load(xhat + r * D + c) - mean[r] - rest_mean[r]) * rstd[r];
      store(xhat + r * D + c, normed), store(out + r * D + c, normed * w + b);
    }
  }
  for (; c < D; ++c) {
    for (int r = 0; r < R; ++r) {
      const float normed = (xhat[r * D + c] - mean[r] - rest_mean[r]) * rstd[r];
      xhat[r * D + c] = normed, out[r * D + c] = normed * weight[c] + bias[c];
    }
  }
}

template <int R>
static inline void norm_bwd(const Norm& norm, const float* dout, const float* xhat, const float* rstd,
                            const float* weight, const int64_t* row_ids, float* dx, float* dresidual, float* dweight,
                            float* dbias) {
  const int64_t D = norm.D;
  // With g = weight dout: dz = rstd (g - mean(g) - xhat mean(g xhat)). g waits in dx, rounded as its mean has it: where
  // all cancels, as in rows of one column, the rest of an unrounded product times rstd would be anything.
  Vec sum[R] = {}, dot[R] = {};
  float mean[R] = {}, slope[R] = {};
  int64_t c = 0;
  for (; c + kLanes <= D; c += kLanes) {
    const Vec w = load(weight + c);
    Vec dw = load(dweight + c), db = load(dbias + c);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec d = load(dout + r * D + c), normed = load(xhat + r * D + c), g = d * w;
      dw += d * normed, db += d;
      sum[r] += g, dot[r] += g * normed;
      store(dx + r * D + c, g);
    }
    store(dweight + c, dw), store(dbias + c, db);
  }
  for (; c < D; ++c) {
    for (int r = 0; r < R; ++r) {
      const float d = dout[r * D + c], normed = xhat[r * D + c], g = d * weight[c];
      dweight[c] += d * normed, dbias[c] += d;
      mean[r] += g, slope[r] += g * normed;
      dx[r * D + c] = g;
    }
  }
  for (int r = 0; r < R; ++r) {
    mean[r] = (mean[r] + sum_of(sum[r])) / float(D), slope[r] = (slope[r] + sum_of(dot[r])) / float(D);
  }
  RowsDropout<R> dropout(norm);
  for (int64_t start = 0; start < D; start += kBlockColumns) {
    const int64_t end = start + kBlockColumns < D ? start + kBlockColumns : D;
    dropout.draw(norm.seed, row_ids, start);
    for (c = start; c + kLanes <= end; c += kLanes) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const int64_t at = r * D + c;
        const Vec dz = (load(dx + at) - mean[r] - load(xhat + at) * slope[r]) * rstd[r];
        store(dresidual + at, dz), store(dx + at, dropout.of(dz, r, c - start));
      }
    }
    for (; c < end; ++c) {
      for (int r = 0; r < R; ++r) {
        const int64_t at = r * D + c;
        const float dz = (dx[at] - mean[r] - xhat[at] * slope[r]) * rstd[r];
        dresidual[at] = dz, dx[at] = dropout.of(dz, r, c - start);
      }
    }
  }
}

// out = weight * xhat + bias, xhat = (z - mean) rstd, z = residual + dropout(x). out, xhat (rows, D), rstd (rows,);
// xhat may be x.
static inline void norm_rows_fwd(const Norm& norm, int64_t rows, const float* x, const float* residual,
                                 const int64_t* row_ids, const float* weight, const float* bias, float* out,
                                 float* xhat, float* rstd) {
  const int64_t D = norm.D;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    norm_fwd<4>(norm, x + r * D, residual + r * D, row_ids + r, weight, bias, out + r * D, xhat + r * D, rstd + r);
  for (; r < rows; ++r)
    norm_fwd<1>(norm, x + r * D, residual + r * D, row_ids + r, weight, bias, out + r * D, xhat + r * D, rstd + r);
}

// dresidual is the gradient of the residual, so of z, dx that of x; dweight, dbias (D,) are added to. dx may be dout.
static inline void norm_rows_bwd(const Norm& norm, int64_t rows, const float* dout, const float* xhat,
                                 const float* rstd, const float* weight, const int64_t* row_ids, float* dx,
                                 float* dresidual, float* dweight, float* dbias) {
  const int64_t D = norm.D;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    norm_bwd<4>(norm, dout + r * D, xhat + r * D, rstd + r, weight, row_ids + r, dx + r * D, dresidual + r * D, dweight,
                dbias);
  for (; r < rows; ++r)
    norm_bwd<1>(norm, dout + r * D, xhat + r * D, rstd + r, weight, row_ids + r, dx + r * D, dresidual + r * D, dweight,
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
