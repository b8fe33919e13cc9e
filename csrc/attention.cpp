// softmax(scale Q K^T) V of every (sequence, head), and its gradients; see electra_fast/ops/attention.py.
//
// A (sequence, head) is one thread's, so every sum has one order, whatever the number of threads. Keys and values are
// packed first, into panels as wide as a register tile: rows of a projection lie a power of two or so apart, and would
// fight for the same few sets of the cache. A block of queries meets all keys at once; its scores stay in cache, so the
// softmax needs no running maximum. Times of the parts: benches/bench_attention.py.
#include <math.h>
#include <stdlib.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "ops.h"
#include "philox.h"

namespace ef::EF_NS {
namespace attend {

constexpr int kLanes = EF_ISA / 32;
constexpr int kWidth = 2 * kLanes;              // of a register tile, and of a panel
constexpr int kHeight = EF_ISA >= 512 ? 8 : 6;  // with two registers a row: what the register file holds
constexpr int kBlockRows = 64;                  // queries at once; fewer where there are many keys
constexpr int64_t kBlockScores = 48 * 1024;     // of them: 192 KB

typedef float Vec __attribute__((vector_size(EF_ISA / 8)));
typedef uint32_t Bits __attribute__((vector_size(EF_ISA / 8)));
typedef int32_t Signed __attribute__((vector_size(EF_ISA / 8)));
typedef uint8_t Bytes __attribute__((vector_size(EF_ISA / 32)));
typedef float Anywhere __attribute__((vector_size(EF_ISA / 8), aligned(4), may_alias));

static inline Vec load(const float* from) { return *reinterpret_cast<const Anywhere*>(from); }
static inline void store(float* to, Vec x) { *reinterpret_cast<Anywhere*>(to) = x; }
static inline Vec larger(Vec x, Vec y) { return x > y ? x : y; }  // y where x is NaN
static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static inline float sum(Vec x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

// e^x for x <= 88: 2^n of the rounded exponent times a polynomial (Cephes expf) of the rest. Within 1.02 ulp, every
// float from -87.3 to 0 tried; 0 below -87.7, where e^x is subnormal. NaN stays NaN: it fails the comparison, and it
// meets 2^n in a product, not in its bits.
static inline Vec exponential(Vec x) {
  const Vec lowest = Vec{} - 88.f;
  x = x < lowest ? lowest : x;
  const Vec shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f;  // the integer, in the low bits
  const Vec rest = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * (rest * rest) + rest + 1.f;
  const Bits power = ((Bits)shifted << 23) + 0x3F800000u;
  return p * (Vec)power;
}

// All ones where the byte says keep: as in philox.cpp, byte > threshold - 1.
static inline Bits kept(const uint8_t* bytes, uint32_t limit) {
  Bytes drawn;
  memcpy(&drawn, bytes, sizeof drawn);
  return (Bits)(__builtin_convertvector(drawn, Bits) > Bits{} + limit);
}

// c (M, kWidth) = a (M, K) b (K, kWidth), or added to c. A's element (i, k) is a[i * stride + k], or with `Across`
// a[k * stride + i].
template <int M, bool Across>
static inline void tile(int64_t K, const float* a, int64_t stride, const float* b, float* c, int64_t ldc, bool add) {
  // Every loop over the tile unrolled: else GCC keeps it in memory.
  Vec acc[M][2];
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) acc[i][0] = acc[i][1] = Vec{};
  for (int64_t k = 0; k < K; ++k, b += kWidth) {
    const Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) {
      const float x = Across ? a[k * stride + i] : a[i * stride + k];
      acc[i][0] += b0 * x;
      acc[i][1] += b1 * x;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; ++i) {
    float* to = c + i * ldc;
    store(to, add ? load(to) + acc[i][0] : acc[i][0]);
    store(to + kLanes, add ? load(to + kLanes) + acc[i][1] : acc[i][1]);
  }
}

template <int M, bool Across>
static void last_tile(int64_t rows, int64_t K, const float* a, int64_t stride, const float* b, float* c, int64_t ldc,
                      bool add) {
  if constexpr (M > 0) {
    if (rows == M)
      tile<M, Across>(K, a, stride, b, c, ldc, add);
    else
      last_tile<M - 1, Across>(rows, K, a, stride, b, c, ldc, add);
  }
}

// c (M, N) = a (M, K) b, or added to c: b is N / kWidth panels of (K, kWidth).
template <bool Across>
static void product(int64_t M, int64_t N, int64_t K, const float* a, int64_t stride, const float* b, float* c,
                    int64_t ldc, bool add = false) {
  const int64_t step = Across ? 1 : stride;  // from a row of A to the next
  for (int64_t j = 0; j < N; j += kWidth, b += K * kWidth) {
    int64_t i = 0;
    for (; i + kHeight <= M; i += kHeight) tile<kHeight, Across>(K, a + i * step, stride, b, c + i * ldc + j, ldc, add);
    last_tile<kHeight - 1, Across>(M - i, K, a + i * step, stride, b, c + i * ldc + j, ldc, add);
  }
}

// Rows x (S, D) into panels (S, kWidth) of columns, 0 past the last.
static void pack(const float* x, int64_t stride, int64_t S, int64_t D, float* to) {
  for (int64_t d = 0; d < D; d += kWidth) {
    const int64_t width = smaller(kWidth, D - d);
    for (int64_t s = 0; s < S; ++s, to += kWidth) {
      const float* from = x + s * stride + d;
      if (width == kWidth) {
        store(to, load(from)), store(to + kLanes, load(from + kLanes));
      } else {
        for (int64_t i = 0; i < width; ++i) to[i] = from[i];
        for (int64_t i = width; i < kWidth; ++i) to[i] = 0;
      }
    }
  }
}

// Rows x (S, D), times scale, into panels (D, kWidth) of the transpose, 0 past the last row.
static void pack_transposed(const float* x, int64_t stride, int64_t S, int64_t D, float scale, float* to) {
  for (int64_t s = 0; s < S; s += kWidth, to += D * kWidth) {
    for (int64_t i = 0; i < kWidth; i += 4) {
      const int64_t rows = smaller(4, S - s - i);
      const float* from = x + (s + i) * stride;
      int64_t d = 0;
#ifdef __SSE2__
      if (rows == 4) {
        const __m128 factor = _mm_set1_ps(scale);
        for (; d + 4 <= D; d += 4) {
          __m128 r0 = _mm_loadu_ps(from + d), r1 = _mm_loadu_ps(from + stride + d);
          __m128 r2 = _mm_loadu_ps(from + 2 * stride + d), r3 = _mm_loadu_ps(from + 3 * stride + d);
          _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
          float* at = to + d * kWidth + i;
          _mm_storeu_ps(at, _mm_mul_ps(r0, factor));
          _mm_storeu_ps(at + kWidth, _mm_mul_ps(r1, factor));
          _mm_storeu_ps(at + 2 * kWidth, _mm_mul_ps(r2, factor));
          _mm_storeu_ps(at + 3 * kWidth, _mm_mul_ps(r3, factor));
        }
      }
#endif
      for (; d < D; ++d)
        for (int64_t r = 0; r < 4; ++r) to[d * kWidth + i + r] = r < rows ? from[r * stride + d] * scale : 0;
    }
  }
}

static void write(const float* from, int64_t D, float factor, float* to) {
  for (int64_t d = 0; d < D; ++d) to[d] = from[d] * factor;
}

struct Dropout {
  int64_t seed;
  int threshold;
  uint32_t limit() const { return uint32_t(threshold - 1); }
  float scale() const { return threshold == 0 ? 1.f : float(256. / (threshold < 256 ? 256 - threshold : 1)); }
};

// A row of scores into exponentials over their maximum, dropped ones 0: the maximum, and the sum before dropout.
struct Softmax {
  float max, sum;
};

static Softmax softmax(float* scores, int64_t columns, Dropout dropout, int64_t row_id, uint32_t plane) {
  Vec top = load(scores), other = load(scores + kLanes);
  for (int64_t j = kWidth; j < columns; j += kWidth)
    top = larger(load(scores + j), top), other = larger(load(scores + j + kLanes), other);
  top = larger(top, other);
  float max = top[0];
  for (int i = 1; i < kLanes; ++i) max = top[i] > max ? top[i] : max;

  Vec sums[2] = {};
  for (int64_t c = 0; c < columns; c += kBlockColumns) {
    uint8_t bytes[kBlockColumns];
    if (dropout.threshold) philox_block(dropout.seed, row_id, uint32_t(c / 16), plane, bytes);
    const int64_t width = smaller(kBlockColumns, columns - c);
    for (int64_t j = 0; j < width; j += kWidth) {
      for (int half = 0; half < 2; ++half) {
        float* at = scores + c + j + half * kLanes;
        Vec p = exponential(load(at) - max);
        sums[half] += p;
        if (dropout.threshold) p = (Vec)((Bits)p & kept(bytes + j + half * kLanes, dropout.limit()));
        store(at, p);
      }
    }
  }
  return {max, sum(sums[0] + sums[1])};
}

// A row of scores into the probabilities after dropout, and of their gradients into those of the scores. What softmax
// takes off these, their mean, is summed here and not read off out and dout, and the probabilities are made to sum to
// one, which lse, rounded, leaves them short of: so what all gradients have in common cancels, as it should.
static void softmax_backward(float* scores, float* grads, int64_t columns, float lse, Dropout dropout, int64_t row_id,
                             uint32_t plane) {
  const float scale = dropout.scale();
  const Bits sign = Bits{} + 0x80000000u;  // of a probability: that it is dropped
  Vec sums[2] = {}, means[2] = {};
  for (int64_t c = 0; c < columns; c += kBlockColumns) {
    uint8_t bytes[kBlockColumns];
    if (dropout.threshold) philox_block(dropout.seed, row_id, uint32_t(c / 16), plane, bytes);
    const int64_t width = smaller(kBlockColumns, columns - c);
    for (int64_t j = 0; j < width; j += kWidth) {
      for (int half = 0; half < 2; ++half) {
        const int64_t at = j + half * kLanes;
        Vec p = (Vec)((Bits)exponential(load(scores + c + at) - lse) & ~sign), grad = load(grads + c + at);
        sums[half] += p;
        if (dropout.threshold) {
          const Bits keep = kept(bytes + at, dropout.limit());
          grad = (Vec)((Bits)(grad * scale) & keep);
          means[half] += p * grad;
          store(grads + c + at, grad);
          p = (Vec)((Bits)p | (~keep & sign));
        } else {
          means[half] += p * grad;
        }
        store(scores + c + at, p);
      }
    }
  }
  const float total = sum(sums[0] + sums[1]), one = 1 / total, mean = sum(means[0] + means[1]) / total;
  for (int64_t j = 0; j < columns; j += kLanes) {
    const Vec signed_p = load(scores + j), p = (Vec)((Bits)signed_p & ~sign) * one;
    const Bits dropped = (Bits)((Signed)signed_p >> 31);
    store(grads + j, p * (load(grads + j) - mean));
    store(scores + j, (Vec)((Bits)(p * scale) & ~dropped));
  }
}

// Past the last key: no probability.
static void hide(float* scores, int64_t ld, int64_t rows, int64_t Sk, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = Sk; j < columns; ++j) scores[i * ld + j] = -INFINITY;
}

// What a thread works in: pieces of one allocation, or without one their total.
struct Scratch {
  float* base;
  int64_t used = 0;
  float* take(int64_t count) {
    float* piece = base ? base + used : nullptr;
    used += round_up(count, 16);
    return piece;
  }
};

struct Work {
  int64_t Sq, Sk, D, columns, ld, wide, rows;
  float *keys_across, *values, *scores, *out;                               // forward
  float *keys, *values_across, *grads, *queries, *upstream, *dq, *dk, *dv;  // backward

