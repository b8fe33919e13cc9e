// LayerNorm(x + dropout(Wo attention(Wqkv x + bqkv) + bo)) and its gradients; see electra_fast/ops/attention_block.py.
//
// The rows that ask are x itself or some of its rows: queries (R, D) come from them, keys and values, side by side in
// (T, 2 D), from all rows.
#include "linear.h"
#include "norm.h"
#include "ops.h"

namespace ef::EF_NS {

void attention_block_fwd(const float* x, const float* asking, const float* qkv_weight, const float* qkv_bias,
                         const float* out_weight, const float* out_bias, const float* norm_weight,
                         const float* norm_bias, const int32_t* cu_rows, const int32_t* cu_seqlens,
                         const int64_t* row_ids, int64_t N, int64_t R, int64_t T, int64_t H, int64_t D, int64_t seed,
                         double eps, int attention_threshold, int threshold, float* out, float* queries,
                         float* keys_values, float* read, float* lse, float* xhat, float* rstd, Threads threads) {
  linear_fwd(asking, qkv_weight, qkv_bias, R, D, D, nullptr, queries, threads);
  linear_fwd(x, qkv_weight + D * D, qkv_bias + D, T, D, 2 * D, nullptr, keys_values, threads);
  attention_fwd(queries, D, D / H, keys_values, 2 * D, D / H, keys_values + D, 2 * D, D / H, cu_rows, cu_seqlens, N, H,
                D / H, row_ids, seed, attention_threshold, 1 / sqrt(double(D / H)), read, D, D / H, lse, threads);

  const Norm norm{D, float(eps), threshold, seed};
  const Parts parts(R, D, 2 * D * D, threads);
  const Weight weight(out_weight, D, D, false, parts);
  Floats scratch(parts.count * parts.height * D);
#pragma omp parallel for num_threads(int(parts.count)) schedule(static)
  for (int64_t part = 0; part < parts.count; ++part) {
    float* added = scratch.at + part * parts.height * D;
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      const int64_t at = first * D;
      weight.product(part, read + at, D, rows, added, D, out_bias);
      norm_rows_fwd(norm, rows, added, asking + at, row_ids + first, norm_weight, norm_bias, out + at, xhat + at,
                    rstd + first);
    });
  }
}

// dasking (R, D) may be dx: then what the rows give as asking and as read is added up there.
void attention_block_bwd(const float* dout, const float* x, const float* asking, const float* qkv_weight,
                         const float* out_weight, const float* norm_weight, const int32_t* cu_rows,
                         const int32_t* cu_seqlens, const int64_t* row_ids, int64_t N, int64_t R, int64_t T, int64_t H,
                         int64_t D, int64_t seed, int attention_threshold, int threshold, const float* queries,
                         const float* keys_values, const float* read, const float* lse, const float* xhat,
                         const float* rstd, float* dx, float* dasking, float* dqkv_weight, float* dqkv_bias,
                         float* dout_weight, float* dout_bias, float* dnorm_weight, float* dnorm_bias,
                         Threads threads) {
  Floats dqueries(R * D), dkeys_values(T * 2 * D), dread(R * D);
  {
    const Parts parts(R, D, 6 * D * D, threads);
    LinearGradient gradient(out_weight, D, D, dout_weight, dout_bias, parts);
    NormGradient norm({D, 0, threshold, seed}, dnorm_weight, dnorm_bias, parts.count);
    Floats scratch(parts.count * parts.height * D);
#pragma omp parallel for num_threads(int(parts.count)) schedule(static)
    for (int64_t part = 0; part < parts.count; ++part) {
      float* dadded = scratch.at + part * parts.height * D;
      gradient.start(part), norm.start(part);
      parts.blocks(part, [&](int64_t first, int64_t rows) {
        const int64_t at = first * D;
        norm.rows(part, rows, dout + at, xhat + at, rstd + first, norm_weight, row_ids + first, dadded, dasking + at);
        gradient.weight.product(part, dadded, D, rows, dread.at + at, D);
        gradient.add(part, read + at, D, dadded, D, rows);
      });
    }
    gradient.finish(), norm.finish();
  }
  attention_bwd(queries, D, D / H, keys_values, 2 * D, D / H, keys_values + D, 2 * D, D / H, cu_rows, cu_seqlens, N, H,
                D / H, row_ids, seed, attention_threshold, 1 / sqrt(double(D / H)), lse, dread.at, D, D / H,
                dqueries.at, D, D / H, dkeys_values.at, 2 * D, D / H, dkeys_values.at + D, 2 * D, D / H, threads);
  linear_bwd(dqueries.at, asking, qkv_weight, nullptr, R, D, D, true, dasking, dqkv_weight, dqkv_bias, threads);
  linear_bwd(dkeys_values.at, x, qkv_weight + D * D, nullptr, T, D, 2 * D, dasking == dx, dx, dqkv_weight + D * D,
             dqkv_bias + D, threads);
}

}  // namespace ef::EF_NS
