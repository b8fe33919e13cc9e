// A step of decoding through all layers of a decoder; see electra_fast/ops/decoder_step.py.
//
// One call for all layers: with one row a target, a layer computes for less time than PyTorch takes to call its ops.
#include <math.h>

#include "ops.h"
#include "rows.h"

namespace ef::EF_NS {
namespace {

// The keys and values of layer i, as decode_attention takes them.
Cache cache_of(const PagedLayers& paged, int64_t i, const DecoderStep& step) {
  const int64_t D = step.x.width, W = D / step.H, page = 2 * D * step.tokens;
  const float* keys = paged.data + i * paged.pages * page;
  const Pages k = {keys, page, W, step.tokens * W}, v = {keys + D * step.tokens, page, W, step.tokens * W};
  return {k, v, paged.table, paged.lengths, step.x.length, paged.blocks, step.tokens, step.H, W};
}

// Writes the keys and values of the new tokens, qkv (R, 3 D), to their places in the pages of layer i.
void append(const float* qkv, const PagedLayers& paged, int64_t i, const DecoderStep& step) {
  const int64_t D = step.x.width, W = D / step.H, page = 2 * D * step.tokens;
  for (int64_t r = 0; r < step.x.length; ++r) {
    const int64_t place = paged.lengths[r] - 1, at = paged.table[r * paged.blocks + place / step.tokens];
    float* to = paged.data + (i * paged.pages + at) * page + place % step.tokens * W;
    for (int64_t h = 0; h < 2 * step.H; ++h)  // the heads of the keys, then those of the values
      memcpy(to + h * step.tokens * W, qkv + r * 3 * D + D + h * W, size_t(W) * sizeof(float));
  }
}

}  // namespace

void decoder_step(const DecoderStep& step, const DecoderLayer* layers, float* out, Threads threads) {
  const int64_t R = step.x.length, D = step.x.width, W = D / step.H;
  const double scale = 1 / sqrt(double(W));
  const Dropout none = {step.row_ids, 0, 0};
  const Floats qkv(3 * R * D), read(R * D), added(R * D), first(R * D), second(R * D), deviations(R);
  // to = LayerNorm(x + read W^T + b)
  const auto close = [&](const Affine<const float>& linear, const Affine<const float>& norm, const float* x,
                         float* to) {
    linear_fwd({read.at, R, D}, linear, D, nullptr, added.at, threads);
    dropout_add_layer_norm_fwd({added.at, R, D}, x, norm, step.eps, none, to, {to, deviations.at}, threads);
  };
  const float* x = step.x.data;
  for (int64_t i = 0; i < step.L; ++i) {
    const DecoderLayer& layer = layers[i];
    linear_fwd({x, R, D}, layer.attention.qkv, 3 * D, nullptr, qkv.at, threads);
    append(qkv.at, step.target, i, step);
    decode_attention({qkv.at, 3 * D, W}, cache_of(step.target, i, step), scale, read.at, threads);
    close(layer.attention.out, layer.attention.norm, x, first.at);
    linear_fwd({first.at, R, D}, layer.query, D, nullptr, qkv.at, threads);
    decode_attention({qkv.at, D, W}, cache_of(step.source, i, step), scale, read.at, threads);
    close(layer.cross_out, layer.cross_norm, first.at, second.at);
    ffn_block_fwd({second.at, R, D}, layer.ffn, step.F, step.eps, none, out, {nullptr, {out, deviations.at}}, threads);
    x = out;
  }
}

}  // namespace ef::EF_NS
