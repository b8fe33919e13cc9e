// LayerNorm(x + dropout(W2 gelu(W1 x + b1) + b2)) and its gradients; see electra_fast/ops/ffn_block.py.
//
// A block of rows passes through both products, the GELU and the norm before the next one comes: what is F wide stays
// in the second cache, but for the argument of the GELU, the one thing of that width that the backward needs.
#include "gelu.h"
#include "linear.h"
#include "norm.h"

namespace ef::EF_NS {

// inner (T, F), the argument of the GELU, may be null where no backward follows.
void ffn_block_fwd(const float* x, const float* up_weight, const float* up_bias, const float* down_weight,
                   const float* down_bias, const float* norm_weight, const float* norm_bias, const int64_t* row_ids,
                   int64_t T, int64_t D, int64_t F, int64_t seed, double eps, int threshold, float* out, float* inner,
                   float* xhat, float* rstd, Threads threads) {
  const Norm norm{D, float(eps), threshold, seed};
  const Parts parts(T, F, 4 * D * F, threads);
  const Weight up(up_weight, F, D, false, parts), down(down_weight, D, F, false, parts);
  const int64_t ld = row_stride(F), own = parts.height * (ld + D);
  Floats scratch(parts.count * own);
#pragma omp parallel for num_threads(int(parts.count)) schedule(static)
  for (int64_t part = 0; part < parts.count; ++part) {
    float *activated = scratch.at + part * own, *added = activated + parts.height * ld;
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      const int64_t at = first * D;
      up.product(part, x + at, D, rows, activated, ld, up_bias);
      gelu_rows(activated, ld, rows, F, activated, ld, inner ? inner + first * F : nullptr);
      down.product(part, activated, ld, rows, added, D, down_bias);
      norm_rows_fwd(norm, rows, added, x + at, row_ids + first, norm_weight, norm_bias, out + at, xhat + at,
                    rstd + first);
    });
  }
}

void ffn_block_bwd(const float* dout, const float* x, const float* up_weight, const float* down_weight,
                   const float* norm_weight, const int64_t* row_ids, const float* inner, const float* xhat,
                   const float* rstd, int64_t T, int64_t D, int64_t F, int64_t seed, int threshold, float* dx,
                   float* dup_weight, float* dup_bias, float* ddown_weight, float* ddown_bias, float* dnorm_weight,
                   float* dnorm_bias, Threads threads) {
  const Parts parts(T, F, 12 * D * F, threads);
  LinearGradient up(up_weight, F, D, dup_weight, dup_bias, parts);
  LinearGradient down(down_weight, D, F, ddown_weight, ddown_bias, parts);
  NormGradient norm({D, 0, threshold, seed}, dnorm_weight, dnorm_bias, parts.count);
  const int64_t ld = row_stride(F), own = parts.height * (ld + D);
  Floats scratch(parts.count * own);
#pragma omp parallel for num_threads(int(parts.count)) schedule(static)
  for (int64_t part = 0; part < parts.count; ++part) {
    float *dinner = scratch.at + part * own, *dadded = dinner + parts.height * ld;
    up.start(part), down.start(part), norm.start(part);
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      const int64_t at = first * D;
      norm.rows(part, rows, dout + at, xhat + at, rstd + first, norm_weight, row_ids + first, dadded, dx + at);
      down.weight.product(part, dadded, D, rows, dinner, ld);
      gelu_rows_bwd(inner + first * F, F, dinner, ld, rows, F, dinner, ld, down.block(part));
      down.add_packed(part, dadded, D, rows);
      up.weight.product(part, dinner, ld, rows, dx + at, D, dx + at, D);
      up.add(part, x + at, D, dinner, ld, rows);
    });
  }
  up.finish(), down.finish(), norm.finish();
}

}  // namespace ef::EF_NS