  Work(int64_t Sq, int64_t Sk, int64_t D, bool backward, float* base, int64_t* floats = nullptr)
      : Sq(Sq), Sk(Sk), D(D), columns(round_up(Sk, kWidth)), ld(columns + 16), wide(round_up(D, kWidth)) {
    const int64_t fit = kBlockScores / ld, most = fit < 2 * kHeight ? 2 * kHeight : smaller(fit, kBlockRows);
    const int64_t blocks = (Sq + most - 1) / most;  // of about the same size
    rows = blocks ? round_up((Sq + blocks - 1) / blocks, kHeight) : 0;
    Scratch scratch{base};
    keys_across = scratch.take(columns * D), scores = scratch.take(rows * ld);
    if (!backward) {
      values = scratch.take(Sk * wide), out = scratch.take(rows * wide);
    } else {
      values_across = scratch.take(columns * D), keys = scratch.take(Sk * wide), grads = scratch.take(rows * ld);
      queries = scratch.take(rows * wide), upstream = scratch.take(rows * wide), dq = scratch.take(rows * wide);
      dk = scratch.take(Sk * wide), dv = scratch.take(Sk * wide);
    }
    if (floats) *floats = scratch.used;
  }
};

static int64_t largest(const int32_t* cu_seqlens, const int32_t* cu_seqlens_k, int64_t N, int64_t D, bool backward) {
  int64_t most = 0, floats;
  for (int64_t n = 0; n < N; ++n) {
    Work(cu_seqlens[n + 1] - cu_seqlens[n], cu_seqlens_k[n + 1] - cu_seqlens_k[n], D, backward, nullptr, &floats);
    most = floats > most ? floats : most;
  }
  return most;
}

static float* allocate(int64_t floats) {
  return static_cast<float*>(aligned_alloc(64, size_t(round_up(floats + 16, 16)) * sizeof(float)));
}

static bool is_little(const int32_t* cu_seqlens, const int32_t* cu_seqlens_k, int64_t N, int64_t H, int64_t D) {
  int64_t products = 0;
  for (int64_t n = 0; n < N; ++n)
    products += int64_t(cu_seqlens[n + 1] - cu_seqlens[n]) * (cu_seqlens_k[n + 1] - cu_seqlens_k[n]);
  return products * H * D < 1 << 17;  // about 10 us
}

}  // namespace attend

