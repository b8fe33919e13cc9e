// LayerNorm(residual + dropout(x)) and its gradients: chunks of rows (layer_norm.h) are divided among the threads; see
// electra_fast/ops/dropout_add_layer_norm.py.
#include "layer_norm.h"
#include "ops.h"

namespace ef::EF_NS {
namespace {

constexpr int64_t kNormChunk = 64;  // rows whose parameter gradients are summed together

}  // namespace

void dropout_add_layer_norm_fwd(const Rows& x, const float* residual, const Affine<const float>& norm, double eps,
                                const Dropout& dropout, float* out, const Normed<float>& kept, Threads threads) {
  const int64_t D = x.width, chunks = ceiling(x.length, kNormChunk);
  parallel(chunks, x.length * D < 32768 ? 1 : threads, [&](int64_t chunk) {
    const int64_t first = chunk * kNormChunk, rows = smaller(kNormChunk, x.length - first), at = first * D;
    norm_rows_fwd({x.data + at, rows, D}, residual + at, norm, float(eps), from_row(dropout, first), out + at,
                  from_row(kept, first, D));
  });
}

void dropout_add_layer_norm_bwd(const Rows& dout, const float* weight, const Dropout& dropout,
                                const Normed<const float>& kept, float* dx, float* dresidual,
                                const Affine<float>& dnorm, Threads threads) {
  const int64_t D = dout.width, chunks = ceiling(dout.length, kNormChunk);
  Floats shares(chunks * 2 * D);  // for each chunk, its sums for the gradients of weight and bias, side by side
  parallel(chunks, dout.length * D < 32768 ? 1 : threads, [&](int64_t chunk) {
    const int64_t first = chunk * kNormChunk, rows = smaller(kNormChunk, dout.length - first), at = first * D;
    float* share = shares.at + chunk * 2 * D;
    memset(share, 0, size_t(2 * D) * sizeof(float));
    norm_rows_bwd({dout.data + at, rows, D}, weight, from_row(dropout, first), from_row(kept, first, D), dx + at,
                  dresidual + at, {share, share + D});
  });
  Memory<double> sums(2 * D);  // in double: in float, similar chunks would all round in one direction
  for (int64_t c = 0; c < 2 * D; ++c) sums.at[c] = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk)  // in order, so the bits do not depend on the threads
    for (int64_t c = 0; c < 2 * D; ++c) sums.at[c] += shares.at[chunk * 2 * D + c];
  for (int64_t c = 0; c < D; ++c) dnorm.weight[c] = float(sums.at[c]), dnorm.bias[c] = float(sums.at[D + c]);
}

}  // namespace ef::EF_NS
