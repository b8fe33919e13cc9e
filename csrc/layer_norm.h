// LayerNorm(residual + dropout(x)) of contiguous rows and its gradients, on one thread, for ops to call while the rows
// are in cache; see electra_fast/ops/dropout_add_layer_norm.py.
//
// One row is processed after the other: memory is fastest if it is read in order (several rows at once took twice the
// time where they were not in cache). A sum is kept in kChains parts, since each addition to one would wait for the one
// before it.
#pragma once

#include <math.h>

#include "dropout.h"
#include "rows.h"
#include "vec.h"

namespace ef::EF_NS {

constexpr int kChains = 4;
static_assert(kBlockColumns % (kChains * kLanes) == 0, "a block of dropout is whole rounds of the chains");

// Calls body(c, chain) for each whole vector of columns from `start` to `end`; returns the first column beyond them.
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

// One row of norm_rows_fwd.
static inline void norm_fwd(const float* x, const float* residual, int64_t D, const Affine<const float>& norm,
                            float eps, const Dropout& rule, float* out, const Normed<float>& kept) {
  float* xhat = kept.xhat;
  RowDropout dropout(rule.threshold);
  Vec sum[kChains] = {};
  float last = 0;
  for (int64_t start = 0; start < D; start += kBlockColumns) {
    const int64_t end = smaller(D, start + kBlockColumns);
    dropout.draw(rule.seed, *rule.row_ids, start);
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
  const float rest_mean = (sum_of(rest) + last_rest) / float(D);  // the mean's rounding error
  const float variance = (sum_of(square) + last_square) / float(D) - rest_mean * rest_mean;
  const float scale = 1 / sqrtf((variance < 0 ? 0 : variance) + eps);
  *kept.rstd = scale;
  const float *weight = norm.weight, *bias = norm.bias;
  for (c = 0; c + kLanes <= D; c += kLanes) {
    const Vec normed = (load(xhat + c) - mean - rest_mean) * scale;
    store(xhat + c, normed), store(out + c, normed * load(weight + c) + load(bias + c));
  }
  for (; c < D; ++c) {
    const float normed = (xhat[c] - mean - rest_mean) * scale;
    xhat[c] = normed, out[c] = normed * weight[c] + bias[c];
  }
}

// One row of norm_rows_bwd.
static inline void norm_bwd(const float* dout, int64_t D, const float* weight, const Dropout& rule,
                            const Normed<const float>& kept, float* dx, float* dresidual, const Affine<float>& sums) {
  const float *xhat = kept.xhat, rstd = *kept.rstd;
  float *dweight = sums.weight, *dbias = sums.bias;
  // With g = weight dout: dz = rstd (g - mean(g) - xhat mean(g xhat)). g is stored in dx, so that it is rounded as in
  // its mean: where all cancels, as in rows of one column, the rounding error of g times rstd could be arbitrarily
  // large.
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
  RowDropout dropout(rule.threshold);
  for (int64_t start = 0; start < D; start += kBlockColumns) {
    const int64_t end = smaller(D, start + kBlockColumns);
    dropout.draw(rule.seed, *rule.row_ids, start);
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

// What a norm saves of the rows from `first` on.
template <class Float>
static inline Normed<Float> from_row(const Normed<Float>& kept, int64_t first, int64_t D) {
  return {kept.xhat + first * D, kept.rstd + first};
}

// out = weight * xhat + bias, xhat = (z - mean) rstd, z = residual + dropout(x); out and xhat (rows, D), rstd (rows,).
// xhat may be x or out.
static inline void norm_rows_fwd(const Rows& x, const float* residual, const Affine<const float>& norm, float eps,
                                 const Dropout& dropout, float* out, const Normed<float>& kept) {
  const int64_t D = x.width;
  for (int64_t r = 0; r < x.length; ++r)
    norm_fwd(x.data + r * D, residual + r * D, D, norm, eps, from_row(dropout, r), out + r * D, from_row(kept, r, D));
}

// dresidual is the gradient of the residual, which is that of z; dx that of x, and may be dout. The gradients of the
// norm's weight and bias (D,) are added to `sums`.
static inline void norm_rows_bwd(const Rows& dout, const float* weight, const Dropout& dropout,
                                 const Normed<const float>& kept, float* dx, float* dresidual,
                                 const Affine<float>& sums) {
  const int64_t D = dout.width;
  for (int64_t r = 0; r < dout.length; ++r)
    norm_bwd(dout.data + r * D, D, weight, from_row(dropout, r), from_row(kept, r, D), dx + r * D, dresidual + r * D,
             sums);
}

namespace {

// norm_rows_bwd of blocks of rows on several threads. The gradients of the parameters are summed over a few rows first,
// since one sum over all rows would round worse.
struct NormGradient {
  const int64_t D;
  Sum dweight, dbias;
  Floats shares;  // each part's sums over a few rows, of the weight and the bias

  NormGradient(int64_t D, const Affine<float>& gradient, int64_t parts)
      : D(D), dweight(gradient.weight, D, parts), dbias(gradient.bias, D, parts), shares(parts * 2 * D) {}
  void start(int64_t part) { dweight.start(part), dbias.start(part); }
  void rows(int64_t part, const Rows& dout, const float* weight, const Dropout& dropout,
            const Normed<const float>& kept, float* dx, float* dresidual) {
    float *own = shares.at + part * 2 * D, *dw = dweight.of(part), *db = dbias.of(part);
    for (int64_t r = 0; r < dout.length; r += 64) {
      const int64_t at = r * D;
      memset(own, 0, size_t(2 * D) * sizeof(float));
      norm_rows_bwd({dout.data + at, smaller(64, dout.length - r), D}, weight, from_row(dropout, r),
                    from_row(kept, r, D), dx + at, dresidual + at, {own, own + D});
      for (int64_t d = 0; d < D; ++d) dw[d] += own[d], db[d] += own[D + d];
    }
  }
  void finish() { dweight.finish(), dbias.finish(); }
};

}  // namespace
}  // namespace ef::EF_NS
