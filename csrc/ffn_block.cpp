// LayerNorm(x + dropout(W2 gelu(W1 x + b1) + b2)) and its gradients; see electra_fast/ops/ffn_block.py.
//
// Each block of rows goes through both products, the GELU and the norm before the next block starts, so its matrix of
// width F stays in the L2 cache. Of that width only the GELU's argument is saved, which the backward needs.
#include "gelu.h"
#include "layer_norm.h"
#include "linear.h"

namespace ef::EF_NS {

void ffn_block_fwd(const Rows& x, const FfnWeights<const float>& weights, int64_t F, double eps, const Dropout& dropout,
                   float* out, const FfnKept<float>& kept, Threads threads) {
  const int64_t D = x.width;
  const Parts parts(x.length, F, 4 * D * F, threads);
  const Weight up(weights.up.weight, F, D, false, parts), down(weights.down.weight, D, F, false, parts);
  const int64_t ld = row_stride(F), own = parts.height * (ld + D);
  Floats scratch(parts.count * own);
  parallel(parts.count, parts.count, [&](int64_t part) {
    float *activated = scratch.at + part * own, *added = activated + parts.height * ld;
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      const int64_t at = first * D;
      up.product(part, x.data + at, D, rows, activated, ld, weights.up.bias);
      gelu_rows(activated, ld, rows, F, activated, ld, kept.inner ? kept.inner + first * F : nullptr);
      down.product(part, activated, ld, rows, added, D, weights.down.bias);
      norm_rows_fwd({added, rows, D}, x.data + at, weights.norm, float(eps), from_row(dropout, first), out + at,
                    from_row(kept.norm, first, D));
    });
  });
}

void ffn_block_bwd(const float* dout, const Rows& x, const FfnWeights<const float>& weights, int64_t F,
                   const Dropout& dropout, const FfnKept<const float>& kept, float* dx,
                   const FfnWeights<float>& dweights, Threads threads) {
  const int64_t D = x.width;
  const Parts parts(x.length, F, 12 * D * F, threads);
  LinearGradient up(weights.up.weight, F, D, dweights.up, parts);
  LinearGradient down(weights.down.weight, D, F, dweights.down, parts);
  NormGradient norm(D, dweights.norm, parts.count);
  const int64_t ld = row_stride(F), own = parts.height * (ld + D);
  Floats scratch(parts.count * own);
  parallel(parts.count, parts.count, [&](int64_t part) {
    float *dinner = scratch.at + part * own, *dadded = dinner + parts.height * ld;
    up.start(part), down.start(part), norm.start(part);
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      const int64_t at = first * D;
      norm.rows(part, {dout + at, rows, D}, weights.norm.weight, from_row(dropout, first),
                from_row(kept.norm, first, D), dadded, dx + at);
      down.weight.product(part, dadded, D, rows, dinner, ld);
      gelu_rows_bwd(kept.inner + first * F, F, dinner, ld, rows, F, dinner, ld, down.block(part));
      down.add_packed(part, dadded, D, rows);
      up.weight.product(part, dinner, ld, rows, dx + at, D, dx + at, D);
      up.add(part, x.data + at, D, dinner, ld, rows);
    });
  });
  up.finish(), down.finish(), norm.finish();
}

}  // namespace ef::EF_NS
