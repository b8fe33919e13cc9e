// The layers of an encoder, each an attention_block and then an ffn_block; see electra_fast/ops/encoder.py.
#include "ops.h"
#include "rows.h"

namespace ef::EF_NS {
namespace {

// One layer's input x (T, D) and its queries: all rows of x, or in the last layer perhaps only some of them, gathered.
struct LayerRows {
  const bool fewer;
  const Floats gathered;
  AttentionBlock block;

  LayerRows(const Encoder& encoder, const float* x, int64_t layer)
      : fewer(layer + 1 == encoder.L && encoder.last.offsets), gathered(fewer ? encoder.last.R * encoder.x.width : 0) {
    const int64_t D = encoder.x.width;
    const Queries& last = encoder.last;
    const Rows all = {x, encoder.x.length, D};
    for (int64_t r = 0; fewer && r < last.R; ++r)
      memcpy(gathered.at + r * D, x + last.rows[r] * D, size_t(D) * sizeof(float));
    block = {all,
             fewer ? Rows{gathered.at, last.R, D} : all,
             {fewer ? last.offsets : encoder.cu_seqlens, encoder.cu_seqlens, encoder.N},
             encoder.H,
             {fewer ? last.row_ids : encoder.row_ids, encoder.seeds[2 * layer], encoder.threshold},
             encoder.attention_threshold};
  }
  // The FFN block's dropout has a seed of its own.
  Dropout ffn_dropout(const Encoder& encoder, int64_t layer) const {
    return {block.dropout.row_ids, encoder.seeds[2 * layer + 1], encoder.threshold};
  }
};

}  // namespace

void encoder_fwd(const Encoder& encoder, const Layer<const float>* layers, const LayerKept<float>* kept,
                 Threads threads) {
  const float* x = encoder.x.data;
  for (int64_t i = 0; i < encoder.L; ++i) {
    const LayerKept<float>& k = kept[i];
    const LayerRows rows(encoder, x, i);
    attention_block_fwd(rows.block, layers[i].attention, encoder.eps, k.between, k.attention, threads);
    ffn_block_fwd({k.between, rows.block.queries.length, encoder.x.width}, layers[i].ffn, encoder.F, encoder.eps,
                  rows.ffn_dropout(encoder, i), k.out, k.ffn, threads);
    x = k.out;
  }
}

// dx (T, D) holds the gradient of one layer's output at a time, and is overwritten by that of its input.
void encoder_bwd(const float* dout, const Encoder& encoder, const Layer<const float>* layers,
                 const LayerKept<const float>* kept, const Layer<float>* dlayers, float* dx, Threads threads) {
  const int64_t D = encoder.x.width;
  const Floats dqueries(encoder.last.offsets ? encoder.last.R * D : 0);
  for (int64_t i = encoder.L - 1; i >= 0; --i) {
    const LayerKept<const float>& k = kept[i];
    const LayerRows rows(encoder, i > 0 ? kept[i - 1].out : encoder.x.data, i);
    float* d = rows.fewer ? dqueries.at : dx;  // of the rows between the blocks, then of the queries
    ffn_block_bwd(i + 1 == encoder.L ? dout : dx, {k.between, rows.block.queries.length, D}, layers[i].ffn, encoder.F,
                  rows.ffn_dropout(encoder, i), k.ffn, d, dlayers[i].ffn, threads);
    attention_block_bwd(d, rows.block, layers[i].attention, k.attention, dx, d, dlayers[i].attention, threads);
    for (int64_t r = 0; rows.fewer && r < encoder.last.R; ++r)
      for (int64_t c = 0; c < D; ++c) dx[encoder.last.rows[r] * D + c] += d[r * D + c];
  }
}

}  // namespace ef::EF_NS
