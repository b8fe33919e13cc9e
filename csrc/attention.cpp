// softmax(scale Q K^T) V of every (sequence, head), and its gradients; see electra_fast/ops/attention.py.
//
// One thread computes a (sequence, head), so the order of every sum, and its bits, do not depend on the number of
// threads. It packs keys and values once (gemm.h), and computes the scores of a block of queries with all keys; these
// stay in cache, so the softmax needs no running maximum. Where attention is causal, products leave out what lies above
// the diagonal, in steps of kSliver rows and kPanel columns. benches/bench_attention.py measures it.
#include <math.h>

#include "dropout.h"
#include "gemm.h"
#include "ops.h"
#include "rows.h"
#include "vexp.h"

namespace ef::EF_NS {
namespace attend {

constexpr int64_t kBlockRows = 132;          // the most queries of a block, a multiple of kSliver
constexpr int64_t kBlockScores = 32 * 1024;  // where there are many keys, a block has about this many scores

static inline int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

template <class Float>
static inline Float* at(const Heads<Float>& x, int64_t t, int64_t h) {
  return x.data + t * x.token + h * x.head;
}

// One (sequence, head): its queries and keys, how its scores are laid out, and where the next one begins.
struct Task {
  int64_t h, first, end, Sq, first_k, Sk;
  bool causal;
  int64_t seeing;  // the first query that sees a key; those before it have a result of 0
  int64_t ld;      // distance between rows of scores: a power of two would map a column to one cache set
  int64_t rows;    // rows of scores in a block
  int64_t next, next_k, next_h;

  Task(const Attention& in, int64_t n, int64_t h)
      : h(h),
        first(in.sequences.queries[n]),
        end(in.sequences.queries[n + 1]),
        Sq(end - first),
        first_k(in.sequences.keys[n]),
        Sk(in.sequences.keys[n + 1] - first_k),
        causal(in.causal),
        seeing(Sk == 0  ? end
               : causal ? larger_of(first, end - Sk)
                        : first),
        ld(panels(Sk) * kPanel + 16),
        rows(smaller(kBlockRows, larger_of(2, kBlockScores / ld / kSliver) * kSliver)),
        next(h + 1 < in.H ? first : end),
        next_k(h + 1 < in.H ? first_k : first_k + Sk),
        next_h(h + 1 < in.H ? h + 1 : 0) {}
  // How many keys query t sees, the first ones.
  int64_t keys_of(int64_t t) const { return causal ? Sk - (end - 1 - t) : Sk; }
};

namespace {  // internal, as static is for functions: no symbol of theirs leaves the instruction set's object

// A block of a task's queries, of which each sees the first keys. In causal attention row i of the block sees i more
// than row 0; what no row of a sliver sees is neither computed nor read.
struct Block {
  const int64_t first, rows, least, keys;  // its first query; its size; the keys that its first and last query see
  const bool causal;

