// softmax(scale Q K^T) V of every (sequence, head), and its gradients; see electra_fast/ops/attention.py.
//
// One thread computes a (sequence, head), so the order of every sum, and its bits, do not depend on the number of
// threads. It packs keys and values once (gemm.h), and computes the scores of a block of queries with all keys; these
// stay in cache, so the softmax needs no running maximum. Where attention is causal, blocks of queries are small, and
// only the keys that a block's last query sees are computed. benches/bench_attention.py measures it.
#include <math.h>

#include "dropout.h"
#include "gemm.h"
#include "ops.h"
#include "rows.h"
#include "vexp.h"

namespace ef::EF_NS {
namespace attend {

constexpr int64_t kBlockRows = 132;          // the most queries of a block, a multiple of kSliver
constexpr int64_t kCausalRows = 4 * kSliver;  // those of a causal block, which computes up to as many scores in vain
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
        seeing(Sk == 0 ? end : causal ? larger_of(first, end - Sk) : first),
        ld(panels(Sk) * kPanel + 16),
        rows(smaller(causal ? kCausalRows : kBlockRows, larger_of(2, kBlockScores / ld / kSliver) * kSliver)),
        next(h + 1 < in.H ? first : end),
        next_k(h + 1 < in.H ? first_k : first_k + Sk),
        next_h(h + 1 < in.H ? h + 1 : 0) {}
  // How many keys query t sees, the first ones.
  int64_t keys_of(int64_t t) const { return causal ? Sk - (end - 1 - t) : Sk; }
};

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

// Sets the scores of the keys that a query does not see, and those beyond the last key, to -inf, so that their
// probabilities are 0. first: the query of the first row.
static inline void hide(float* scores, const Task& task, int64_t first, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = task.keys_of(first + i); j < columns; ++j) scores[i * task.ld + j] = -INFINITY;
}

// c (M, N) = a (M, K) times the first K rows of the packed b (depth, N).
static inline void product_of_first(const float* a, int64_t lda, const float* packed, int64_t depth, int64_t M,
                                    int64_t K, int64_t N, float* c, int64_t ldc) {
  for (int64_t n = 0; n < N; n += kPanel, packed += depth * kPanel)
    product<false>(a, lda, packed, M, K, smaller(kPanel, N - n), c + n, ldc);
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
    const int64_t rows = smaller(task.rows, task.end - first);
    const int64_t keys = task.keys_of(first + rows - 1), columns = panels(keys) * kPanel;
    float factors[kBlockRows];
    product<false>(at(in.q, first, h), in.q.token, keys_across, rows, D, columns, scores, task.ld);
    hide(scores, task, first, rows, columns);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t t = first + i, query = task.next + t - task.first, key = task.next_k + t - task.first;
      look_ahead(in.q, query, task.next_h, D), look_ahead(out, query, task.next_h, D);
      look_ahead(in.k, key, task.next_h, D), look_ahead(in.v, key, task.next_h, D);
      const int64_t row_id = in.dropout.row_ids[t];
      const Softmax row = softmax(scores + i * task.ld, columns, in.dropout, row_id, uint32_t(1 + h));
      lse[t * H + h] = row.max + logf(row.sum);
      factors[i] = scale / row.sum;
    }
    product_of_first(scores, task.ld, values, Sk, rows, keys, D, at(out, first, h), out.token);
    for (int64_t i = 0; i < rows; ++i) multiply(at(out, first + i, h), D, factors[i]);
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
    const int64_t rows = smaller(task.rows, task.end - first);
    const int64_t seen = task.keys_of(first + rows - 1), columns = panels(seen) * kPanel;
    const bool add = task.causal || first > task.first;
    product<false>(at(in.q, first, h), in.q.token, keys_across, rows, D, columns, scores, task.ld);
    product<false>(at(dout, first, h), dout.token, values_across, rows, D, columns, grads, task.ld);
    hide(scores, task, first, rows, columns);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t t = first + i, query = task.next + t - task.first, key = task.next_k + t - task.first;
      look_ahead(in.q, query, task.next_h, D), look_ahead(dout, query, task.next_h, D);
      look_ahead(in.k, key, task.next_h, D), look_ahead(in.v, key, task.next_h, D);
      look_ahead(d.q, query, task.next_h, D), look_ahead(d.k, key, task.next_h, D);
      look_ahead(d.v, key, task.next_h, D);
      softmax_backward(scores + i * task.ld, grads + i * task.ld, columns, lse[t * H + h], float(in.scale), in.dropout,
                       in.dropout.row_ids[t], uint32_t(1 + h));
    }
    pack(at(dout, first, h), dout.token, rows, D, upstream);
    pack(at(in.q, first, h), in.q.token, rows, D, queries);
    float *v_sums = at(d.v, task.first_k, h), *k_sums = at(d.k, task.first_k, h);
    product<true>(scores, task.ld, upstream, seen, rows, D, v_sums, d.v.token, add ? v_sums : nullptr, d.v.token);
    product<true>(grads, task.ld, queries, seen, rows, D, k_sums, d.k.token, add ? k_sums : nullptr, d.k.token);
    product_of_first(grads, task.ld, keys, Sk, rows, seen, D, at(d.q, first, h), d.q.token);
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
#pragma omp parallel for num_threads(int(parts)) schedule(static)
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t first = 0; first < tasks;) {
#pragma omp atomic capture
      {
        first = next;
        next += at_once;
      }
      for (int64_t task = first; task < smaller(tasks, first + at_once); ++task)
        one(Task(in, task / in.H, task % in.H), memory.at + part * own);
    }
  }
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
