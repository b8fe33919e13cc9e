// f(x W^T + b), f the identity or the erf GELU, and its gradients; see electra_fast/ops/linear.py.
#include "linear.h"

#include "gelu.h"
#include "ops.h"

namespace ef::EF_NS {

// inner is the argument of the GELU, kept for the backward, or null where there is none.
void linear_fwd(const float* x, const float* weight, const float* bias, int64_t T, int64_t K, int64_t N, float* inner,
                float* out, Threads threads) {
  const Parts parts(T, N, 2 * N * K, threads);
  const Weight packed(weight, N, K, false, parts);
#pragma omp parallel for num_threads(int(parts.count)) schedule(static)
  for (int64_t part = 0; part < parts.count; ++part) {
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      packed.product(part, x + first * K, K, rows, (inner ? inner : out) + first * N, N, bias);
      if (inner) gelu_rows(inner + first * N, N, rows, N, out + first * N, N);
    });
  }
}

// dx is written, or with `add` added to.
void linear_bwd(const float* dout, const float* x, const float* weight, const float* inner, int64_t T, int64_t K,
                int64_t N, bool add, float* dx, float* dweight, float* dbias, Threads threads) {
  const Parts parts(T, N, 6 * N * K, threads);
  const int64_t ld = row_stride(N);
  LinearGradient gradient(weight, N, K, dweight, dbias, parts);
  Floats scratch(inner ? parts.count * parts.height * ld : 0);
#pragma omp parallel for num_threads(int(parts.count)) schedule(static)
  for (int64_t part = 0; part < parts.count; ++part) {
    float* own = scratch.at + part * parts.height * ld;
    gradient.start(part);
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      const float* dy = dout + first * N;
      if (inner) gelu_rows_bwd(inner + first * N, N, dy, N, rows, N, own, ld, nullptr);
      if (inner) dy = own;
      const int64_t ldy = inner ? ld : N;
      gradient.weight.product(part, dy, ldy, rows, dx + first * K, K, add ? dx + first * K : nullptr, K);
      gradient.add(part, x + first * K, K, dy, ldy, rows);
    });
  }
  gradient.finish();
}

}  // namespace ef::EF_NS