  Block(const Task& task, int64_t first)
      : first(first),
        rows(smaller(task.rows, task.end - first)),
        least(task.keys_of(first)),
        keys(task.keys_of(first + rows - 1)),
        causal(task.causal) {}
  int64_t keys_of(int64_t row) const { return causal ? least + row : keys; }
  int64_t first_row(int64_t key) const { return larger_of(0, key - least + 1); }  // the first one that sees it
  // The scores of a row that are used, whole panels. A product that reads a sliver of rows or keys reads up to
  // kSliver - 1 that the row does not see.
  int64_t columns_of(int64_t row) const {
    const int64_t last = smaller(rows, (row / kSliver + 1) * kSliver) - 1;
    return panels(smaller(keys, keys_of(last) + kSliver - 1)) * kPanel;
  }
  // c (rows, keys) = a (rows, K) times the packed b (K, keys).
  void of_keys(const float* a, int64_t lda, const float* packed, int64_t K, float* c, int64_t ldc) const {
    for (int64_t n = 0; n < keys; n += kPanel, packed += K * kPanel) {
      const int64_t m = first_row(n) / kSliver * kSliver;
      product<false>(a + m * lda, lda, packed, rows - m, K, kPanel, c + m * ldc + n, ldc);
    }
  }
  // c (rows, N) = a (rows, keys) times the first rows of the packed b (depth, N).
  void over_keys(const float* a, int64_t lda, const float* packed, int64_t depth, int64_t N, float* c,
                 int64_t ldc) const {
    const int64_t step = causal ? kSliver : rows;
    for (int64_t n = 0; n < N; n += kPanel, packed += depth * kPanel)
      for (int64_t m = 0; m < rows; m += step) {
        const int64_t count = smaller(step, rows - m);
        product<false>(a + m * lda, lda, packed, count, keys_of(m + count - 1), smaller(kPanel, N - n), c + m * ldc + n,
                       ldc);
      }
  }
  // c (keys, N) = the transpose of a (rows, keys) times the packed b (rows, N), or if `add` is true, plus that.
  void over_rows(const float* a, int64_t lda, const float* packed, int64_t N, float* c, int64_t ldc, bool add) const {
    const int64_t step = causal ? kSliver : keys;
    for (int64_t n = 0; n < N; n += kPanel, packed += rows * kPanel)
      for (int64_t m = 0; m < keys; m += step) {
        const int64_t r = first_row(m);
        float* to = c + m * ldc + n;
        product<true>(a + r * lda + m, lda, packed + r * kPanel, smaller(step, keys - m), rows - r,
                      smaller(kPanel, N - n), to, ldc, add ? to : nullptr, ldc);
      }
  }
};

}  // namespace

// Prefetches a row that the next task reads or writes. The hardware does not: consecutive rows of a head are as far
// apart as the projection is wide.
template <class Float>
static inline void look_ahead(const Heads<Float>& x, int64_t t, int64_t h, int64_t D) {
  for (int64_t d = 0; d < D; d += 16) __builtin_prefetch(at(x, t, h) + d, 0, 2);
}

// The maximum of a row of scores, and the sum of their exponentials before dropout.
struct Softmax {
  float max, sum;
};

// Turns a row of scores into exponentials relative to their maximum, 0 where they are dropped.
static inline Softmax softmax(float* scores, int64_t columns, const Dropout& rule, int64_t row_id, uint32_t plane) {
  Vec tops[2] = {load(scores), load(scores + kLanes)};
  for (int64_t j = kPanel; j < columns; j += kPanel)
    for (int half = 0; half < 2; ++half) tops[half] = larger(load(scores + j + half * kLanes), tops[half]);
  const float max = largest_of(larger(tops[0], tops[1]));
  Vec sums[2] = {};
  RowDropout dropout(rule.threshold);
  for (int64_t c = 0; c < columns; c += kBlockColumns) {
    dropout.draw(rule.seed, row_id, c, plane);
    const int64_t width = smaller(kBlockColumns, columns - c);
    for (int64_t j = 0; j < width; j += kPanel) {
      for (int half = 0; half < 2; ++half) {
        float* score = scores + c + j + half * kLanes;
        const Vec p = vexp(load(score) - max);
        sums[half] += p;
        store(score, rule.threshold ? (Vec)((VecInt)p & dropout.kept(j + half * kLanes)) : p);
      }
    }
  }
  return {max, sum_of(sums[0] + sums[1])};
}

// Replaces a row of scores by the probabilities after dropout, and a row of the probabilities' gradients by the scores'
// gradients. The softmax's backward subtracts the mean of the gradients, weighted by the probabilities. The mean is
// summed here, not computed as sum(out dout), and the probabilities are scaled to sum to 1, which the rounding of lse
// prevents: so a constant that all gradients share cancels exactly.
static inline void softmax_backward(float* scores, float* grads, int64_t columns, float lse, float scale,
                                    const Dropout& rule, int64_t row_id, uint32_t plane) {
  const VecInt sign = VecInt{} + INT32_MIN;  // marks a probability that is dropped
  RowDropout dropout(rule.threshold);
  Vec sums[2] = {}, means[2] = {};
  for (int64_t c = 0; c < columns; c += kBlockColumns) {
    dropout.draw(rule.seed, row_id, c, plane);
    const int64_t width = smaller(kBlockColumns, columns - c);
    for (int64_t j = 0; j < width; j += kPanel) {
      for (int half = 0; half < 2; ++half) {
        const int64_t i = j + half * kLanes;
        Vec p = (Vec)((VecInt)vexp(load(scores + c + i) - lse) & ~sign), grad = load(grads + c + i);
        sums[half] += p;
        if (rule.threshold) {
          const VecInt keep = dropout.kept(i);
          grad = (Vec)((VecInt)(grad * dropout.scale) & keep);
          means[half] += p * grad;
          store(grads + c + i, grad);
          p = (Vec)((VecInt)p | (~keep & sign));
        } else {
          means[half] += p * grad;
        }
        store(scores + c + i, p);
      }
    }
  }
  const float total = sum_of(sums[0] + sums[1]), mean = sum_of(means[0] + means[1]) / total;
  for (int64_t j = 0; j < columns; j += kLanes) {
    const Vec signed_p = load(scores + j), p = (Vec)((VecInt)signed_p & ~sign);
    const VecInt dropped = (VecInt)signed_p >> 31;
    store(grads + j, p * (scale / total) * (load(grads + j) - mean));
    store(scores + j, (Vec)((VecInt)(p * (dropout.scale / total)) & ~dropped));
  }
}

// Puts a value in place of the scores, or their gradients, of the keys that a query does not see, and beyond the last
// key. Where scores are -inf, probabilities are 0.
static inline void hide(float* scores, int64_t ld, const Block& block, float value) {
  for (int64_t i = 0; i < block.rows; ++i)
    for (int64_t j = block.keys_of(i); j < block.columns_of(i); ++j) scores[i * ld + j] = value;
}

static inline void multiply(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

static inline void clear(const Heads<float>& x, int64_t first, int64_t count, int64_t h, int64_t D) {
  for (int64_t t = first; t < first + count; ++t) memset(at(x, t, h), 0, size_t(D) * sizeof(float));
}

static void forward(const Attention& in, const Task& task, const Heads<float>& out, float* lse, float* memory) {
  const int64_t D = in.D, H = in.H, h = task.h, Sk = task.Sk;
  clear(out, task.first, task.seeing - task.first, h, D);
  for (int64_t t = task.first; t < task.seeing; ++t) lse[t * H + h] = -INFINITY;
  if (task.seeing == task.end) return;
  const float scale = dropout_scale(in.dropout.threshold);
  float *keys_across = memory, *values = keys_across + packed_size(D, Sk), *scores = values + packed_size(Sk, D);
  pack_transposed(at(in.k, task.first_k, h), in.k.token, D, Sk, keys_across);
  multiply(keys_across, packed_size(D, Sk), float(in.scale));
  pack(at(in.v, task.first_k, h), in.v.token, Sk, D, values);
  for (int64_t first = task.seeing; first < task.end; first += task.rows) {
    const Block block(task, first);
    float factors[kBlockRows];
    block.of_keys(at(in.q, first, h), in.q.token, keys_across, D, scores, task.ld);
    hide(scores, task.ld, block, -INFINITY);
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t t = first + i, query = task.next + t - task.first, key = task.next_k + t - task.first;
      look_ahead(in.q, query, task.next_h, D), look_ahead(out, query, task.next_h, D);
      look_ahead(in.k, key, task.next_h, D), look_ahead(in.v, key, task.next_h, D);
      const int64_t row_id = in.dropout.row_ids[t];
      const Softmax row = softmax(scores + i * task.ld, block.columns_of(i), in.dropout, row_id, uint32_t(1 + h));
      lse[t * H + h] = row.max + logf(row.sum);
      factors[i] = scale / row.sum;
    }
    block.over_keys(scores, task.ld, values, Sk, D, at(out, first, h), out.token);
    for (int64_t i = 0; i < block.rows; ++i) multiply(at(out, first + i, h), D, factors[i]);
  }
}

// Where the gradients of q, k and v go.
struct Gradients {
  const Heads<float>&q, &k, &v;
};

static void backward(const Heads<const float>& dout, const Attention& in, const Task& task, const float* lse,
                     const Gradients& d, float* memory) {
  const int64_t D = in.D, H = in.H, h = task.h, Sk = task.Sk;
  const bool none = task.seeing == task.end;
  clear(d.q, task.first, task.seeing - task.first, h, D);
  if (none || task.causal) clear(d.k, task.first_k, Sk, h, D), clear(d.v, task.first_k, Sk, h, D);
  if (none) return;
  float *keys_across = memory, *values_across = keys_across + packed_size(D, Sk);
  float *keys = values_across + packed_size(D, Sk), *queries = keys + packed_size(Sk, D);
  float *upstream = queries + packed_size(task.rows, D), *scores = upstream + packed_size(task.rows, D);
  float* grads = scores + task.rows * task.ld;
  pack_transposed(at(in.k, task.first_k, h), in.k.token, D, Sk, keys_across);
  multiply(keys_across, packed_size(D, Sk), float(in.scale));
  pack_transposed(at(in.v, task.first_k, h), in.v.token, D, Sk, values_across);
  pack(at(in.k, task.first_k, h), in.k.token, Sk, D, keys);
  for (int64_t first = task.seeing; first < task.end; first += task.rows) {
    const Block block(task, first);
    const bool add = task.causal || first > task.first;
    block.of_keys(at(in.q, first, h), in.q.token, keys_across, D, scores, task.ld);
    block.of_keys(at(dout, first, h), dout.token, values_across, D, grads, task.ld);
    hide(scores, task.ld, block, -INFINITY), hide(grads, task.ld, block, 0);
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t t = first + i, query = task.next + t - task.first, key = task.next_k + t - task.first;
      look_ahead(in.q, query, task.next_h, D), look_ahead(dout, query, task.next_h, D);
      look_ahead(in.k, key, task.next_h, D), look_ahead(in.v, key, task.next_h, D);
      look_ahead(d.q, query, task.next_h, D), look_ahead(d.k, key, task.next_h, D);
      look_ahead(d.v, key, task.next_h, D);
      softmax_backward(scores + i * task.ld, grads + i * task.ld, block.columns_of(i), lse[t * H + h], float(in.scale),
                       in.dropout, in.dropout.row_ids[t], uint32_t(1 + h));
    }
    pack(at(dout, first, h), dout.token, block.rows, D, upstream);
    pack(at(in.q, first, h), in.q.token, block.rows, D, queries);
    block.over_rows(scores, task.ld, upstream, D, at(d.v, task.first_k, h), d.v.token, add);
    block.over_rows(grads, task.ld, queries, D, at(d.k, task.first_k, h), d.k.token, add);
    block.over_keys(grads, task.ld, keys, Sk, D, at(d.q, first, h), d.q.token);
  }
}

// Calls one(task, memory) for every (sequence, head); memory is each thread's own, as much as the largest backward
// needs.
template <class One>
static void for_each(const Attention& in, Threads threads, One one) {
  const int64_t N = in.sequences.N;
  int64_t floats = 0, products = 0;
  for (int64_t n = 0; n < N; ++n) {
    const Task task(in, n, 0);
    const int64_t packed = 2 * packed_size(in.D, task.Sk) + packed_size(task.Sk + 2 * task.rows, in.D);
    floats = larger_of(floats, packed + 2 * task.rows * task.ld), products += task.Sq * task.Sk;
  }
  const int64_t parts = products * in.H * in.D >= 1 << 17 ? threads : 1;  // from about 10 us on
  // Where all threads have enough to do, a thread takes the heads that it looks ahead to.
  const int64_t tasks = N * in.H, at_once = N >= 4 * threads ? in.H : 1, own = ceiling(floats, 16) * 16;
  const Floats memory(parts * own);
  int64_t next = 0;
  parallel(parts, parts, [&](int64_t part) {
    for (int64_t first; (first = __atomic_fetch_add(&next, at_once, __ATOMIC_RELAXED)) < tasks;) {
      for (int64_t task = first; task < smaller(tasks, first + at_once); ++task)
        one(Task(in, task / in.H, task % in.H), memory.at + part * own);
    }
  });
}

}  // namespace attend

void attention_fwd(const Attention& attention, const Heads<float>& out, float* lse, Threads threads) {
  attend::for_each(attention, threads, [&](const attend::Task& task, float* memory) {
    attend::forward(attention, task, out, lse, memory);
  });
}

void attention_bwd(const Heads<const float>& dout, const Attention& attention, const float* lse, const Heads<float>& dq,
                   const Heads<float>& dk, const Heads<float>& dv, Threads threads) {
  attend::for_each(attention, threads, [&](const attend::Task& task, float* memory) {
    attend::backward(dout, attention, task, lse, {dq, dk, dv}, memory);
  });
}

}  // namespace ef::EF_NS
