// logit = w gelu(W x + b) + c of each token, its binary cross-entropy, and the gradients; see
// electra_fast/ops/discriminator_head.py.
#include <math.h>

#include "gelu.h"
#include "linear.h"

namespace ef::EF_NS {

// inner (T, D) receives the argument of the GELU, for the backward.
void discriminator_head_fwd(const Rows& hidden, const DiscriminatorWeights<const float>& weights, const uint8_t* labels,
                            float* loss, float* logits, float* inner, Threads threads) {
  const int64_t D = hidden.width;
  const Parts parts(hidden.length, D, 2 * D * D, threads);
  const Weight dense(weights.dense.weight, D, D, false, parts);
  Floats scratch(parts.count * D);
  parallel(parts.count, parts.count, [&](int64_t part) {
    float* activated = scratch.at + part * D;
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      dense.product(part, hidden.data + first * D, D, rows, inner + first * D, D, weights.dense.bias);
      for (int64_t t = first; t < first + rows; ++t) {
        gelu_rows(inner + t * D, D, 1, D, activated, D);
        const float x = dot(activated, weights.out.weight, D) + weights.out.bias[0];
        logits[t] = x;
        loss[t] = (x > 0 ? x : 0) - (labels[t] ? x : 0) + log1pf(expf(-fabsf(x)));  // NaN for NaN
      }
    });
  });
}

void discriminator_head_bwd(const float* dloss, const float* dlogits, const Rows& hidden,
                            const DiscriminatorWeights<const float>& weights, const uint8_t* labels,
                            const float* logits, const float* inner, float* dhidden,
                            const DiscriminatorWeights<float>& dweights, Threads threads) {
  const int64_t D = hidden.width;
  const Parts parts(hidden.length, D, 6 * D * D, threads);
  LinearGradient dense(weights.dense.weight, D, D, dweights.dense, parts);
  Sum out_weights(dweights.out.weight, D, parts.count), out_biases(dweights.out.bias, 1, parts.count);
  const int64_t ld = row_stride(D), packed = packed_size(1, D), own = parts.height * ld + packed + D;
  Floats scratch(parts.count * own);
  parallel(parts.count, parts.count, [&](int64_t part) {
    float *dinner = scratch.at + part * own, *activated = dinner + parts.height * ld, *few = activated + packed;
    float *dweight = out_weights.of(part), *dbias = out_biases.of(part);
    dense.start(part), out_weights.start(part), out_biases.start(part);
    double sum = 0;  // in double, since the gradients largely cancel
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      for (int64_t r0 = 0; r0 < rows; r0 += 16) {
        memset(few, 0, size_t(D) * sizeof(float));  // dweight of 16 rows, since one sum over all rows would round worse
        for (int64_t r = r0; r < smaller(r0 + 16, rows); ++r) {
          const int64_t t = first + r;
          const double exact = dlogits[t] + dloss[t] * (1 / (1 + exp(-double(logits[t]))) - double(labels[t]));
          const float g = float(exact);
          float* row = dinner + r * ld;
          for (int64_t d = 0; d < D; ++d) row[d] = g * weights.out.weight[d];
          gelu_rows_bwd(inner + t * D, D, row, D, 1, D, row, D, activated);
          for (int64_t d = 0; d < D; ++d) few[d] += g * activated[d];
          sum += exact;
        }
        for (int64_t d = 0; d < D; ++d) dweight[d] += few[d];
      }
      dense.weight.product(part, dinner, ld, rows, dhidden + first * D, D);
      dense.add(part, hidden.data + first * D, D, dinner, ld, rows);
    });
    dbias[0] = float(sum);
  });
  dense.finish(), out_weights.finish(), out_biases.finish();
}

}  // namespace ef::EF_NS
