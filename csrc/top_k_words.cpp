// The k most likely words of each row and their log-probabilities, without the matrix of logits (M, V) in memory; see
// electra_fast/ops/top_k_words.py.
//
// Rows are packed in panels of kPanel, and a tile of the weight is multiplied by one panel after the other, read where
// it is: while text is written there are few rows, and to pack the weight takes longer than the product. Fewer rows
// than a sliver has would leave most of a panel empty; then the weight is packed. The bits are the same, as in
// linear.h. A lane of a vector is a row, so maxima, sums of exponentials and comparisons with the k-th best need no sum
// over lanes. Words are divided into shares, whose sums do not depend on the number of threads, nor a row's on other
// rows.
#include <math.h>

#include "gemm.h"
#include "ops.h"
#include "rows.h"
#include "vexp.h"

namespace ef::EF_NS {

namespace {
namespace best {  // a namespace of its own, since other ops have tiles of other sizes

constexpr int64_t kTile = 128;    // words whose logits are computed at once
constexpr int64_t kShare = 2048;  // words of a share, whole tiles

// The best words of a row so far, largest logit first; of equal ones the lower word first.
struct List {
  float* logits;
  int64_t* words;
  int64_t count;

  // Adds a word higher than all before. If the list is full, its last one falls out: the caller has compared.
  void add(float logit, int64_t word, int64_t k) {
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && logit > logits[at - 1]; --at) logits[at] = logits[at - 1], words[at] = words[at - 1];
    logits[at] = logit, words[at] = word;
  }
  bool takes(float logit, int64_t k) const { return count < k || logit > logits[k - 1]; }
};

// What is kept of the rows, each array with a place for every lane of the panels: maxima m and sums of exp(l - m) of
// each share (shares, lanes), and for each thread the lists (lanes, k).
struct Kept {
  const int64_t lanes, k, shares, parts;
  const Floats numbers;
  const Memory<int64_t> words;

