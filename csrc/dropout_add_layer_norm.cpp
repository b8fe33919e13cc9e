// Rows by the chunk over norm.h, chunks by thread; see electra_fast/ops/dropout_add_layer_norm.py.
#include <new>

#include "norm.h"
#include "ops.h"

namespace ef::EF_NS {
namespace {

constexpr int64_t kNormChunk = 64;  // rows whose parameter gradients are summed together

}  // namespace

void dropout_add_layer_norm_fwd(const float* x, const float* residual, const float* weight, const float* bias,
                                const int64_t* row_ids, int64_t T, int64_t D, int64_t seed, double eps, int threshold,
                                float* out, float* xhat, float* rstd, Threads threads) {
  const Norm norm = {D, float(eps), threshold, seed};
  const int64_t chunks = (T + kNormChunk - 1) / kNormChunk;
#pragma omp parallel for num_threads(threads) schedule(static) if (T * D >= 32768)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = chunk * kNormChunk, rows = T - first < kNormChunk ? T - first : kNormChunk, at = first * D;
    norm_rows_fwd(norm, rows, x + at, residual + at, row_ids + first, weight, bias, out + at, xhat + at, rstd + first);
  }
}

void dropout_add_layer_norm_bwd(const float* dout, const float* xhat, const float* rstd, const float* weight,
                                const int64_t* row_ids, int64_t T, int64_t D, int64_t seed, int threshold, float* dx,
                                float* dresidual, float* dweight, float* dbias, Threads threads) {
  const Norm norm = {D, 0, threshold, seed};
  const int64_t chunks = (T + kNormChunk - 1) / kNormChunk;
  float* shares = new float[chunks * 2 * D]();  // of dweight and dbias, a chunk's side by side
#pragma omp parallel for num_threads(threads) schedule(static) if (T * D >= 32768)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t first = chunk * kNormChunk, rows = T - first < kNormChunk ? T - first : kNormChunk, at = first * D;
    float* share = shares + chunk * 2 * D;
    norm_rows_bwd(norm, rows, dout + at, xhat + at, rstd + first, weight, row_ids + first, dx + at, dresidual + at,
                  share, share + D);
  }
  double* sums = new double[2 * D]();               // what is alike in all chunks rounds the same way every time
  for (int64_t chunk = 0; chunk < chunks; ++chunk)  // in order: threads change no bit
    for (int64_t c = 0; c < 2 * D; ++c) sums[c] += shares[chunk * 2 * D + c];
  for (int64_t c = 0; c < D; ++c) dweight[c] = float(sums[c]), dbias[c] = float(sums[D + c]);
  delete[] sums;
  delete[] shares;
}

}  // namespace ef::EF_NS