void attention_fwd(const float* q, int64_t q_token, int64_t q_head, const float* k, int64_t k_token, int64_t k_head,
                   const float* v, int64_t v_token, int64_t v_head, const int32_t* cu_seqlens,
                   const int32_t* cu_seqlens_k, int64_t N, int64_t H, int64_t D, const int64_t* row_ids, int64_t seed,
                   int threshold, double scale, float* out, float* lse, Threads threads) {
  using namespace attend;
  const Dropout dropout{seed, threshold};
  const int64_t floats = largest(cu_seqlens, cu_seqlens_k, N, D, false);
#pragma omp parallel num_threads(threads) if (!is_little(cu_seqlens, cu_seqlens_k, N, H, D))
  {
    float* scratch = allocate(floats);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < N * H; ++task) {
      const int64_t n = task / H, h = task % H, start = cu_seqlens_k[n], end = cu_seqlens[n + 1];
      const Work w(end - cu_seqlens[n], cu_seqlens_k[n + 1] - start, D, false, scratch);
      if (w.Sk == 0) {  // nothing to read
        for (int64_t i = cu_seqlens[n]; i < end; ++i) {
          for (int64_t d = 0; d < D; ++d) out[(i * H + h) * D + d] = 0;
          lse[i * H + h] = -INFINITY;
        }
      }
      if (w.Sq == 0 || w.Sk == 0) continue;
      pack_transposed(k + start * k_token + h * k_head, k_token, w.Sk, D, float(scale), w.keys_across);
      pack(v + start * v_token + h * v_head, v_token, w.Sk, D, w.values);
      for (int64_t first = cu_seqlens[n]; first < end; first += w.rows) {
        const int64_t rows = smaller(w.rows, end - first);
        product<false>(rows, w.columns, D, q + first * q_token + h * q_head, q_token, w.keys_across, w.scores, w.ld);
        hide(w.scores, w.ld, rows, w.Sk, w.columns);
        for (int64_t i = 0; i < rows; ++i) {
          const Softmax row = softmax(w.scores + i * w.ld, w.columns, dropout, row_ids[first + i], uint32_t(1 + h));
          lse[(first + i) * H + h] = row.max + logf(row.sum);
          w.scores[i * w.ld + w.columns] = dropout.scale() / row.sum;  // past the end of its row, until it is needed
        }
        product<false>(rows, w.wide, w.Sk, w.scores, w.ld, w.values, w.out, w.wide);
        for (int64_t i = 0; i < rows; ++i)
          write(w.out + i * w.wide, D, w.scores[i * w.ld + w.columns], out + ((first + i) * H + h) * D);
      }
    }
    free(scratch);
  }
}