  Kept(int64_t lanes, int64_t k, int64_t shares, int64_t parts)
      : lanes(lanes),
        k(k),
        shares(shares),
        parts(parts),
        numbers((2 * shares + parts * k) * lanes),
        words(parts * k * lanes) {}
  // Where a part's words begin.
  int64_t first_word(int64_t part) const { return shares * part / parts * kShare; }
  float* largest(int64_t share) const { return numbers.at + 2 * share * lanes; }
  float* sums(int64_t share) const { return largest(share) + lanes; }
  // The list of a row in a part of the vocabulary, of which `count` words are found.
  List list(int64_t part, int64_t row, int64_t count) const {
    const int64_t at = (part * lanes + row) * k;
    return {numbers.at + 2 * shares * lanes + at, words.at + at, count};
  }
  List complete_list(int64_t part, int64_t row, int64_t V) const {
    return list(part, row, smaller(k, smaller(V, first_word(part + 1)) - first_word(part)));
  }
};

// Adds a tile's logits (count, kPanel) of kLanes rows, of whose words `before` were seen, to the share's m and sum.
// Returns the largest of each row.
static inline Vec add_to_sums(const float* logits, int64_t count, float* m, float* sum) {
  Vec top = load(logits), total = {};
  for (int64_t w = 1; w < count; ++w) top = larger(load(logits + w * kPanel), top);
  const Vec before = load(m), after = larger(top, before);
  const Vec safe = after == -INFINITY ? Vec{} : after;  // if all logits are -inf, the sum is 0, not NaN
  for (int64_t w = 0; w < count; ++w) total += vexp(load(logits + w * kPanel) - safe);
  store(sum, load(sum) * vexp(before - safe) + total);
  store(m, after);
  return top;
}

// The log-sum-exp of a row over the shares, in order.
static float log_sum(const Kept& kept, int64_t row) {
  float top = -INFINITY;
  for (int64_t s = 0; s < kept.shares; ++s) {
    const float m = kept.largest(s)[row];
    top = m > top ? m : top;
  }
  const float safe = top == -INFINITY ? 0 : top;
  double total = 0;
  for (int64_t s = 0; s < kept.shares; ++s)
    total += double(kept.sums(s)[row]) * exp(double(kept.largest(s)[row]) - double(safe));
  return float(double(safe) + log(total));
}

// The logits of fewer rows than kSliver in a tile of the weight (count, E), without the bias; lanes beyond the rows are
// 0. memory: for kPanel packed words and their logits.
static void few_logits(const Rows& hidden, const float* weight, int64_t count, float* memory, float* logits) {
  const int64_t E = hidden.width;
  float* across = memory + E * kPanel;
  for (int64_t n = 0; n < count; n += kPanel) {
    pack_transposed(weight + n * E, E, E, smaller(kPanel, count - n), memory);
    product<false>(hidden.data, E, memory, hidden.length, E, kPanel, across, kPanel);
    for (int64_t w = 0; w < smaller(kPanel, count - n); ++w)
      for (int64_t r = 0; r < kPanel; ++r)
        logits[(n + w) * kPanel + r] = r < hidden.length ? across[r * kPanel + w] : 0;
  }
}

// Finds the best words of every row in a part of the vocabulary, and its shares' sums.
// packed: the rows in panels, or null if they are fewer than kSliver; memory: for a tile's logits,
// and for few_logits.
static void sweep(const Kept& kept, int64_t part, const float* packed, const Rows& hidden,
                  const Affine<const float>& words, int64_t V, float* memory) {
  const int64_t E = hidden.width, k = kept.k, start = kept.first_word(part);
  for (int64_t first = start; first < smaller(V, kept.first_word(part + 1)); first += kTile) {
    const int64_t count = smaller(kTile, V - first), seen = smaller(k, first - start);
    float *logits = memory, *m = kept.largest(first / kShare), *sum = kept.sums(first / kShare);
    for (int64_t i = 0; first % kShare == 0 && i < kept.lanes; ++i) m[i] = -INFINITY, sum[i] = 0;
    for (int64_t panel = 0; panel < kept.lanes; panel += kPanel) {
      const float* weight = words.weight + first * E;
      if (packed)
        product<false>(weight, E, packed + panel * E, count, E, kPanel, logits, kPanel);
      else
        few_logits(hidden, weight, count, memory + kTile * kPanel, logits);
      for (int64_t i = 0; i < count * kPanel; i += kLanes)
        store(logits + i, load(logits + i) + words.bias[first + i / kPanel]);
      for (int64_t half = 0; half < smaller(kPanel, hidden.length - panel); half += kLanes) {
        const int64_t row = panel + half;
        const Vec top = add_to_sums(logits + half, count, m + row, sum + row);
        for (int64_t lane = 0; lane < smaller(kLanes, hidden.length - row); ++lane) {
          List list = kept.list(part, row + lane, seen);
          if (!list.takes(top[lane], k)) continue;
          for (int64_t w = 0; w < count; ++w) {
            const float logit = logits[w * kPanel + half + lane];
            if (list.takes(logit, k)) list.add(logit, first + w, k);
          }
        }
      }
    }
  }
}

// A row's list, to which those of the parts that follow the first are added in order.
static List joined(const Kept& kept, int64_t row, int64_t V) {
  List list = kept.complete_list(0, row, V);
  for (int64_t part = 1; part < kept.parts; ++part) {
    const List other = kept.complete_list(part, row, V);
    for (int64_t i = 0; i < other.count; ++i)
      if (list.takes(other.logits[i], kept.k)) list.add(other.logits[i], other.words[i], kept.k);
  }
  return list;
}

}  // namespace best
}  // namespace

void top_k_words(const Rows& hidden, const Affine<const float>& words, int64_t V, int64_t k, float* log_probs,
                 int64_t* ids, Threads threads) {
  const int64_t M = hidden.length, E = hidden.width, shares = ceiling(V, best::kShare);
  const int64_t parts = M * V * E < 100000 ? 1 : smaller(threads, shares);
  const int64_t own = (best::kTile + E + kSliver) * kPanel;
  const bool few = M < kSliver;
  const best::Kept kept(panels(M) * kPanel, k, shares, parts);
  const Floats packed(few ? 0 : packed_size(E, M)), memory(parts * own);
  if (!few) pack_transposed(hidden.data, E, E, M, packed.at);
  parallel(parts, parts, [&](int64_t part) {
    best::sweep(kept, part, few ? nullptr : packed.at, hidden, words, V, memory.at + part * own);
  });
  for (int64_t row = 0; row < M; ++row) {
    const best::List list = best::joined(kept, row, V);
    const float lse = best::log_sum(kept, row);
    for (int64_t i = 0; i < k; ++i) log_probs[row * k + i] = list.logits[i] - lse, ids[row * k + i] = list.words[i];
  }
}

}  // namespace ef::EF_NS
