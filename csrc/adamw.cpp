// One step of AdamW over all parameters; see electra_fast/ops/adamw.py.
//
// The tensors are cut into pieces of one size, and threads share out pieces, so neither a table nor a hundred biases
// make one of them wait. The norm is summed in double within a piece and then over the pieces in order: threads change
// no bit.
#include <math.h>

#include <new>

#include "ops.h"

namespace ef::EF_NS {
namespace {

constexpr int64_t kPiece = 16384;  // elements

struct Piece {
  int64_t tensor, first, size;
};

struct Step {
  float clip, keep1, beta1, keep2, beta2, eps;  // keep = 1 - beta
};

static double sum_of_squares(const float* g, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += double(g[i]) * double(g[i]);
  return sum;
}

static void update(const Step& step, float lr, float decay, int64_t n, float* p, const float* g, float* m, float* v) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float grad = g[i] * step.clip;
    m[i] = step.beta1 * m[i] + step.keep1 * grad;
    v[i] = step.beta2 * v[i] + step.keep2 * (grad * grad);
    p[i] -= lr * (m[i] / (sqrtf(v[i]) + step.eps) + decay * p[i]);
  }
}

}  // namespace

// addresses (n, 4): parameter, gradient and the two moments of each tensor; norm (1,), of the gradients before
// clipping.
void adamw(const int64_t* addresses, const int64_t* sizes, const double* lrs, const double* weight_decays, int64_t n,
           double beta1, double beta2, double eps, double max_grad_norm, bool guard, float* norm, Threads threads) {
  int64_t count = 0, total = 0;
  for (int64_t i = 0; i < n; ++i) count += (sizes[i] + kPiece - 1) / kPiece, total += sizes[i];
  Piece* pieces = new Piece[count];
  double* sums = new double[count];
  for (int64_t i = 0, at = 0; i < n; ++i) {
    for (int64_t first = 0; first < sizes[i]; first += kPiece)
      pieces[at++] = {i, first, sizes[i] - first < kPiece ? sizes[i] - first : kPiece};
  }
#pragma omp parallel for num_threads(threads) schedule(static) if (total >= 32768)
  for (int64_t at = 0; at < count; ++at) {
    const Piece& piece = pieces[at];
    const float* g = reinterpret_cast<const float*>(addresses[4 * piece.tensor + 1]);
    sums[at] = sum_of_squares(g + piece.first, piece.size);
  }
  double sum = 0;
  for (int64_t at = 0; at < count; ++at) sum += sums[at];
  *norm = float(sqrt(sum));
  if (guard && isfinite(*norm)) {
    const double clip = max_grad_norm * fmin(1 / sqrt(sum), 1 / max_grad_norm);
    const Step step = {float(clip), float(1 - beta1), float(beta1), float(1 - beta2), float(beta2), float(eps)};
#pragma omp parallel for num_threads(threads) schedule(static) if (total >= 32768)
    for (int64_t at = 0; at < count; ++at) {
      const Piece& piece = pieces[at];
      float* tensors[4];
      for (int k = 0; k < 4; ++k) tensors[k] = reinterpret_cast<float*>(addresses[4 * piece.tensor + k]) + piece.first;
      update(step, float(lrs[piece.tensor]), float(weight_decays[piece.tensor]), piece.size, tensors[0], tensors[1],
             tensors[2], tensors[3]);
    }
  }
  delete[] sums;
  delete[] pieces;
}

}  // namespace ef::EF_NS