void attention_bwd(const float* q, int64_t q_token, int64_t q_head, const float* k, int64_t k_token, int64_t k_head,
                   const float* v, int64_t v_token, int64_t v_head, const int32_t* cu_seqlens,
                   const int32_t* cu_seqlens_k, int64_t N, int64_t H, int64_t D, const int64_t* row_ids, int64_t seed,
                   int threshold, double scale, const float* lse, const float* dout, float* dq, float* dk, float* dv,
                   Threads threads) {
  using namespace attend;
  const Dropout dropout{seed, threshold};
  const int64_t floats = largest(cu_seqlens, cu_seqlens_k, N, D, true);
#pragma omp parallel num_threads(threads) if (!is_little(cu_seqlens, cu_seqlens_k, N, H, D))
  {
    float* scratch = allocate(floats);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < N * H; ++task) {
      const int64_t n = task / H, h = task % H, start = cu_seqlens_k[n], end = cu_seqlens[n + 1];
      const Work w(end - cu_seqlens[n], cu_seqlens_k[n + 1] - start, D, true, scratch);
      if (w.Sq == 0 || w.Sk == 0) {  // what nobody reads, or reads nothing, moves nothing
        for (int64_t i = cu_seqlens[n]; i < end; ++i)
          for (int64_t d = 0; d < D; ++d) dq[(i * H + h) * D + d] = 0;
        for (int64_t j = start; j < start + w.Sk; ++j)
          for (int64_t d = 0; d < D; ++d) dk[(j * H + h) * D + d] = dv[(j * H + h) * D + d] = 0;
        continue;
      }
      const float *queries = q + h * q_head, *keys = k + start * k_token + h * k_head;
      const float* values = v + start * v_token + h * v_head;
      pack_transposed(keys, k_token, w.Sk, D, float(scale), w.keys_across);
      pack_transposed(values, v_token, w.Sk, D, 1, w.values_across);
      pack(keys, k_token, w.Sk, D, w.keys);
      for (int64_t first = cu_seqlens[n]; first < end; first += w.rows) {
        const int64_t rows = smaller(w.rows, end - first), at = (first * H + h) * D;
        const bool add = first > cu_seqlens[n];
        product<false>(rows, w.columns, D, queries + first * q_token, q_token, w.keys_across, w.scores, w.ld);
        product<false>(rows, w.columns, D, dout + at, H * D, w.values_across, w.grads, w.ld);
        hide(w.scores, w.ld, rows, w.Sk, w.columns);
        for (int64_t i = 0; i < rows; ++i)
          softmax_backward(w.scores + i * w.ld, w.grads + i * w.ld, w.columns, lse[(first + i) * H + h], dropout,
                           row_ids[first + i], uint32_t(1 + h));
        pack(dout + at, H * D, rows, D, w.upstream);
        pack(queries + first * q_token, q_token, rows, D, w.queries);
        product<true>(w.Sk, w.wide, rows, w.scores, w.ld, w.upstream, w.dv, w.wide, add);
        product<true>(w.Sk, w.wide, rows, w.grads, w.ld, w.queries, w.dk, w.wide, add);
        product<false>(rows, w.wide, w.Sk, w.grads, w.ld, w.keys, w.dq, w.wide);
        for (int64_t i = 0; i < rows; ++i) write(w.dq + i * w.wide, D, float(scale), dq + at + i * H * D);
      }
      for (int64_t j = 0; j < w.Sk; ++j) {
        const int64_t at = ((start + j) * H + h) * D;
        write(w.dk + j * w.wide, D, float(scale), dk + at), write(w.dv + j * w.wide, D, 1, dv + at);
      }
    }
    free(scratch);
  }
}

}  // namespace ef::EF_NS
