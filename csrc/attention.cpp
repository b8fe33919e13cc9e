// softmax(scale Q K^T) V of every (sequence, head), and its gradients; see electra_fast/ops/attention.py.
//
// A (sequence, head) is one thread's, so every sum has one order, whatever the number of threads. Its keys and values
// are packed once (gemm.h). A block of queries meets all keys at once; its scores stay in cache, so the softmax needs
// no running maximum. Times of the parts: benches/bench_attention.py.
#include <math.h>

#include <new>

#include "gemm.h"
#include "ops.h"
#include "philox.h"
#include "vexp.h"

namespace ef::EF_NS {
namespace attend {

constexpr int64_t kBlockRows = 132;          // queries at once, whole slivers; fewer where there are many keys,
constexpr int64_t kBlockScores = 32 * 1024;  // so that their scores are about this many

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t larger_of(int64_t a, int64_t b) { return a > b ? a : b; }

// (tokens, heads, D) where it lies.
template <class Float>
struct Heads {
  Float* base;
  int64_t token, head;
  Float* at(int64_t t, int64_t h) const { return base + t * token + h * head; }
};

// kLanes bytes as integers. In the compiler's notation GCC 12 widens them one by one.
static inline VecInt widened(const uint8_t* bytes) {
#if EF_ISA >= 512
  return (VecInt)_mm512_maskz_cvtepu8_epi32(0xFFFF, _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
#elif EF_ISA >= 256
  return (VecInt)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
#else
  return VecInt{bytes[0], bytes[1], bytes[2], bytes[3]};
#endif
}

struct Dropout {
  int64_t seed;
  int threshold;
  float scale() const { return threshold == 0 ? 1.0f : 256.0f / float(threshold < 256 ? 256 - threshold : 1); }
  // All ones where the byte says keep: as in philox.cpp, byte > threshold - 1.
  VecInt kept(const uint8_t* bytes) const { return widened(bytes) > VecInt{} + (threshold - 1); }
};

struct Inputs {
  Heads<const float> q, k, v;
  const int32_t *cu_seqlens, *cu_seqlens_k;
  int64_t N, H, D;
  const int64_t* row_ids;
  Dropout dropout;
  float scale;
};

// One (sequence, head): its queries and keys, how its scores are held, and where the next one begins.
struct Task {
  int64_t h, first, end, Sq, first_k, Sk;
  int64_t columns;  // Sk in whole panels
  int64_t ld;       // from row to row of the scores: were it a power of two, columns would fall into one cache set
  int64_t rows;     // of scores at once
  int64_t next, next_k, next_h;

  Task(const Inputs& in, int64_t n, int64_t h)
      : h(h),
        first(in.cu_seqlens[n]),
        end(in.cu_seqlens[n + 1]),
        Sq(end - first),
        first_k(in.cu_seqlens_k[n]),
        Sk(in.cu_seqlens_k[n + 1] - first_k),
        columns(panels(Sk) * kPanel),
        ld(columns + 16),
        rows(smaller(kBlockRows, larger_of(2, kBlockScores / ld / kSliver) * kSliver)),
        next(h + 1 < in.H ? first : end),
        next_k(h + 1 < in.H ? first_k : first_k + Sk),
        next_h(h + 1 < in.H ? h + 1 : 0) {}
};

// Asks for a row that the next task reads or writes: a head's rows lie a projection's width apart, where no hardware
// looks ahead.
template <class Float>
static inline void look_ahead(const Heads<Float>& x, int64_t t, int64_t h, int64_t D) {
  for (int64_t d = 0; d < D; d += 16) __builtin_prefetch(x.at(t, h) + d, 0, 2);
}

// A row of scores into exponentials over their maximum, dropped ones 0: the maximum, and the sum before dropout.
struct Softmax {
  float max, sum;
};

static inline Softmax softmax(float* scores, int64_t columns, const Dropout& dropout, int64_t row_id, uint32_t plane) {
  Vec tops[2] = {load(scores), load(scores + kLanes)};
  for (int64_t j = kPanel; j < columns; j += kPanel)
    for (int half = 0; half < 2; ++half) tops[half] = larger(load(scores + j + half * kLanes), tops[half]);
  const float max = largest_of(larger(tops[0], tops[1]));
  Vec sums[2] = {};
  for (int64_t c = 0; c < columns; c += kBlockColumns) {
    uint8_t bytes[kBlockColumns];
    if (dropout.threshold) philox_block(dropout.seed, row_id, uint32_t(c / 16), plane, bytes);
    const int64_t width = smaller(kBlockColumns, columns - c);
    for (int64_t j = 0; j < width; j += kPanel) {
      for (int half = 0; half < 2; ++half) {
        float* at = scores + c + j + half * kLanes;
        const Vec p = vexp(load(at) - max);
        sums[half] += p;
        store(at, dropout.threshold ? (Vec)((VecInt)p & dropout.kept(bytes + j + half * kLanes)) : p);
      }
    }
  }
  return {max, sum_of(sums[0] + sums[1])};
}

// A row of scores into the probabilities after dropout, and of their gradients into those of the scores. What softmax
// takes off these, their mean, is summed here and not read off out and dout, and the probabilities are made to sum to
// one, which lse, rounded, leaves them short of: so what all gradients have in common cancels, as it should.
static inline void softmax_backward(float* scores, float* grads, int64_t columns, float lse, float scale,
                                    const Dropout& dropout, int64_t row_id, uint32_t plane) {
  const VecInt sign = VecInt{} + INT32_MIN;  // of a probability: that it is dropped
  const float kept_scale = dropout.scale();
  Vec sums[2] = {}, means[2] = {};
  for (int64_t c = 0; c < columns; c += kBlockColumns) {
    uint8_t bytes[kBlockColumns];
    if (dropout.threshold) philox_block(dropout.seed, row_id, uint32_t(c / 16), plane, bytes);
    const int64_t width = smaller(kBlockColumns, columns - c);
    for (int64_t j = 0; j < width; j += kPanel) {
      for (int half = 0; half < 2; ++half) {
        const int64_t at = j + half * kLanes;
        Vec p = (Vec)((VecInt)vexp(load(scores + c + at) - lse) & ~sign), grad = load(grads + c + at);
        sums[half] += p;
        if (dropout.threshold) {
          const VecInt keep = dropout.kept(bytes + at);
          grad = (Vec)((VecInt)(grad * kept_scale) & keep);
          means[half] += p * grad;
          store(grads + c + at, grad);
          p = (Vec)((VecInt)p | (~keep & sign));
        } else {
          means[half] += p * grad;
        }
        store(scores + c + at, p);
      }
    }
  }
  const float total = sum_of(sums[0] + sums[1]), mean = sum_of(means[0] + means[1]) / total;
  for (int64_t j = 0; j < columns; j += kLanes) {
    const Vec signed_p = load(scores + j), p = (Vec)((VecInt)signed_p & ~sign);
    const VecInt dropped = (VecInt)signed_p >> 31;
    store(grads + j, p * (scale / total) * (load(grads + j) - mean));
    store(scores + j, (Vec)((VecInt)(p * (kept_scale / total)) & ~dropped));
  }
}

// Past the last key: no probability.
static inline void hide(float* scores, const Task& task, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = task.Sk; j < task.columns; ++j) scores[i * task.ld + j] = -INFINITY;
}

static inline void multiply(float* x, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

static inline void clear(Heads<float> x, int64_t first, int64_t count, int64_t h, int64_t D) {
  for (int64_t t = first; t < first + count; ++t) memset(x.at(t, h), 0, size_t(D) * sizeof(float));
}

static void forward(const Inputs& in, const Task& task, Heads<float> out, float* lse, float* memory) {
  const int64_t D = in.D, H = in.H, h = task.h, Sk = task.Sk;
  if (Sk == 0) {  // nothing to read
    clear(out, task.first, task.Sq, h, D);
    for (int64_t i = task.first; i < task.end; ++i) lse[i * H + h] = -INFINITY;
  }
  if (task.Sq == 0 || Sk == 0) return;
  float *keys_across = memory, *values = keys_across + packed_size(D, Sk), *scores = values + packed_size(Sk, D);
  pack_transposed(in.k.at(task.first_k, h), in.k.token, D, Sk, keys_across);
  multiply(keys_across, packed_size(D, Sk), in.scale);
  pack(in.v.at(task.first_k, h), in.v.token, Sk, D, values);
  for (int64_t first = task.first; first < task.end; first += task.rows) {
    const int64_t rows = smaller(task.rows, task.end - first);
    float factors[kBlockRows];
    product<false>(in.q.at(first, h), in.q.token, keys_across, rows, D, task.columns, scores, task.ld);
    hide(scores, task, rows);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t t = first + i, query = task.next + t - task.first, key = task.next_k + t - task.first;
      look_ahead(in.q, query, task.next_h, D), look_ahead(out, query, task.next_h, D);
      look_ahead(in.k, key, task.next_h, D), look_ahead(in.v, key, task.next_h, D);
      const Softmax row = softmax(scores + i * task.ld, task.columns, in.dropout, in.row_ids[t], uint32_t(1 + h));
      lse[t * H + h] = row.max + logf(row.sum);
      factors[i] = in.dropout.scale() / row.sum;
    }
    product<false>(scores, task.ld, values, rows, Sk, D, out.at(first, h), out.token);
    for (int64_t i = 0; i < rows; ++i) multiply(out.at(first + i, h), D, factors[i]);
  }
}

static void backward(const Inputs& in, const Task& task, const float* lse, Heads<const float> dout, Heads<float> dq,
                     Heads<float> dk, Heads<float> dv, float* memory) {
  const int64_t D = in.D, H = in.H, h = task.h, Sk = task.Sk;
  if (task.Sq == 0 || Sk == 0) {  // what nobody reads, or reads nothing, moves nothing
    clear(dq, task.first, task.Sq, h, D), clear(dk, task.first_k, Sk, h, D), clear(dv, task.first_k, Sk, h, D);
    return;
  }
  float *keys_across = memory, *values_across = keys_across + packed_size(D, Sk);
  float *keys = values_across + packed_size(D, Sk), *queries = keys + packed_size(Sk, D);
  float *upstream = queries + packed_size(task.rows, D), *scores = upstream + packed_size(task.rows, D);
  float* grads = scores + task.rows * task.ld;
  pack_transposed(in.k.at(task.first_k, h), in.k.token, D, Sk, keys_across);
  multiply(keys_across, packed_size(D, Sk), in.scale);
  pack_transposed(in.v.at(task.first_k, h), in.v.token, D, Sk, values_across);
  pack(in.k.at(task.first_k, h), in.k.token, Sk, D, keys);
  for (int64_t first = task.first; first < task.end; first += task.rows) {
    const int64_t rows = smaller(task.rows, task.end - first);
    const bool add = first > task.first;
    product<false>(in.q.at(first, h), in.q.token, keys_across, rows, D, task.columns, scores, task.ld);
    product<false>(dout.at(first, h), dout.token, values_across, rows, D, task.columns, grads, task.ld);
    hide(scores, task, rows);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t t = first + i, query = task.next + t - task.first, key = task.next_k + t - task.first;
      look_ahead(in.q, query, task.next_h, D), look_ahead(dout, query, task.next_h, D);
      look_ahead(in.k, key, task.next_h, D), look_ahead(in.v, key, task.next_h, D);
      look_ahead(dq, query, task.next_h, D), look_ahead(dk, key, task.next_h, D), look_ahead(dv, key, task.next_h, D);
      softmax_backward(scores + i * task.ld, grads + i * task.ld, task.columns, lse[t * H + h], in.scale, in.dropout,
                       in.row_ids[t], uint32_t(1 + h));
    }
    pack(dout.at(first, h), dout.token, rows, D, upstream);
    pack(in.q.at(first, h), in.q.token, rows, D, queries);
    float *v_sums = dv.at(task.first_k, h), *k_sums = dk.at(task.first_k, h);
    product<true>(scores, task.ld, upstream, Sk, rows, D, v_sums, dv.token, add ? v_sums : nullptr, dv.token);
    product<true>(grads, task.ld, queries, Sk, rows, D, k_sums, dk.token, add ? k_sums : nullptr, dk.token);
    product<false>(grads, task.ld, keys, rows, Sk, D, dq.at(first, h), dq.token);
  }
}

// Calls one(task, memory) for every (sequence, head); memory is what the largest backward works in.
template <class One>
static void for_each(const Inputs& in, Threads threads, One one) {
  int64_t floats = 0, products = 0;
  for (int64_t n = 0; n < in.N; ++n) {
    const Task task(in, n, 0);
    const int64_t packed = 2 * packed_size(in.D, task.Sk) + packed_size(task.Sk + 2 * task.rows, in.D);
    floats = larger_of(floats, packed + 2 * task.rows * task.ld), products += task.Sq * task.Sk;
  }
  // Where all have enough to do, a thread takes the heads that it looks ahead to.
  const int64_t at_once = in.N >= 4 * threads ? in.H : 1;
#pragma omp parallel num_threads(threads) if (products * in.H * in.D >= 1 << 17)  // about 10 us
  {
    float* memory = new (std::align_val_t(64)) float[floats];
#pragma omp for schedule(dynamic, at_once)
    for (int64_t task = 0; task < in.N * in.H; ++task) one(Task(in, task / in.H, task % in.H), memory);
    operator delete[](memory, std::align_val_t(64));
  }
}

}  // namespace attend

