// LayerNorm(x + dropout(Wo attention(Wqkv x + bqkv) + bo)) and its gradients; see electra_fast/ops/attention_block.py.
//
// The queries (R, D) come from x itself or from some of its rows; keys and values, side by side in (T, 2 D), come from
// all rows of x.
#include "layer_norm.h"
#include "linear.h"
#include "ops.h"

namespace ef::EF_NS {
namespace {

// Queries, keys and values as attention takes them.
static Attention attention_of(const AttentionBlock& block, const float* queries, const float* keys_values) {
  const int64_t D = block.x.width, head = D / block.H;
  return {{queries, D, head},
          {keys_values, 2 * D, head},
          {keys_values + D, 2 * D, head},
          block.sequences,
          block.H,
          head,
          1 / sqrt(double(head)),
          {block.dropout.row_ids, block.dropout.seed, block.attention_threshold},
          false};
}

// The keys' and values' part of the projection; the queries' part comes first.
template <class Float>
static Affine<Float> of_keys_values(const Affine<Float>& qkv, int64_t D) {
  return {qkv.weight + D * D, qkv.bias + D};
}

}  // namespace

void attention_block_fwd(const AttentionBlock& block, const AttentionWeights<const float>& weights, double eps,
                         float* out, const AttentionKept<float>& kept, Threads threads) {
  const int64_t D = block.x.width, R = block.queries.length;
  linear_fwd(block.queries, weights.qkv, D, nullptr, kept.queries, threads);
  linear_fwd(block.x, of_keys_values(weights.qkv, D), 2 * D, nullptr, kept.keys_values, threads);
  attention_fwd(attention_of(block, kept.queries, kept.keys_values), {kept.read, D, D / block.H}, kept.lse, threads);

  const Parts parts(R, D, 2 * D * D, threads);
  const Weight weight(weights.out.weight, D, D, false, parts);
  Floats scratch(parts.count * parts.height * D);
  parallel(parts.count, parts.count, [&](int64_t part) {
    float* added = scratch.at + part * parts.height * D;
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      const int64_t at = first * D;
      weight.product(part, kept.read + at, D, rows, added, D, weights.out.bias);
      norm_rows_fwd({added, rows, D}, block.queries.data + at, weights.norm, float(eps), from_row(block.dropout, first),
                    out + at, from_row(kept.norm, first, D));
    });
  });
}

// dqueries (R, D) may be dx itself, if all rows are queries: then both gradients of a row, as a query and as a key and
// value, are added up there.
void attention_block_bwd(const float* dout, const AttentionBlock& block, const AttentionWeights<const float>& weights,
                         const AttentionKept<const float>& kept, float* dx, float* dqueries,
                         const AttentionWeights<float>& dweights, Threads threads) {
  const int64_t D = block.x.width, T = block.x.length, R = block.queries.length, head = D / block.H;
  Floats dq(R * D), dkeys_values(T * 2 * D), dread(R * D);
  {
    const Parts parts(R, D, 6 * D * D, threads);
    LinearGradient gradient(weights.out.weight, D, D, dweights.out, parts);
    NormGradient norm(D, dweights.norm, parts.count);
    Floats scratch(parts.count * parts.height * D);
    parallel(parts.count, parts.count, [&](int64_t part) {
      float* dadded = scratch.at + part * parts.height * D;
      gradient.start(part), norm.start(part);
      parts.blocks(part, [&](int64_t first, int64_t rows) {
        const int64_t at = first * D;
        norm.rows(part, {dout + at, rows, D}, weights.norm.weight, from_row(block.dropout, first),
                  from_row(kept.norm, first, D), dadded, dqueries + at);
        gradient.weight.product(part, dadded, D, rows, dread.at + at, D);
        gradient.add(part, kept.read + at, D, dadded, D, rows);
      });
    });
    gradient.finish(), norm.finish();
  }
  attention_bwd({dread.at, D, head}, attention_of(block, kept.queries, kept.keys_values), kept.lse, {dq.at, D, head},
                {dkeys_values.at, 2 * D, head}, {dkeys_values.at + D, 2 * D, head}, threads);
  linear_bwd(dq.at, block.queries, weights.qkv.weight, D, nullptr, true, dqueries, dweights.qkv, threads);
  linear_bwd(dkeys_values.at, block.x, of_keys_values(weights.qkv, D).weight, 2 * D, nullptr, dqueries == dx, dx,
             of_keys_values(dweights.qkv, D), threads);
}

}  // namespace ef::EF_NS
