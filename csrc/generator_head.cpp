// The cross-entropy of logits hidden W^T + b, and a word for each row drawn exactly from their softmax, without the
// matrix of logits (M, V) in memory; see electra_fast/ops/generator_head.py.
//
// Tiles of kTile words are divided among the threads. A tile of the weight is packed once and stays in the L2 cache
// while blocks of rows are multiplied by it. The logits of a block of rows in the tile are used at once. The forward
// saves only their log-sum-exp for each row. The backward adds them to the gradients of the tile's words, which are
// complete after the last block, and to the thread's share of the gradients of the rows.
#include <math.h>

#include "gemm.h"
#include "ops.h"
#include "philox.h"
#include "rows.h"
#include "vexp.h"

namespace ef::EF_NS {

namespace {

constexpr int64_t kTile = 128;           // words of a tile; every backend samples in tiles of 128
constexpr int64_t kStride = kTile + 16;  // distance between rows: 128 would map a column to one cache set
constexpr int64_t kBlock = 120;          // the most rows of a block, a multiple of kSliver
constexpr int64_t kBlockRoom = 128;      // kBlock, rounded up to whole vectors
constexpr int64_t kChunk = 1024;         // rows whose log-sum-exps in all tiles are in memory at once

static inline int64_t aligned(int64_t floats) { return ceiling(floats, 16) * 16; }

static inline int64_t tiles_of(int64_t V) { return ceiling(V, kTile); }

// The size of the parts if n items are divided into as few equal parts as have at most `most` items.
static inline int64_t part_of(int64_t n, int64_t most) {
  const int64_t parts = ceiling(n, most);
  return parts ? ceiling(n, parts) : 0;
}

static inline int64_t block_of(int64_t rows) { return ceiling(part_of(rows, kBlock), kSliver) * kSliver; }

// The number of threads, each of which has a range of tiles.
static inline int64_t parts_of(int64_t M, int64_t V, int64_t E, Threads threads) {
  return M * V * E < 100000 ? 1 : smaller(threads, tiles_of(V));
}

// kTile words of the vocabulary. Those beyond its end have weight 0 and bias -inf, so that exp gives 0 for them.
struct Tile {
  int64_t first, words;
  alignas(64) float bias[kTile];

  Tile(int64_t number, const float* all, int64_t V) : first(number * kTile), words(smaller(kTile, V - first)) {
    for (int64_t i = 0; i < kTile; ++i) bias[i] = i < words ? all[first + i] : -INFINITY;
  }
  bool holds(int64_t word) const { return word >= first && word < first + words; }
};

// The logits of rows in a tile, without the bias.
static inline void tile_logits(const Tile& tile, const float* hidden, const float* packed, int64_t rows, int64_t E,
                               float* logits) {
  product<false>(hidden, E, packed, rows, E, tile.words, logits, kStride);
  for (int64_t r = 0; tile.words < kTile && r < rows; ++r)
    for (int64_t i = tile.words; i < kTile; ++i) logits[r * kStride + i] = 0;
}

// Prefetches the next tile's weight, a few cache lines for each row that is computed, since packing would wait for
// memory.
struct Ahead {
  const char *next, *end;

