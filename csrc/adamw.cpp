// One step of AdamW over all parameters; see electra_fast/ops/adamw.py.
//
// The tensors are cut into pieces of one size, which are divided among the threads, so that large tables and small
// biases load them evenly. Squares are summed in double within a piece, and then over the pieces in order: the result
// does not depend on the number of threads.
#include <math.h>

#include "ops.h"
#include "rows.h"

namespace ef::EF_NS {
namespace {

constexpr int64_t kPiece = 16384;  // elements

struct Piece {
  int64_t tensor, first, size;
};

// AdamW's numbers in float32, in which the update is computed.
struct Update {
  float clip, keep1, beta1, keep2, beta2, eps;  // keep = 1 - beta
};

static double sum_of_squares(const float* g, int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += double(g[i]) * double(g[i]);
  return sum;
}

static void update(const Update& step, float lr, float decay, int64_t n, float* p, const float* g, float* m, float* v) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const float grad = g[i] * step.clip;
    m[i] = step.beta1 * m[i] + step.keep1 * grad;
    v[i] = step.beta2 * v[i] + step.keep2 * (grad * grad);
    p[i] -= lr * (m[i] / (sqrtf(v[i]) + step.eps) + decay * p[i]);
  }
}

}  // namespace

// parameters, sizes, lrs and weight_decays (n,); norm (1,) receives the norm of all gradients before clipping.
void adamw(const Parameter* parameters, const int64_t* sizes, const double* lrs, const double* weight_decays, int64_t n,
           const AdamW& step, bool guard, float* norm, Threads threads) {
  int64_t count = 0, total = 0;
  for (int64_t i = 0; i < n; ++i) count += ceiling(sizes[i], kPiece), total += sizes[i];
  const int64_t several = total < 32768 ? 1 : threads;
  Memory<Piece> pieces(count);
  Memory<double> sums(count);
  for (int64_t i = 0, at = 0; i < n; ++i) {
    for (int64_t first = 0; first < sizes[i]; first += kPiece)
      pieces.at[at++] = {i, first, smaller(kPiece, sizes[i] - first)};
  }
  parallel(count, several, [&](int64_t at) {
    const Piece& piece = pieces.at[at];
    sums.at[at] = sum_of_squares(parameters[piece.tensor].grad + piece.first, piece.size);
  });
  double sum = 0;
  for (int64_t at = 0; at < count; ++at) sum += sums.at[at];
  *norm = float(sqrt(sum));
  if (!guard || !isfinite(*norm)) return;
  const double clip = step.max_grad_norm * fmin(1 / sqrt(sum), 1 / step.max_grad_norm);
  const Update numbers = {float(clip),           float(1 - step.beta1), float(step.beta1),
                          float(1 - step.beta2), float(step.beta2),     float(step.eps)};
  parallel(count, several, [&](int64_t at) {
    const Piece& piece = pieces.at[at];
    const Parameter& p = parameters[piece.tensor];
    update(numbers, float(lrs[piece.tensor]), float(weight_decays[piece.tensor]), piece.size, p.value + piece.first,
           p.grad + piece.first, p.exp_avg + piece.first, p.exp_avg_sq + piece.first);
  });
}

}  // namespace ef::EF_NS
