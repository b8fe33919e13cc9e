// One query of each sequence against its keys and values in pages; see electra_fast/ops/decode_attention.py.
//
// Keys and values are read once, from memory or the cache, and that is the limit. So a thread goes over the pages of a
// sequence once, for all heads, in the order in which they lie there; only where sequences are too few for the threads
// does it take one head. Each head is computed on its own: its bits depend neither on the threads nor on other heads or
// sequences.
#include <math.h>

#include "ops.h"
#include "rows.h"
#include "vexp.h"

namespace ef::EF_NS {

namespace {

// The keys or values of some heads of a sequence.
struct PagedRows {
  const Pages& pages;
  const int32_t* table;
  int64_t tokens, count, D, first_head, heads;

  // Calls body(head, first, rows, at) for each page and head: `rows` of its rows count, the first at `at`, from row
  // `first` on. A head's rows in the next page are prefetched, which the hardware could not guess.
  template <class Body>
  void each_page(Body body) const {
    for (int64_t first = 0; first < count; first += tokens)
      for (int64_t h = 0; h < heads; ++h) {
        prefetch(first + tokens, h);
        body(h, first, smaller(tokens, count - first), at(first, h));
      }
  }
  const float* at(int64_t first, int64_t h) const {
    return pages.data + table[first / tokens] * pages.page + (first_head + h) * pages.head;
  }
  void prefetch(int64_t first, int64_t h) const {
    if (first >= count) return;
    const float* row = at(first, h);
    for (int64_t i = 0; i < smaller(tokens, count - first); ++i, row += pages.token)
      for (int64_t d = 0; d < D; d += 16) __builtin_prefetch(row + d, 0, 2);
  }
};

// scores[i] = q k_i for rows k that are `step` apart. Four keys at a time, since one sum would wait for its last
// addition.
static void dots(const float* q, const float* k, int64_t step, int64_t rows, int64_t D, float* scores) {
  const int64_t whole = D / kLanes * kLanes;
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4, k += 4 * step) {
    Vec sums[4] = {};
    for (int64_t d = 0; d < whole; d += kLanes) {
      const Vec x = load(q + d);
      for (int64_t r = 0; r < 4; ++r) sums[r] += load(k + r * step + d) * x;
    }
    if (whole < D) {
      const Vec x = load_part(q + whole, D - whole);
      for (int64_t r = 0; r < 4; ++r) sums[r] += load_part(k + r * step + whole, D - whole) * x;
    }
    for (int64_t r = 0; r < 4; ++r) scores[i + r] = sum_of(sums[r]);
  }
  for (; i < rows; ++i, k += step) scores[i] = dot(q, k, D);
}

// Replaces scores by exp(scale (score - the largest)), 0 from `count` to `padded`, and returns 1 / their sum.
static float exponentials(float* scores, int64_t count, int64_t padded, float scale) {
  for (int64_t j = count; j < padded; ++j) scores[j] = -INFINITY;
  Vec top = load(scores), total = {};
  for (int64_t j = kLanes; j < padded; j += kLanes) top = larger(load(scores + j), top);
  const float largest = largest_of(top);
  for (int64_t j = 0; j < padded; j += kLanes) {
    const Vec p = vexp((load(scores + j) - largest) * scale);
    store(scores + j, p), total += p;
  }
  return 1 / sum_of(total);
}

// Adds sum_i p_i v_i to VECTORS vectors of the output, which stay in registers.
template <int VECTORS>
static inline void add_columns(const float* p, const float* v, int64_t step, int64_t rows, float* out) {
  Vec sums[VECTORS];
  for (int i = 0; i < VECTORS; ++i) sums[i] = load(out + i * kLanes);
  for (int64_t j = 0; j < rows; ++j, v += step)
    for (int i = 0; i < VECTORS; ++i) sums[i] += load(v + i * kLanes) * p[j];
  for (int i = 0; i < VECTORS; ++i) store(out + i * kLanes, sums[i]);
}

static void add_values(const float* p, const float* v, int64_t step, int64_t rows, int64_t D, float* out) {
  int64_t d = 0;
  for (; d + 8 * kLanes <= D; d += 8 * kLanes) add_columns<8>(p, v + d, step, rows, out + d);
  for (; d + 2 * kLanes <= D; d += 2 * kLanes) add_columns<2>(p, v + d, step, rows, out + d);
  for (; d + kLanes <= D; d += kLanes) add_columns<1>(p, v + d, step, rows, out + d);
  for (int64_t j = 0; d < D && j < rows; ++j, v += step)
    for (int64_t i = d; i < D; ++i) out[i] += v[i] * p[j];
}

}  // namespace

void decode_attention(const Heads<const float>& q, const Cache& cache, double scale, float* out, Threads threads) {
  const int64_t N = cache.N, H = cache.H, D = cache.D;
  if (N * H * D == 0) return;
  int64_t longest = 0, total = 0;
  for (int64_t n = 0; n < N; ++n) {
    longest = longest > cache.lengths[n] ? longest : cache.lengths[n];
    total += cache.lengths[n];
  }
  const int64_t heads = N >= 4 * threads ? H : 1, room = ceiling(longest, 16) * 16;  // heads of a task
  const int64_t tasks = heads == 1 ? N * H : N;
  const int64_t parts = total * H * D >= 1 << 15 ? smaller(threads, tasks) : 1;  // from about 10 us on
  const Floats memory(parts * heads * room);
  int64_t next = 0;
  parallel(parts, parts, [&](int64_t part) {
    float* scores = memory.at + part * heads * room;
    for (int64_t task; (task = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < tasks;) {
      const int64_t n = task * heads / H, h0 = task * heads % H, count = cache.lengths[n];
      const int32_t* table = cache.table + n * cache.blocks;
      const PagedRows keys = {cache.k, table, cache.tokens, count, D, h0, heads};
      const PagedRows values = {cache.v, table, cache.tokens, count, D, h0, heads};
      float* to = out + (n * H + h0) * D;
      memset(to, 0, size_t(heads * D) * sizeof(float));  // the output of a sequence without keys
      keys.each_page([&](int64_t h, int64_t first, int64_t rows, const float* k) {
        dots(q.data + n * q.token + (h0 + h) * q.head, k, cache.k.token, rows, D, scores + h * room + first);
      });
      for (int64_t h = 0; count > 0 && h < heads; ++h) {
        values.prefetch(0, h);
        float* own = scores + h * room;
        const float factor = exponentials(own, count, ceiling(count, kLanes) * kLanes, float(scale));
        for (int64_t j = 0; j < count; ++j) own[j] *= factor;
      }
      values.each_page([&](int64_t h, int64_t first, int64_t rows, const float* v) {
        add_values(scores + h * room + first, v, cache.v.token, rows, D, to + h * D);
      });
    }
  });
}

}  // namespace ef::EF_NS