  Ahead(const float* weight, int64_t E, const Tile& tile, int64_t V)
      : next(reinterpret_cast<const char*>(weight + (tile.first + tile.words) * E)),
        end(next + smaller(kTile, V - tile.first - tile.words) * E * int64_t(sizeof(float))) {}
  void fetch() {
    for (int i = 0; i < 8 && next < end; ++i, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

// m = the largest element of scale * row, and sum = sum(exp(scale * row - m)).
static inline void sum_exp(const float* row, float scale, float* m, float* sum) {
  Vec top = load(row);
  for (int64_t i = kLanes; i < kTile; i += kLanes) top = larger(top, load(row + i));
  float largest = largest_of(top);
  if (largest == -INFINITY) largest = 0;  // if all logits are, the sum is 0, not NaN
  Vec total = {};
  for (int64_t i = 0; i < kTile; i += kLanes) total += vexp((load(row + i) - largest) * scale);
  *m = largest * scale, *sum = sum_of(total);
}

// The first index whose running sum exceeds u times the total; never an index of weight 0, even if u rounds to 1.
// Running sums are in double and are compared in float, as those of torch.cumsum.
static int64_t inverse_cdf(const float* weights, int64_t stride, int64_t n, float u) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += weights[i * stride];
  const float limit = u * float(total);
  double running = 0;
  int64_t found = n, last = n - 1;
  for (int64_t i = 0; i < n && found == n; ++i) {
    running += weights[i * stride];
    if (!(float(running) <= limit)) found = i;
  }
  while (last > 0 && !(weights[last * stride] > 0)) --last;
  if (!(weights[last * stride] > 0)) last = n - 1;
  return smaller(found, last);
}

static inline float uniform(uint32_t word) { return (float(word) + 0.5f) * 0x1p-32f; }

// How the logits that the sample is drawn from differ from those of the loss.
struct Sharpened {
  float scale;  // 1 / temperature
  bool most_likely, disallow_correct;
  int64_t V;

  Sharpened(const Sampling& sampling, int64_t V)
      : scale(sampling.temperature > 0 ? float(1 / sampling.temperature) : 1.0f),
        most_likely(sampling.temperature == 0),
        disallow_correct(sampling.disallow_correct),
        V(V) {}
  // The word whose logit is lowered, or -1.
  int64_t lowered(int64_t label) const { return disallow_correct && label >= 0 ? smaller(label, V - 1) : -1; }
};

// out = m + log(sum) for each row. Lanes beyond the last row are computed, but not copied to out.
static inline void log_sums(float* m, float* sum, int64_t rows, float* out) {
  for (int64_t r = 0; r < rows; r += kLanes) store(m + r, load(m + r) + vlog(load(sum + r)));
  memcpy(out, m, size_t(rows) * sizeof(float));
}

// sums has a row for each tile and a column for each of kLanes rows. Replaces the log-sum-exps there by the tiles'
// weights, exp(log-sum-exp - largest); lse receives the log-sum-exps over all tiles.
static void to_weights(float* sums, int64_t stride, int64_t tiles, float* lse) {
  Vec top = splat(-INFINITY);
  for (int64_t t = 0; t < tiles; ++t) top = larger(load(sums + t * stride), top);
  double total[kLanes] = {};
  for (int64_t t = 0; t < tiles; ++t) {
    const Vec weights = vexp(load(sums + t * stride) - top);
    store(sums + t * stride, weights);
    for (int i = 0; i < kLanes; ++i) total[i] += weights[i];
  }
  for (int i = 0; i < kLanes; ++i) lse[i] = float(top[i] + log(total[i]));
}

// The word of a tile that inverse_cdf finds for u. The row's logits in the tile are computed again.
static int64_t word_in_tile(const float* row, const float* weight, int64_t E, const Tile& tile, int64_t lowered,
                            float scale, float u) {
  alignas(64) float scores[kTile];
  for (int64_t i = 0; i < kTile; ++i) {
    const float* w = weight + (tile.first + (i < tile.words ? i : 0)) * E;  // beyond the words the bias is -inf
    scores[i] = (dot(row, w, E) + tile.bias[i]) * scale - (tile.first + i == lowered ? 1000.0f : 0.0f);
  }
  Vec top = load(scores);
  for (int64_t i = kLanes; i < kTile; i += kLanes) top = larger(top, load(scores + i));
  const float largest = largest_of(top);
  for (int64_t i = 0; i < kTile; i += kLanes) store(scores + i, vexp(load(scores + i) - largest));
  return tile.first + inverse_cdf(scores, 1, tile.words, u);
}

}  // namespace

void generator_head_fwd(const Rows& hidden, const Affine<const float>& words, int64_t V, const int64_t* labels,
                        const Sampling& sampling, float* loss, int64_t* sampled, float* lse, Threads threads) {
  const int64_t M = hidden.length, E = hidden.width;
  const float *rows_at = hidden.data, *weight = words.weight, *bias = words.bias;
  const Sharpened sharpened(sampling, V);
  const bool same = sampling.temperature == 1 && !sampling.disallow_correct;  // one sum serves the loss and the sample
  const int64_t tiles = tiles_of(V), chunk = part_of(M, kChunk), stride = aligned(chunk);
  const int64_t parts = parts_of(M, V, E, threads);
  // Memory: for each thread, its packed tile and its block's logits; for the chunk, the log-sum-exps of all tiles. If
  // the sample needs others: also those of all tiles, or, at temperature 0, each thread's largest logits and their
  // words.
  const int64_t packed_floats = aligned(packed_size(E, kTile)), own = packed_floats + kBlock * kStride;
  const int64_t more = same ? 0 : sharpened.most_likely ? 2 * parts : tiles;
  Floats memory(parts * own + (tiles + more) * stride);
  float* sums = memory.at + parts * own;
  float* sample_sums = same ? sums : sums + tiles * stride;
  float* best = sample_sums;
  int32_t* best_word = reinterpret_cast<int32_t*>(best + parts * stride);

  for (int64_t start = 0; start < M; start += chunk) {
    const int64_t rows = smaller(chunk, M - start), block = block_of(rows);
    parallel(parts, parts, [&](int64_t part) {
      float* packed = memory.at + part * own;
      float* logits = packed + packed_floats;
      for (int64_t r = part * stride; sharpened.most_likely && r < part * stride + rows; ++r)
        best[r] = -INFINITY, best_word[r] = 0;
      for (int64_t number = tiles * part / parts; number < tiles * (part + 1) / parts; ++number) {
        const Tile tile(number, bias, V);
        Ahead ahead(weight, E, tile, V);
        pack_transposed(weight + tile.first * E, E, E, tile.words, packed);
        for (int64_t r0 = 0; r0 < rows; r0 += block) {
          const int64_t count = smaller(block, rows - r0);
          alignas(64) float m[kBlockRoom], sum[kBlockRoom], sample_m[kBlockRoom], sample_sum[kBlockRoom];
          tile_logits(tile, rows_at + (start + r0) * E, packed, count, E, logits);
          for (int64_t r = 0; r < count; ++r) {
            float* row = logits + r * kStride;
            const int64_t label = labels[start + r0 + r];
            ahead.fetch();
            for (int64_t i = 0; i < kTile; i += kLanes) store(row + i, load(row + i) + load(tile.bias + i));
            if (tile.holds(label)) loss[start + r0 + r] = row[label - tile.first];  // the label's logit, for now
            sum_exp(row, 1, m + r, sum + r);
            if (same) continue;
            const int64_t lowered = sharpened.lowered(label);
            if (tile.holds(lowered)) row[lowered - tile.first] -= 1000.0f / sharpened.scale;
            if (!sharpened.most_likely) {
              sum_exp(row, sharpened.scale, sample_m + r, sample_sum + r);
              continue;
            }
            const int64_t at = part * stride + r0 + r;
            for (int64_t i = 0; i < tile.words; ++i)
              if (row[i] > best[at]) best[at] = row[i], best_word[at] = int32_t(tile.first + i);
          }
          log_sums(m, sum, count, sums + number * stride + r0);
          if (!same && !sharpened.most_likely)
            log_sums(sample_m, sample_sum, count, sample_sums + number * stride + r0);
        }
      }
    });
    in_ranges(rows, kLanes, parts, [&](int64_t r0, int64_t end) {
      float row_lse[kLanes], unused[kLanes];
      to_weights(sums + r0, stride, tiles, row_lse);
      if (!same && !sharpened.most_likely) to_weights(sample_sums + r0, stride, tiles, unused);
      for (int64_t r = r0; r < end; ++r) {
        const int64_t at = start + r, label = labels[at];
        lse[at] = row_lse[r - r0];
        loss[at] = label == -100 ? 0.0f : label < 0 || label >= V ? NAN : lse[at] - loss[at];
        if (sharpened.most_likely) {
          int64_t winner = r;
          for (int64_t other = r + stride; other < parts * stride; other += stride)
            if (best[other] > best[winner]) winner = other;
          sampled[at] = best_word[winner];
          continue;
        }
        const Words random = philox(sampling.seed, sampling.row_ids[at], 0, 0);
        const int64_t tile = inverse_cdf(sample_sums + r, stride, tiles, uniform(random.w[0]));
        sampled[at] = word_in_tile(rows_at + at * E, weight, E, Tile(tile, bias, V), sharpened.lowered(label),
                                   sharpened.scale, uniform(random.w[1]));
      }
    });
  }
}

void generator_head_bwd(const float* grad, const Rows& hidden, const Affine<const float>& words, int64_t V,
                        const int64_t* labels, double label_smoothing, const float* lse, float* dhidden,
                        const Affine<float>& dwords, Threads threads) {
  const int64_t M = hidden.length, E = hidden.width;
  const float of_label = float(1 - label_smoothing), of_each = float(label_smoothing / double(V));  // the target
  const int64_t tiles = tiles_of(V), block = block_of(M), parts = parts_of(M, V, E, threads);
  const int64_t columns_floats = aligned(packed_size(E, kTile)), rows_floats = aligned(packed_size(kTile, E));
  const int64_t own = columns_floats + 2 * rows_floats + kBlock * kStride;
  Floats memory(parts * own + (parts - 1) * M * E);
  float* shares = memory.at + parts * own;  // of dhidden, one for each part but the first, which adds to dhidden itself

  parallel(parts, parts, [&](int64_t part) {
    float* columns = memory.at + part * own;         // the tile's weight packed for the logits,
    float* weight_rows = columns + columns_floats;   // for dhidden
    float* hidden_rows = weight_rows + rows_floats;  // the block's rows for dweight
    float* logits = hidden_rows + rows_floats;       // and then their gradient
    float* share = part == 0 ? dhidden : shares + (part - 1) * M * E;
    if (M > 0) memset(share, 0, size_t(M * E) * sizeof(float));
    for (int64_t number = tiles * part / parts; number < tiles * (part + 1) / parts; ++number) {
      const Tile tile(number, words.bias, V);
      const float* weight = words.weight + tile.first * E;
      Ahead ahead(words.weight, E, tile, V);
      alignas(64) float db[kTile] = {};
      float* dw = dwords.weight + tile.first * E;
      pack_transposed(weight, E, E, tile.words, columns);
      pack(weight, E, tile.words, E, weight_rows);
      if (M == 0) memset(dw, 0, size_t(tile.words * E) * sizeof(float));
      for (int64_t r0 = 0; r0 < M; r0 += block) {
        const int64_t count = smaller(block, M - r0);
        alignas(64) float few[kTile] = {};  // the block's db, since one sum over all rows would round worse
        tile_logits(tile, hidden.data + r0 * E, columns, count, E, logits);
        for (int64_t r = 0; r < count; ++r) {
          float* row = logits + r * kStride;
          const int64_t label = labels[r0 + r];
          const float g = label >= 0 && label < V ? grad[r0 + r] : 0.0f;  // a row without a label has gradient 0
          ahead.fetch();
          for (int64_t i = 0; i < kTile; i += kLanes) {
            const Vec d = (vexp(load(row + i) + load(tile.bias + i) - lse[r0 + r]) - of_each) * g;
            store(row + i, d), store(few + i, load(few + i) + d);
          }
          if (tile.holds(label)) row[label - tile.first] -= g * of_label, few[label - tile.first] -= g * of_label;
        }
        for (int64_t i = 0; i < kTile; i += kLanes) store(db + i, load(db + i) + load(few + i));
        pack(hidden.data + r0 * E, E, count, E, hidden_rows);
        product<true>(logits, kStride, hidden_rows, tile.words, count, E, dw, E, r0 > 0 ? dw : nullptr, E);
        product<false>(logits, kStride, weight_rows, count, tile.words, E, share + r0 * E, E, share + r0 * E, E);
      }
      memcpy(dwords.bias + tile.first, db, size_t(tile.words) * sizeof(float));
    }
  });
  in_ranges(M * E, 4096, parts, [&](int64_t first, int64_t end) {
    for (int64_t part = 1; part < parts; ++part)  // in order: the same bits for the same number of threads
      for (int64_t i = first; i < end; ++i) dhidden[i] += shares[(part - 1) * M * E + i];
  });
}

}  // namespace ef::EF_NS
