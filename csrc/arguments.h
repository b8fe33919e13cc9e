// What ops take: plain structs of addresses and numbers. electra_fast/ops/_structs.py has the same as NamedTuples;
// bindings.cpp turns those into these, field by field.
//
// The objects of all instruction sets include this file, so it defines no function that an op calls: such a function
// would be a weak symbol, and the linker could keep the copy that only a newer CPU can run.
//
// Shapes: T packed tokens, N sequences, H heads, D width (in Heads and Attention: of a head), F inner width, E width of
// the embeddings, V words, M prediction slots, R rows that are queries, L layers. Matrices are float32, row after row.
#pragma once

#include <stdint.h>

// Placed in a struct, gives bindings.cpp its name and its fields in order.
#define EF_FIELDS(name, ...)                           \
  static constexpr const char* kName = #name;          \
  static constexpr const char* kFields = #__VA_ARGS__; \
  template <class Visitor>                             \
  constexpr decltype(auto) visit(Visitor visitor) {    \
    return visitor(__VA_ARGS__);                       \
  }

namespace ef {

enum Threads : int {};  // a type of its own, so that bindings.cpp can tell a number of threads from other numbers

// x (length, width).
struct Rows {
  const float* data;
  int64_t length, width;
  EF_FIELDS(Rows, data, length, width)
};

// The parameters of x W^T + b, or a LayerNorm's weight and bias, or the gradients of either.
template <class Float>
struct Affine {
  Float *weight, *bias;
  EF_FIELDS(Affine, weight, bias)
};

// What a LayerNorm saves for its backward: the normalised rows (rows, D), and 1 / deviation of each (rows,).
template <class Float>
struct Normed {
  Float *xhat, *rstd;
  EF_FIELDS(Normed, xhat, rstd)
};

// An element is dropped if its random byte (philox.h) is below the threshold: 0 keeps all, 256 drops all. row_ids
// (rows,) and seed are the key of the bytes.
struct Dropout {
  const int64_t* row_ids;
  int64_t seed;
  int threshold;
  EF_FIELDS(Dropout, row_ids, seed, threshold)
};

// (tokens, H, D) with any strides: head h of token t begins at data + t * token + h * head, and its D values are
// consecutive.
template <class Float>
struct Heads {
  Float* data;
  int64_t token, head;
  EF_FIELDS(Heads, data, token, head)
};

// Sequence n owns the queries queries[n] to queries[n + 1] and the keys keys[n] to keys[n + 1]. Both (N + 1,).
struct Sequences {
  const int32_t *queries, *keys;
  int64_t N;
  EF_FIELDS(Sequences, queries, keys, N)
};

// causal: a sequence's last query sees all its keys, each query before it one less than the next.
struct Attention {
  Heads<const float> q, k, v;
  Sequences sequences;
  int64_t H, D;
  double scale;
  Dropout dropout;
  bool causal;
  EF_FIELDS(Attention, q, k, v, sequences, H, D, scale, dropout, causal)
};

// The keys or values of a paged cache: row i of page p, head h, begins at data + p * page + i * token + h * head, and
// its D values are consecutive.
struct Pages {
  const float* data;
  int64_t page, token, head;
  EF_FIELDS(Pages, data, page, token, head)
};

// The keys and values of N sequences in pages of `tokens` tokens. table (N, blocks): the pages of each sequence in
// order; lengths (N,): how many keys each has.
struct Cache {
  Pages k, v;
  const int32_t *table, *lengths;
  int64_t N, blocks, tokens, H, D;
  EF_FIELDS(Cache, k, v, table, lengths, N, blocks, tokens, H, D)
};

// qkv (3 D, D) and (3 D,), out (D, D) and (D,), norm (D,) twice.
template <class Float>
struct AttentionWeights {
  Affine<Float> qkv, out, norm;
  EF_FIELDS(AttentionWeights, qkv, out, norm)
};

// What an attention block saves for its backward: queries (R, D); keys and values side by side (T, 2 D); attention's
// output before the projection (R, D) and the log-sum-exps of its scores (R, H); and what its norm saves.
template <class Float>
struct AttentionKept {
  Float *queries, *keys_values, *read, *lse;
  Normed<Float> norm;
  EF_FIELDS(AttentionKept, queries, keys_values, read, lse, norm)
};

// The rows of an attention block: x (T, D), and those that are queries (R, D), x itself or some of its rows. `dropout`
// is keyed by the queries' row ids, as is that of the probabilities, which has a threshold of its own.
struct AttentionBlock {
  Rows x, queries;
  Sequences sequences;
  int64_t H;
  Dropout dropout;
  int attention_threshold;
  EF_FIELDS(AttentionBlock, x, queries, sequences, H, dropout, attention_threshold)
};

// up (F, D) and (F,), down (D, F) and (D,), norm (D,) twice.
template <class Float>
struct FfnWeights {
  Affine<Float> up, down, norm;
  EF_FIELDS(FfnWeights, up, down, norm)
};

// What an FFN block saves for its backward: the GELU's argument (T, F), null if there is no backward; and what its norm
// saves.
template <class Float>
struct FfnKept {
  Float* inner;
  Normed<Float> norm;
  EF_FIELDS(FfnKept, inner, norm)
};

// A layer's parameters, or their gradients.
template <class Float>
struct Layer {
  AttentionWeights<Float> attention;
  FfnWeights<Float> ffn;
  EF_FIELDS(Layer, attention, ffn)
};

// What a layer saves for its backward: what its two blocks save, the output of the first (R, D), and that of the second
// (R, D).
template <class Float>
struct LayerKept {
  Float* between;
  AttentionKept<Float> attention;
  FfnKept<Float> ffn;
  Float* out;
  EF_FIELDS(LayerKept, between, attention, ffn, out)
};

// A decoder layer's parameters: self-attention, the query and output of the cross-attention, (D, D) and (D,), and its
// norm, and the FFN.
struct DecoderLayer {
  AttentionWeights<const float> attention;
  Affine<const float> query, cross_out, cross_norm;
  FfnWeights<const float> ffn;
  EF_FIELDS(DecoderLayer, attention, query, cross_out, cross_norm, ffn)
};

// The keys and values of all layers in pages, (L, pages, 2, H, tokens, D / H). table (R, blocks): the pages of each row
// in order; lengths (R,): how many keys each has.
struct PagedLayers {
  float* data;
  int64_t pages;
  const int32_t *table, *lengths;
  int64_t blocks;
  EF_FIELDS(PagedLayers, data, pages, table, lengths, blocks)
};

// A step of decoding: one row of x for each target. The lengths of `target` count the new token, whose keys and values
// the step writes. tokens: of a page.
struct DecoderStep {
  Rows x;
  const int64_t* row_ids;
  PagedLayers target, source;
  int64_t L, H, F, tokens;
  double eps;
  EF_FIELDS(DecoderStep, x, row_ids, target, source, L, H, F, tokens, eps)
};

// The rows of x that are queries in the last layer: their indices (R,), their row ids (R,), and the offset of each
// sequence's first one (N + 1,). If offsets is null, all rows are queries. (`rows` does not tell: it is null for R = 0,
// too.)
struct Queries {
  const int64_t *rows, *row_ids;
  const int32_t* offsets;
  int64_t R;
  EF_FIELDS(Queries, rows, row_ids, offsets, R)
};

// An encoder's input and sizes. seeds (2 L,): for each layer, the seed of its attention block and that of its FFN
// block.
struct Encoder {
  Rows x;
  const int32_t* cu_seqlens;
  const int64_t *row_ids, *seeds;
  Queries last;
  int64_t L, N, H, F;
  double eps;
  int attention_threshold, threshold;
  EF_FIELDS(Encoder, x, cu_seqlens, row_ids, seeds, last, L, N, H, F, eps, attention_threshold, threshold)
};

// The ids of tokens (T,), rows of the embedding tables.
struct Tokens {
  const int64_t *input_ids, *token_type_ids, *position_ids;
  int64_t T;
  EF_FIELDS(Tokens, input_ids, token_type_ids, position_ids, T)
};

// word (V, E), position (P, E) and token_type (types, E), or their gradients.
template <class Float>
struct Tables {
  Float *word, *position, *token_type;
  int64_t V, P, types, E;
  EF_FIELDS(Tables, word, position, token_type, V, P, types, E)
};

// dense (D, D) and (D,), out (1, D) and (1,).
template <class Float>
struct DiscriminatorWeights {
  Affine<Float> dense, out;
  EF_FIELDS(DiscriminatorWeights, dense, out)
};

// How the generator's head samples. row_ids (M,).
struct Sampling {
  const int64_t* row_ids;
  int64_t seed;
  double temperature;
  bool disallow_correct;
  EF_FIELDS(Sampling, row_ids, seed, temperature, disallow_correct)
};

// Packed text: ids and row_ids (T,), cu_seqlens (N + 1,).
struct Text {
  const int64_t *ids, *row_ids;
  int64_t T;
  const int32_t* cu_seqlens;
  int64_t N;
  EF_FIELDS(Text, ids, row_ids, T, cu_seqlens, N)
};

// How tokens are chosen and hidden. Tokens whose id is among special_ids (specials,) are never chosen.
struct MaskingRule {
  const int64_t* special_ids;
  int64_t specials, mask_id;
  uint64_t replace_threshold;
  bool faithful;
  int64_t seed;
  EF_FIELDS(MaskingRule, special_ids, specials, mask_id, replace_threshold, faithful, seed)
};

// Where masking puts its results: ids (T,), the others (M,).
struct Masked {
  int64_t *ids, *positions, *labels, *sample_rows;
  EF_FIELDS(Masked, ids, positions, labels, sample_rows)
};

// Prediction slots with the generator's samples, (M,) each.
struct Slots {
  const int64_t *positions, *labels, *sampled_ids;
  int64_t M;
  EF_FIELDS(Slots, positions, labels, sampled_ids, M)
};

// A tensor that AdamW updates.
struct Parameter {
  float* value;
  const float* grad;
  float *exp_avg, *exp_avg_sq;
  EF_FIELDS(Parameter, value, grad, exp_avg, exp_avg_sq)
};

struct AdamW {
  double beta1, beta2, eps, max_grad_norm;
  EF_FIELDS(AdamW, beta1, beta2, eps, max_grad_norm)
};

}  // namespace ef
