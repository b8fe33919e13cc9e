// One query of each sequence against its keys and values in pages; see electra_fast/ops/decode_attention.py.
//
// Keys and values are read once, from memory or the cache; that is the limit, so a (sequence, head) is read page by
// page with no copy. One thread computes it, so its bits do not depend on the number of threads, nor on other
// sequences.
#include <math.h>

#include "ops.h"
#include "rows.h"
#include "vexp.h"

namespace ef::EF_NS {

namespace {

// The keys or values of a (sequence, head): `count` rows of D floats, in the pages that `table` names.
struct PagedRows {
  const float* data;
  const Pages& pages;
  const int32_t* table;
  int64_t tokens, count;

  PagedRows(const Pages& pages, const Cache& cache, int64_t n, int64_t h)
      : data(pages.data + h * pages.head),
        pages(pages),
        table(cache.table + n * cache.blocks),
        tokens(cache.tokens),
        count(cache.lengths[n]) {}
  // Calls body(first, rows, at) for each page: `rows` of its rows count, the first at `at`, from row `first` on.
  template <class Body>
  void each_page(Body body) const {
    for (int64_t first = 0; first < count; first += tokens)
      body(first, smaller(tokens, count - first), data + table[first / tokens] * pages.page);
  }
};

// scores[j] = q k_j. Four keys at a time, since one sum would wait for its last addition.
static void dots(const float* q, const PagedRows& keys, int64_t D, float* scores) {
  keys.each_page([&](int64_t first, int64_t rows, const float* k) {
    const int64_t step = keys.pages.token, whole = D / kLanes * kLanes;
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4, k += 4 * step) {
      Vec sums[4] = {};
      for (int64_t d = 0; d < whole; d += kLanes) {
        const Vec x = load(q + d);
        for (int r = 0; r < 4; ++r) sums[r] += load(k + r * step + d) * x;
      }
      if (whole < D) {
        const Vec x = load_part(q + whole, D - whole);
        for (int r = 0; r < 4; ++r) sums[r] += load_part(k + r * step + whole, D - whole) * x;
      }
      for (int r = 0; r < 4; ++r) scores[first + i + r] = sum_of(sums[r]);
    }
    for (; i < rows; ++i, k += step) scores[first + i] = dot(q, k, D);
  });
}

// Replaces scores by exp(scale (score - the largest)), 0 from `count` to `padded`, and returns their sum.
static float exponentials(float* scores, int64_t count, int64_t padded, float scale) {
  for (int64_t j = count; j < padded; ++j) scores[j] = -INFINITY;
  Vec top = load(scores), total = {};
  for (int64_t j = kLanes; j < padded; j += kLanes) top = larger(load(scores + j), top);
  const float largest = largest_of(top);
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec p = vexp((load(scores + j) - largest) * scale);
    store(scores + j, p), total += p;
  }
  return sum_of(total);
}

// VECTORS vectors of the output, factor sum_j p_j v_j, whose sums stay in registers.
template <int VECTORS>
static void weighted(const float* p, const PagedRows& values, float factor, int64_t column, float* out) {
  Vec sums[VECTORS] = {};
  values.each_page([&](int64_t first, int64_t rows, const float* v) {
    for (int64_t j = 0; j < rows; ++j, v += values.pages.token)
      for (int i = 0; i < VECTORS; ++i) sums[i] += load(v + column + i * kLanes) * p[first + j];
  });
  for (int i = 0; i < VECTORS; ++i) store(out + column + i * kLanes, sums[i] * factor);
}

// The last columns of the output, fewer than a vector.
static void weighted_part(const float* p, const PagedRows& values, float factor, int64_t column, int64_t D,
                          float* out) {
  Vec sum = {};
  values.each_page([&](int64_t first, int64_t rows, const float* v) {
    for (int64_t j = 0; j < rows; ++j, v += values.pages.token) sum += load_part(v + column, D - column) * p[first + j];
  });
  store_part(out + column, sum * factor, D - column);
}

}  // namespace

void decode_attention(const Heads<const float>& q, const Cache& cache, double scale, float* out, Threads threads) {
  const int64_t N = cache.N, H = cache.H, D = cache.D;
  int64_t longest = 0, total = 0;
  for (int64_t n = 0; n < N; ++n) {
    longest = longest > cache.lengths[n] ? longest : cache.lengths[n];
    total += cache.lengths[n];
  }
  const int64_t own = ceiling(longest, 16) * 16;
  const int64_t parts = total * H * D >= 1 << 15 ? smaller(threads, N * H) : 1;  // from about 10 us on
  const Floats memory(parts * own);
  int64_t next = 0;
#pragma omp parallel for num_threads(int(parts)) schedule(static)
  for (int64_t part = 0; part < parts; ++part) {
    float* scores = memory.at + part * own;
    for (int64_t task = 0; task < N * H;) {
#pragma omp atomic capture
      task = next++;
      if (task >= N * H) break;
      const int64_t n = task / H, h = task % H, count = cache.lengths[n];
      const PagedRows keys(cache.k, cache, n, h), values(cache.v, cache, n, h);
      float* to = out + (n * H + h) * D;
      if (count == 0) {  // without keys the output is 0
        memset(to, 0, size_t(D) * sizeof(float));
        continue;
      }
      dots(q.data + n * q.token + h * q.head, keys, D, scores);
      const float factor = 1 / exponentials(scores, count, ceiling(count, kLanes) * kLanes, float(scale));
      int64_t d = 0;
      for (; d + 8 * kLanes <= D; d += 8 * kLanes) weighted<8>(scores, values, factor, d, to);
      for (; d + 2 * kLanes <= D; d += 2 * kLanes) weighted<2>(scores, values, factor, d, to);
      for (; d + kLanes <= D; d += kLanes) weighted<1>(scores, values, factor, d, to);
      if (d < D) weighted_part(scores, values, factor, d, D, to);
    }
  }
}

}  // namespace ef::EF_NS
