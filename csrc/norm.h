// LayerNorm(residual + dropout(x + x_bias)) of contiguous rows and its gradients, by one thread, for ops to call while
// the rows are in cache; see electra_fast/ops/dropout_add_layer_norm.py.
#pragma once

#include <math.h>

#include "philox.h"
#include "vec.h"

namespace ef::EF_NS {

struct Norm {
  int64_t D;
  float eps;
  int threshold;  // bytes below it are dropped: 0 keeps all, 256 drops all
  int64_t seed;
};

// Which of up to kBlockColumns columns of a row dropout keeps, and by what it scales them.
struct KeptColumns {
  const float scale;
  const int limit;  // byte >= threshold as byte > limit: -1 keeps all
  uint8_t bytes[kBlockColumns];

  explicit KeptColumns(const Norm& norm)
      : scale(norm.threshold < 256 ? 256.0f / float(256 - norm.threshold) : 1.0f), limit(norm.threshold - 1) {}

  void draw(int64_t seed, const int64_t* row_id, int64_t column) {
    if (limit >= 0) philox_block(seed, *row_id, uint32_t(column / 16), 0, bytes);
  }
  // Chosen, not multiplied by 0: a NaN that is dropped is gone.
  Vec of(Vec x, int64_t i) const {
    if (limit < 0) return x;
    typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
    Bytes drawn;
    memcpy(&drawn, bytes + i, sizeof drawn);
    return __builtin_convertvector(drawn, VecInt) > limit ? x * scale : Vec{};
  }
  float of(float x, int64_t i) const { return limit < 0 ? x : bytes[i] > limit ? x * scale : 0.0f; }
};

// out = weight * xhat + bias, xhat = (z - mean) rstd, z = residual + dropout(x + x_bias); x_bias may be null. xhat may
// be x. xhat, out (rows, D), rstd (rows,).
static inline void norm_rows_fwd(const Norm& norm, int64_t rows, const float* x, const float* x_bias,
                                 const float* residual, const int64_t* row_ids, const float* weight, const float* bias,
                                 float* out, float* xhat, float* rstd) {
  const int64_t D = norm.D;
  KeptColumns kept(norm);
  for (int64_t r = 0; r < rows; ++r, x += D, residual += D, xhat += D, out += D) {
    Vec sum = {};
    float last = 0;
    for (int64_t start = 0; start < D; start += kBlockColumns) {
      const int64_t end = start + kBlockColumns < D ? start + kBlockColumns : D;
      kept.draw(norm.seed, row_ids + r, start);
      int64_t c = start;
      for (; c + kLanes <= end; c += kLanes) {
        const Vec biased = x_bias ? load(x + c) + load(x_bias + c) : load(x + c);
        const Vec z = load(residual + c) + kept.of(biased, c - start);
        store(xhat + c, z), sum += z;
      }
      for (; c < end; ++c) {
        const float z = residual[c] + kept.of(x_bias ? x[c] + x_bias[c] : x[c], c - start);
        xhat[c] = z, last += z;
      }
    }
    const float mean = (sum_of(sum) + last) / float(D);
    // What the rounding of the mean left comes out as the mean of the differences.
    Vec rest = {}, square = {};
    float last_rest = 0, last_square = 0;
    int64_t c = 0;
    for (; c + kLanes <= D; c += kLanes) {
      const Vec centred = load(xhat + c) - mean;
      rest += centred, square += centred * centred;
    }
    for (; c < D; ++c) {
      const float centred = xhat[c] - mean;
      last_rest += centred, last_square += centred * centred;
    }
    const float offset = (sum_of(rest) + last_rest) / float(D);
    const float variance = (sum_of(square) + last_square) / float(D) - offset * offset;
    const float scale = 1 / sqrtf((variance < 0 ? 0 : variance) + norm.eps);
    for (c = 0; c + kLanes <= D; c += kLanes) {
      const Vec normed = (load(xhat + c) - mean - offset) * scale;
      store(xhat + c, normed), store(out + c, normed * load(weight + c) + load(bias + c));
    }
    for (; c < D; ++c) xhat[c] = (xhat[c] - mean - offset) * scale, out[c] = xhat[c] * weight[c] + bias[c];
    rstd[r] = scale;
  }
}

// R rows at once share the traffic of the parameters' gradients.
template <int R>
static inline void norm_bwd(const Norm& norm, const float* dout, const float* xhat, const float* rstd,
                            const float* weight, const int64_t* row_ids, float* dx, float* dresidual, float* dweight,
                            float* dbias, float* dx_bias) {
  const int64_t D = norm.D;
  // With g = weight dout: dz = rstd (g - mean(g) - xhat mean(g xhat)).
  Vec sum[R] = {}, dot[R] = {};
  float mean[R] = {}, slope[R] = {};
  int64_t c = 0;
  for (; c + kLanes <= D; c += kLanes) {
    const Vec w = load(weight + c);
    Vec dw = load(dweight + c), db = load(dbias + c);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Vec d = load(dout + r * D + c), normed = load(xhat + r * D + c);
      dw += d * normed, db += d;
      sum[r] += d * w, dot[r] += d * w * normed;
    }
    store(dweight + c, dw), store(dbias + c, db);
  }
  for (; c < D; ++c) {
    for (int r = 0; r < R; ++r) {
      const float d = dout[r * D + c], normed = xhat[r * D + c];
      dweight[c] += d * normed, dbias[c] += d;
      mean[r] += d * weight[c], slope[r] += d * weight[c] * normed;
    }
  }
  for (int r = 0; r < R; ++r) {
    mean[r] = (mean[r] + sum_of(sum[r])) / float(D), slope[r] = (slope[r] + sum_of(dot[r])) / float(D);
  }

