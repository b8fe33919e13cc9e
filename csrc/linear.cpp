// f(x W^T + b), where f is the identity or the erf GELU, and its gradients; see electra_fast/ops/linear.py.
#include "linear.h"

#include "gelu.h"
#include "ops.h"

namespace ef::EF_NS {

// inner (T, N) receives the argument of the GELU, for the backward; null means that f is the identity.
void linear_fwd(const Rows& x, const Affine<const float>& linear, int64_t N, float* inner, float* out,
                Threads threads) {
  const int64_t K = x.width;
  const Parts parts(x.length, N, 2 * N * K, threads);
  const Weight packed(linear.weight, N, K, false, parts);
  parallel(parts.count, parts.count, [&](int64_t part) {
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      packed.product(part, x.data + first * K, K, rows, (inner ? inner : out) + first * N, N, linear.bias);
      if (inner) gelu_rows(inner + first * N, N, rows, N, out + first * N, N);
    });
  });
}

// `add`: the gradient of x is added to dx, which else is overwritten.
void linear_bwd(const float* dout, const Rows& x, const float* weight, int64_t N, const float* inner, bool add,
                float* dx, const Affine<float>& dlinear, Threads threads) {
  const int64_t K = x.width, ld = row_stride(N);
  const Parts parts(x.length, N, 6 * N * K, threads);
  LinearGradient gradient(weight, N, K, dlinear, parts);
  Floats scratch(inner ? parts.count * parts.height * ld : 0);
  parallel(parts.count, parts.count, [&](int64_t part) {
    float* own = scratch.at + part * parts.height * ld;
    gradient.start(part);
    parts.blocks(part, [&](int64_t first, int64_t rows) {
      const float* dy = dout + first * N;
      if (inner) gelu_rows_bwd(inner + first * N, N, dy, N, rows, N, own, ld, nullptr);
      if (inner) dy = own;
      const int64_t ldy = inner ? ld : N;
      gradient.weight.product(part, dy, ldy, rows, dx + first * K, K, add ? dx + first * K : nullptr, K);
      gradient.add(part, x.data + first * K, K, dy, ldy, rows);
    });
  });
  gradient.finish();
}

}  // namespace ef::EF_NS
