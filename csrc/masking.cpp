// Choosing the tokens to predict, and writing the generator's samples over them; see electra_fast/ops/masking.py.
#include "ops.h"
#include "philox.h"
#include "rows.h"

namespace ef::EF_NS {

static inline bool is_candidate(int64_t id, const MaskingRule& rule) {
  bool special = false;
  for (int64_t k = 0; k < rule.specials; ++k) special |= id == rule.special_ids[k];
  return !special;
}

// The random words that are chosen: those below `below`, and the first `ties` of those equal to it.
struct Smallest {
  uint64_t below;
  int64_t ties;
};

// The k smallest of words[i] >> 32, of equal ones the first. The k-th smallest is found byte by byte, from the highest,
// by counting how many words begin with each byte.
static Smallest smallest(const uint64_t* words, int64_t n, int64_t k) {
  uint64_t prefix = 0;  // the bytes of the k-th smallest that are found
  for (int shift = 56; shift >= 32; shift -= 8) {
    int32_t counts[256] = {};  // a sequence has less than 2**31 tokens, as cu_seqlens
    for (int64_t i = 0; i < n; ++i) counts[words[i] >> shift & 255] += words[i] >> shift >> 8 == prefix;
    int byte = 0;
    for (; counts[byte] < k; ++byte) k -= counts[byte];
    prefix = prefix << 8 | byte;
    if (counts[byte] == k) return {(prefix + 1) << (shift - 32), 0};  // all words that begin with the prefix
  }
  return {prefix, k};
}

void masking(const Text& text, const int32_t* slots, const MaskingRule& rule, const Masked& out, Threads threads) {
  parallel(text.N, text.T < 4096 ? 1 : threads, [&](int64_t n) {
    const int64_t start = text.cu_seqlens[n], end = text.cu_seqlens[n + 1], last = slots[n + 1];
    // The sequence's part of masked_ids is scratch memory until the ids are written to it.
    uint64_t* scratch = reinterpret_cast<uint64_t*>(out.ids) + start;
    int64_t slot = slots[n], candidates = 0;

    if (rule.faithful) {  // with replacement: one draw after the other
      for (int64_t i = start; i < end; ++i)
        if (is_candidate(text.ids[i], rule)) scratch[candidates++] = i;
      const int64_t first = slot;
      for (; slot < last && candidates > 0; ++slot) {
        out.sample_rows[slot] = text.row_ids[start] + (slot - first);
        const uint64_t draw = philox(rule.seed, out.sample_rows[slot], 0, 0).w[2];
        out.positions[slot] = scratch[(draw * uint64_t(candidates)) >> 32];
        out.labels[slot] = text.ids[out.positions[slot]];
      }
      for (int64_t i = start; i < end; ++i) out.ids[i] = text.ids[i];
      for (int64_t m = first; m < slot; ++m)
        if (philox(rule.seed, out.sample_rows[m], 0, 0).w[3] < rule.replace_threshold)
          out.ids[out.positions[m]] = rule.mask_id;
    } else {  // without replacement: the candidates with the smallest words
      philox_rows(rule.seed, text.row_ids + start, end - start, scratch);
      for (int64_t i = start; i < end; ++i) {
        const bool candidate = is_candidate(text.ids[i], rule);
        scratch[i - start] |= uint64_t(0) - !candidate;  // the largest word
        candidates += candidate;
      }
      const int64_t chosen = last - slot < candidates ? last - slot : candidates;
      Smallest taken = chosen > 0 ? smallest(scratch, end - start, chosen) : Smallest{0, 0};
      for (int64_t i = start; i < end; ++i) {
        const uint64_t words = scratch[i - start];
        out.ids[i] = text.ids[i];
        if (words >> 32 > taken.below || !is_candidate(text.ids[i], rule)) continue;
        if (words >> 32 == taken.below && taken.ties-- <= 0) continue;
        if ((words & 0xFFFFFFFF) < rule.replace_threshold) out.ids[i] = rule.mask_id;
        out.positions[slot] = i, out.labels[slot] = text.ids[i], out.sample_rows[slot] = text.row_ids[i], ++slot;
      }
    }
    for (; slot < last; ++slot)  // slots that are left over, if there are more than candidates
      out.positions[slot] = start, out.labels[slot] = -100,
      out.sample_rows[slot] = start < end ? text.row_ids[start] : 0;
  });
}

// The row id of each token's unit: that of the first token of its word or span.
void mask_units(const Text& text, const uint8_t* starts_word, const MaskingRule& rule, bool spans, int64_t* unit_rows,
                Threads threads) {
  constexpr uint32_t kOpens = 858993459;  // 2**32 / 5
  constexpr int64_t kLongest = 10;        // words of a span
  parallel(text.N, text.T < 4096 ? 1 : threads, [&](int64_t n) {
    int64_t unit = 0, words = 0;  // the first token of the unit, and the words since a span was opened
    bool after = false;           // whether the token before may be masked
    for (int64_t i = text.cu_seqlens[n]; i < text.cu_seqlens[n + 1]; ++i) {
      const bool candidate = is_candidate(text.ids[i], rule), leads = candidate && !after;
      if (leads || (candidate && starts_word[i])) {
        const bool opens = leads || (spans && philox(rule.seed, text.row_ids[i], 0, 0).w[2] < kOpens);
        words = opens ? 0 : words + 1;
        if (!spans || words % kLongest == 0) unit = i;
      }
      unit_rows[i] = text.row_ids[candidate ? unit : i];
      after = candidate;
    }
  });
}

void corrupt(const int64_t* input_ids, int64_t T, const Slots& slots, bool faithful, int64_t* corrupted_ids,
             uint8_t* is_replaced) {
  for (int64_t t = 0; t < T; ++t) corrupted_ids[t] = input_ids[t], is_replaced[t] = 0;
  const Memory<int32_t> draws(faithful ? T : 0);  // how many samples each position has, to average them
  for (int64_t t = 0; faithful && t < T; ++t) draws.at[t] = 0;
  for (int64_t m = 0; m < slots.M; ++m) {
    if (slots.labels[m] == -100) continue;
    const int64_t t = slots.positions[m];
    if (faithful && draws.at[t]++ > 0)
      corrupted_ids[t] += slots.sampled_ids[m];
    else
      corrupted_ids[t] = slots.sampled_ids[m];
  }
  for (int64_t m = 0; m < slots.M; ++m) {
    if (slots.labels[m] == -100) continue;
    const int64_t t = slots.positions[m];
    if (faithful && draws.at[t] > 0) corrupted_ids[t] /= draws.at[t], draws.at[t] = 0;
    is_replaced[t] = corrupted_ids[t] != input_ids[t];
  }
}

}  // namespace ef::EF_NS