  KeptColumns kept(norm);
  for (int64_t start = 0; start < D; start += kBlockColumns) {
    const int64_t end = start + kBlockColumns < D ? start + kBlockColumns : D;
    for (int r = 0; r < R; ++r) {
      const float* d = dout + r * D;
      const float* normed = xhat + r * D;
      kept.draw(norm.seed, row_ids + r, start);
      for (c = start; c + kLanes <= end; c += kLanes) {
        const Vec dz = (load(d + c) * load(weight + c) - mean[r] - load(normed + c) * slope[r]) * rstd[r];
        const Vec through = kept.of(dz, c - start);
        store(dresidual + r * D + c, dz), store(dx + r * D + c, through);
        if (dx_bias) store(dx_bias + c, load(dx_bias + c) + through);
      }
      for (; c < end; ++c) {
        const float dz = (d[c] * weight[c] - mean[r] - normed[c] * slope[r]) * rstd[r];
        const float through = kept.of(dz, c - start);
        dresidual[r * D + c] = dz, dx[r * D + c] = through;
        if (dx_bias) dx_bias[c] += through;
      }
    }
  }
}

// dresidual is the gradient of the residual, so of z, dx that of x; dweight, dbias, dx_bias (D,) are added to, dx_bias
// may be null. dx may be dout.
static inline void norm_rows_bwd(const Norm& norm, int64_t rows, const float* dout, const float* xhat,
                                 const float* rstd, const float* weight, const int64_t* row_ids, float* dx,
                                 float* dresidual, float* dweight, float* dbias, float* dx_bias) {
  const int64_t D = norm.D;
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    norm_bwd<4>(norm, dout + r * D, xhat + r * D, rstd + r, weight, row_ids + r, dx + r * D, dresidual + r * D, dweight,
                dbias, dx_bias);
  for (; r < rows; ++r)
    norm_bwd<1>(norm, dout + r * D, xhat + r * D, rstd + r, weight, row_ids + r, dx + r * D, dresidual + r * D, dweight,
                dbias, dx_bias);
}

}  // namespace ef::EF_NS
