// dropout(LayerNorm(word + position + token type)) in one pass, and the gradients of the tables; see
// electra_fast/ops/embedding.py.
//
// Each row of a table's gradient is written once: as 0 if no token uses the row, else as the sum over the tokens that
// do, in their order. So the gradient need not be cleared first, no two threads write to one row, and the bits do not
// depend on the number of threads.
#include "layer_norm.h"
#include "ops.h"

namespace ef::EF_NS {
namespace {

constexpr int64_t kGathered = 16;  // rows that are gathered and then normalised while they are in the L1 cache

static void dropout_rows(const Rows& x, const Dropout& rule, float* out) {
  RowDropout dropout(rule.threshold);
  for (int64_t r = 0; r < x.length; ++r) {
    const float* from = x.data + r * x.width;
    float* to = out + r * x.width;
    for (int64_t start = 0; start < x.width; start += kBlockColumns) {
      const int64_t end = smaller(x.width, start + kBlockColumns);
      dropout.draw(rule.seed, rule.row_ids[r], start);
      int64_t c = start;
      for (; c + kLanes <= end; c += kLanes) store(to + c, dropout.of(load(from + c), c - start));
      for (; c < end; ++c) to[c] = dropout.of(from[c], c - start);
    }
  }
}

// grads (size, E) = the sums of the rows of d (T, E) that have the same id.
static void scatter(const int64_t* ids, const Rows& d, int64_t size, float* grads, Threads threads) {
  const int64_t T = d.length, E = d.width;
  Memory<int64_t> tokens(size + T);
  int64_t *first = tokens.at,
          *next = first + size;  // the first token of each id, and the next with a token's id, or -1
  memset(first, -1, size_t(size) * sizeof(int64_t));
  for (int64_t t = T - 1; t >= 0; --t) next[t] = first[ids[t]], first[ids[t]] = t;
  in_ranges(size, 256, (size + T) * E < 32768 ? 1 : threads, [&](int64_t begin, int64_t end) {
    for (int64_t id = begin; id < end; ++id) {
      float* grad = grads + id * E;
      int64_t t = first[id];
      if (t < 0) {
        memset(grad, 0, size_t(E) * sizeof(float));
        continue;
      }
      memcpy(grad, d.data + t * E, size_t(E) * sizeof(float));
      while ((t = next[t]) >= 0) {
        const float* row = d.data + t * E;
        int64_t c = 0;
        for (; c + kLanes <= E; c += kLanes) store(grad + c, load(grad + c) + load(row + c));
        for (; c < E; ++c) grad[c] += row[c];
      }
    }
  });
}

}  // namespace

void embedding_fwd(const Tokens& tokens, const Tables<const float>& tables, const Affine<const float>& norm, double eps,
                   const Dropout& dropout, float* out, const Normed<float>& kept, Threads threads) {
  const int64_t T = tokens.T, E = tables.E, parts = T * E < 32768 ? 1 : threads;
  const Dropout none = {dropout.row_ids, 0, 0};  // the norm has no dropout before it
  Floats types(parts * kGathered * E);
  parallel(parts, parts, [&](int64_t part) {
    float* own = types.at + part * kGathered * E;
    const int64_t end = T * (part + 1) / parts;
    for (int64_t start = T * part / parts; start < end; start += kGathered) {
      const int64_t rows = smaller(kGathered, end - start);
      float *sums = kept.xhat + start * E, *to = out + start * E;
      for (int64_t r = 0; r < rows; ++r) {
        const float* w = tables.word + tokens.input_ids[start + r] * E;
        const float* p = tables.position + tokens.position_ids[start + r] * E;
        float* sum = sums + r * E;
        int64_t c = 0;
        for (; c + kLanes <= E; c += kLanes) store(sum + c, load(w + c) + load(p + c));
        for (; c < E; ++c) sum[c] = w[c] + p[c];
        memcpy(own + r * E, tables.token_type + tokens.token_type_ids[start + r] * E, size_t(E) * sizeof(float));
      }
      norm_rows_fwd({sums, rows, E}, own, norm, float(eps), none, to, from_row(kept, start, E));
      if (dropout.threshold > 0) dropout_rows({to, rows, E}, from_row(dropout, start), to);
    }
  });
}

void embedding_bwd(const float* dout, const Tokens& tokens, const float* weight, const Dropout& dropout,
                   const Normed<const float>& kept, const Tables<float>& dtables, const Affine<float>& dnorm,
                   Threads threads) {
  const int64_t T = tokens.T, E = dtables.E;
  Floats memory(T * E);
  float* d = memory.at;  // the gradient of the normalised rows, then of their sums
  in_ranges(T, 4 * kGathered, T * E < 32768 ? 1 : threads, [&](int64_t start, int64_t end) {
    dropout_rows({dout + start * E, end - start, E}, from_row(dropout, start), d + start * E);
  });
  const Rows rows = {d, T, E};
  dropout_add_layer_norm_bwd(rows, weight, {dropout.row_ids, 0, 0}, kept, d, d, dnorm, threads);
  scatter(tokens.input_ids, rows, dtables.V, dtables.word, threads);
  scatter(tokens.position_ids, rows, dtables.P, dtables.position, threads);
  scatter(tokens.token_type_ids, rows, dtables.types, dtables.token_type, threads);
}

}  // namespace ef::EF_NS