void attention_fwd(const float* q, int64_t q_token, int64_t q_head, const float* k, int64_t k_token, int64_t k_head,
                   const float* v, int64_t v_token, int64_t v_head, const int32_t* cu_seqlens,
                   const int32_t* cu_seqlens_k, int64_t N, int64_t H, int64_t D, const int64_t* row_ids, int64_t seed,
                   int threshold, double scale, float* out, int64_t out_token, int64_t out_head, float* lse,
                   Threads threads) {
  const attend::Inputs in = {
      {q, q_token, q_head}, {k, k_token, k_head}, {v, v_token, v_head}, cu_seqlens, cu_seqlens_k, N, H, D, row_ids,
      {seed, threshold},    float(scale)};
  attend::for_each(in, threads, [&](const attend::Task& task, float* memory) {
    attend::forward(in, task, {out, out_token, out_head}, lse, memory);
  });
}

void attention_bwd(const float* q, int64_t q_token, int64_t q_head, const float* k, int64_t k_token, int64_t k_head,
                   const float* v, int64_t v_token, int64_t v_head, const int32_t* cu_seqlens,
                   const int32_t* cu_seqlens_k, int64_t N, int64_t H, int64_t D, const int64_t* row_ids, int64_t seed,
                   int threshold, double scale, const float* lse, const float* dout, int64_t dout_token,
                   int64_t dout_head, float* dq, int64_t dq_token, int64_t dq_head, float* dk, int64_t dk_token,
                   int64_t dk_head, float* dv, int64_t dv_token, int64_t dv_head, Threads threads) {
  const attend::Inputs in = {
      {q, q_token, q_head}, {k, k_token, k_head}, {v, v_token, v_head}, cu_seqlens, cu_seqlens_k, N, H, D, row_ids,
      {seed, threshold},    float(scale)};
  attend::for_each(in, threads, [&](const attend::Task& task, float* memory) {
    attend::backward(in, task, lse, {dout, dout_token, dout_head}, {dq, dq_token, dq_head}, {dk, dk_token, dk_head},
                     {dv, dv_token, dv_head}, memory);
  });
}

}  // namespace ef::EF_NS
