// The functions of vexp.h and gelu.h on arrays, for the tests.
#include "gelu.h"
#include "ops.h"
#include "vexp.h"

namespace ef::EF_NS {

void vector_exp(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i + kLanes <= n; i += kLanes) store(out + i, vexp(load(x + i)));
}

void vector_log(const float* x, int64_t n, float* out) {
  for (int64_t i = 0; i + kLanes <= n; i += kLanes) store(out + i, vlog(load(x + i)));
}

void vector_normal(const float* x, int64_t n, float* cdf, float* pdf) {
  for (int64_t i = 0; i + kLanes <= n; i += kLanes) {
    const Normal at = normal(load(x + i));
    store(cdf + i, at.cdf), store(pdf + i, at.pdf);
  }
}

}  // namespace ef::EF_NS
