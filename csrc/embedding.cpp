// Rows of three tables, summed, normalised and dropped out in one pass, and the gradients back into the tables; see
// electra_fast/ops/embedding.py.
//
// A table's gradient is written once, row by row of the table: 0 where no token asked for it, else the sum over the
// tokens that did, in their order. So there is nothing to clear first, no two threads meet, and threads change no bit.
#include <new>

#include "norm.h"
#include "ops.h"

namespace ef::EF_NS {
namespace {

constexpr int64_t kGathered = 16;  // rows that wait in the first cache to be normalised

static void dropout_rows(const Norm& norm, int64_t rows, const int64_t* row_ids, const float* x, float* out) {
  RowDropout dropout(norm);
  for (int64_t r = 0; r < rows; ++r, x += norm.D, out += norm.D) {
    for (int64_t start = 0; start < norm.D; start += kBlockColumns) {
      const int64_t end = start + kBlockColumns < norm.D ? start + kBlockColumns : norm.D;
      dropout.draw(norm.seed, row_ids[r], start);
      int64_t c = start;
      for (; c + kLanes <= end; c += kLanes) store(out + c, dropout.of(load(x + c), c - start));
      for (; c < end; ++c) out[c] = dropout.of(x[c], c - start);
    }
  }
}

// grads (size, E) = the sums of the rows of d (T, E) by their ids.
static void scatter(const int64_t* ids, int64_t T, const float* d, int64_t size, int64_t E, float* grads,
                    Threads threads) {
  int64_t* first = new int64_t[size + T];  // token of each id,
  int64_t* next = first + size;            // and of each token the next with its id; -1 where there is none
  memset(first, -1, size_t(size) * sizeof(int64_t));
  for (int64_t t = T - 1; t >= 0; --t) next[t] = first[ids[t]], first[ids[t]] = t;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 256) if ((size + T) * E >= 32768)
  for (int64_t id = 0; id < size; ++id) {
    float* grad = grads + id * E;
    int64_t t = first[id];
    if (t < 0) {
      memset(grad, 0, size_t(E) * sizeof(float));
      continue;
    }
    memcpy(grad, d + t * E, size_t(E) * sizeof(float));
    while ((t = next[t]) >= 0) {
      const float* row = d + t * E;
      int64_t c = 0;
      for (; c + kLanes <= E; c += kLanes) store(grad + c, load(grad + c) + load(row + c));
      for (; c < E; ++c) grad[c] += row[c];
    }
  }
  delete[] first;
}

}  // namespace

void embedding_fwd(const int64_t* input_ids, const int64_t* token_type_ids, const int64_t* position_ids,
                   const float* word, const float* position, const float* token_type, const float* weight,
                   const float* bias, const int64_t* row_ids, int64_t T, int64_t E, int64_t seed, double eps,
                   int threshold, float* out, float* xhat, float* rstd, Threads threads) {
  const Norm norm = {E, float(eps), 0, 0}, dropped = {E, 0, threshold, seed};  // dropout comes last here
  const int64_t parts = T * E < 32768 ? 1 : threads;
  float* types = new float[parts * kGathered * E];
#pragma omp parallel for num_threads(parts) schedule(static)
  for (int64_t part = 0; part < parts; ++part) {
    float* own = types + part * kGathered * E;
    const int64_t end = T * (part + 1) / parts;
    for (int64_t start = T * part / parts; start < end; start += kGathered) {
      const int64_t rows = end - start < kGathered ? end - start : kGathered;
      for (int64_t r = 0; r < rows; ++r) {
        const float* w = word + input_ids[start + r] * E;
        const float* p = position + position_ids[start + r] * E;
        float* sum = xhat + (start + r) * E;
        int64_t c = 0;
        for (; c + kLanes <= E; c += kLanes) store(sum + c, load(w + c) + load(p + c));
        for (; c < E; ++c) sum[c] = w[c] + p[c];
        memcpy(own + r * E, token_type + token_type_ids[start + r] * E, size_t(E) * sizeof(float));
      }
      float* to = out + start * E;
      norm_rows_fwd(norm, rows, xhat + start * E, own, row_ids + start, weight, bias, to, xhat + start * E,
                    rstd + start);
      if (threshold > 0) dropout_rows(dropped, rows, row_ids + start, to, to);
    }
  }
  delete[] types;
}

void embedding_bwd(const float* dout, const float* xhat, const float* rstd, const float* weight, const int64_t* row_ids,
                   const int64_t* input_ids, const int64_t* token_type_ids, const int64_t* position_ids, int64_t T,
                   int64_t E, int64_t V, int64_t P, int64_t types, int64_t seed, int threshold, float* dword,
                   float* dposition, float* dtoken_type, float* dweight, float* dbias, Threads threads) {
  float* d = new float[T * E];  // the gradient of the normalised rows, then of their sums
#pragma omp parallel for num_threads(threads) schedule(static) if (T * E >= 32768)
  for (int64_t start = 0; start < T; start += kGathered) {
    const int64_t rows = T - start < kGathered ? T - start : kGathered;
    dropout_rows({E, 0, threshold, seed}, rows, row_ids + start, dout + start * E, d + start * E);
  }
  dropout_add_layer_norm_bwd(d, xhat, rstd, weight, row_ids, T, E, 0, 0, d, d, dweight, dbias, threads);
  scatter(input_ids, T, d, V, E, dword, threads);
  scatter(position_ids, T, d, P, E, dposition, threads);
  scatter(token_type_ids, T, d, types, E, dtoken_type, threads);
  delete[] d;
}

}  // namespace ef::EF_NS
