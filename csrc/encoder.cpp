// The layers of an encoder in turn, each an attention_block and an ffn_block; see electra_fast/ops/encoder.py.
#include "ops.h"
#include "rows.h"

namespace ef::EF_NS {
namespace {

// A layer's tensors, as arrays of addresses hold them. Their order is that of ATTENTION and FFN in ops/encoder.py.
struct Parameters {
  float *qkv_weight, *qkv_bias, *out_weight, *out_bias, *attention_weight, *attention_bias;
  float *up_weight, *up_bias, *down_weight, *down_bias, *ffn_weight, *ffn_bias;
};

// What a layer makes; the order is that of `_kept` in ops/encoder.py. inner may be null: no backward follows.
struct Kept {
  float *between, *queries, *keys_values, *read, *lse, *attention_xhat, *attention_rstd;
  float *inner, *ffn_xhat, *ffn_rstd, *out;
};

static_assert(sizeof(float*) == sizeof(int64_t), "addresses arrive as 64-bit integers");

// The rows of x (T, D) that ask: x itself, or of the last layer those at `rows`.
struct Asking {
  const Floats gathered;
  const float* at;

  Asking(const float* x, bool fewer, const int64_t* rows, int64_t R, int64_t D) : gathered(fewer ? R * D : 0), at(x) {
    for (int64_t r = 0; fewer && r < R; ++r) memcpy(gathered.at + r * D, x + rows[r] * D, size_t(D) * sizeof(float));
    if (fewer) at = gathered.at;
  }
};

}  // namespace

// rows, cu_rows and asking_ids are the last layer's. cu_rows may be null: then all ask there too, and R is T.
void encoder_fwd(const float* x, const int64_t* parameters, const int64_t* kept, const int32_t* cu_seqlens,
                 const int64_t* row_ids, const int64_t* rows, const int32_t* cu_rows, const int64_t* asking_ids,
                 const int64_t* seeds, int64_t L, int64_t N, int64_t R, int64_t T, int64_t H, int64_t D, int64_t F,
                 double eps, int attention_threshold, int threshold, Threads threads) {
  for (int64_t i = 0; i < L; ++i) {
    const Parameters& p = reinterpret_cast<const Parameters*>(parameters)[i];
    const Kept& k = reinterpret_cast<const Kept*>(kept)[i];
    const bool fewer = i + 1 == L && cu_rows;
    const int64_t count = fewer ? R : T, *ids = fewer ? asking_ids : row_ids;
    const Asking asking(x, fewer, rows, R, D);
    attention_block_fwd(x, asking.at, p.qkv_weight, p.qkv_bias, p.out_weight, p.out_bias, p.attention_weight,
                        p.attention_bias, fewer ? cu_rows : cu_seqlens, cu_seqlens, ids, N, count, T, H, D,
                        seeds[2 * i], eps, attention_threshold, threshold, k.between, k.queries, k.keys_values, k.read,
                        k.lse, k.attention_xhat, k.attention_rstd, threads);
    ffn_block_fwd(k.between, p.up_weight, p.up_bias, p.down_weight, p.down_bias, p.ffn_weight, p.ffn_bias, ids, count,
                  D, F, seeds[2 * i + 1], eps, threshold, k.out, k.inner, k.ffn_xhat, k.ffn_rstd, threads);
    x = k.out;
  }
}

// `gradients` has the addresses of those of the parameters. Each layer's gradient takes the place of the next one's in
// dx (T, D).
void encoder_bwd(const float* dout, const float* x, const int64_t* parameters, const int64_t* kept,
                 const int64_t* gradients, const int32_t* cu_seqlens, const int64_t* row_ids, const int64_t* rows,
                 const int32_t* cu_rows, const int64_t* asking_ids, const int64_t* seeds, int64_t L, int64_t N,
                 int64_t R, int64_t T, int64_t H, int64_t D, int64_t F, int attention_threshold, int threshold,
                 float* dx, Threads threads) {
  const Floats dasking(cu_rows ? R * D : 0);
  for (int64_t i = L - 1; i >= 0; --i) {
    const Parameters& p = reinterpret_cast<const Parameters*>(parameters)[i];
    const Parameters& g = reinterpret_cast<const Parameters*>(gradients)[i];
    const Kept* k = reinterpret_cast<const Kept*>(kept) + i;
    const bool last = i + 1 == L, fewer = last && cu_rows;
    const int64_t count = fewer ? R : T, *ids = fewer ? asking_ids : row_ids;
    const float* in = i > 0 ? k[-1].out : x;
    const Asking asking(in, fewer, rows, R, D);
    float* d = fewer ? dasking.at : dx;
    ffn_block_bwd(last ? dout : dx, k->between, p.up_weight, p.down_weight, p.ffn_weight, ids, k->inner, k->ffn_xhat,
                  k->ffn_rstd, count, D, F, seeds[2 * i + 1], threshold, d, g.up_weight, g.up_bias, g.down_weight,
                  g.down_bias, g.ffn_weight, g.ffn_bias, threads);
    attention_block_bwd(d, in, asking.at, p.qkv_weight, p.out_weight, p.attention_weight, fewer ? cu_rows : cu_seqlens,
                        cu_seqlens, ids, N, count, T, H, D, seeds[2 * i], attention_threshold, threshold, k->queries,
                        k->keys_values, k->read, k->lse, k->attention_xhat, k->attention_rstd, dx, d, g.qkv_weight,
                        g.qkv_bias, g.out_weight, g.out_bias, g.attention_weight, g.attention_bias, threads);
    for (int64_t r = 0; fewer && r < R; ++r)
      for (int64_t c = 0; c < D; ++c) dx[rows[r] * D + c] += d[r * D + c];
  }
}

}  // namespace ef::EF_NS
