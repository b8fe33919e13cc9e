// Choosing the tokens to predict, and writing the generator's samples over them; see electra_fast/ops/masking.py.
#include "ops.h"
#include "philox.h"

namespace ef::EF_NS {

static inline bool is_candidate(int64_t id, const int64_t* special_ids, int64_t K) {
  bool special = false;
  for (int64_t k = 0; k < K; ++k) special |= id == special_ids[k];
  return !special;
}

// Of n words those below `below`, and of those equal to it the first `ties`.
struct Smallest {
  uint64_t below;
  int64_t ties;
};

// The k smallest of words[i] >> 32, equal ones in their order: byte by byte from the highest, how many begin alike.
static Smallest smallest(const uint64_t* words, int64_t n, int64_t k) {
  uint64_t prefix = 0;  // what the k-th smallest begins with
  for (int shift = 56; shift >= 32; shift -= 8) {
    int32_t counts[256] = {};  // a sequence has less than 2**31 tokens, as cu_seqlens
    for (int64_t i = 0; i < n; ++i) counts[words[i] >> shift & 255] += words[i] >> shift >> 8 == prefix;
    int byte = 0;
    for (; counts[byte] < k; ++byte) k -= counts[byte];
    prefix = prefix << 8 | byte;
    if (counts[byte] == k) return {(prefix + 1) << (shift - 32), 0};  // all that begin so
  }
  return {prefix, k};
}

void masking(const int64_t* input_ids, int64_t T, const int32_t* cu_seqlens, int64_t N, const int32_t* slots,
             const int64_t* row_ids, const int64_t* special_ids, int64_t K, int64_t mask_id, uint64_t replace_threshold,
             bool faithful, int64_t seed, int64_t* masked_ids, int64_t* positions, int64_t* labels,
             int64_t* sample_rows, Threads threads) {
#pragma omp parallel for num_threads(threads) if (T >= 4096)
  for (int64_t n = 0; n < N; ++n) {
    const int64_t start = cu_seqlens[n], end = cu_seqlens[n + 1], last = slots[n + 1];
    // Until it receives the ids, the sequence's part of masked_ids serves as scratch.
    uint64_t* scratch = reinterpret_cast<uint64_t*>(masked_ids) + start;
    int64_t slot = slots[n], candidates = 0;

    if (faithful) {  // with replacement: draw after draw
      for (int64_t i = start; i < end; ++i)
        if (is_candidate(input_ids[i], special_ids, K)) scratch[candidates++] = i;
      const int64_t first = slot;
      for (; slot < last && candidates > 0; ++slot) {
        sample_rows[slot] = row_ids[start] + (slot - first);
        const uint64_t draw = philox(seed, sample_rows[slot], 0, 0).w[2];
        positions[slot] = scratch[(draw * uint64_t(candidates)) >> 32];
        labels[slot] = input_ids[positions[slot]];
      }
      for (int64_t i = start; i < end; ++i) masked_ids[i] = input_ids[i];
      for (int64_t m = first; m < slot; ++m)
        if (philox(seed, sample_rows[m], 0, 0).w[3] < replace_threshold) masked_ids[positions[m]] = mask_id;
    } else {  // without: the candidates of the smallest words
      philox_rows(seed, row_ids + start, end - start, scratch);
      for (int64_t i = start; i < end; ++i) {
        const bool candidate = is_candidate(input_ids[i], special_ids, K);
        scratch[i - start] |= uint64_t(0) - !candidate;  // no word is larger
        candidates += candidate;
      }
      const int64_t chosen = last - slot < candidates ? last - slot : candidates;
      Smallest taken = chosen > 0 ? smallest(scratch, end - start, chosen) : Smallest{0, 0};
      for (int64_t i = start; i < end; ++i) {
        const uint64_t words = scratch[i - start];
        masked_ids[i] = input_ids[i];
        if (words >> 32 > taken.below || !is_candidate(input_ids[i], special_ids, K)) continue;
        if (words >> 32 == taken.below && taken.ties-- <= 0) continue;
        if ((words & 0xFFFFFFFF) < replace_threshold) masked_ids[i] = mask_id;
        positions[slot] = i, labels[slot] = input_ids[i], sample_rows[slot] = row_ids[i], ++slot;
      }
    }
    for (; slot < last; ++slot)  // more slots than candidates
      positions[slot] = start, labels[slot] = -100, sample_rows[slot] = start < end ? row_ids[start] : 0;
  }
}

void corrupt(const int64_t* input_ids, int64_t T, const int64_t* positions, const int64_t* labels,
             const int64_t* sampled, int64_t M, bool faithful, int64_t* corrupted_ids, uint8_t* is_replaced) {
  for (int64_t t = 0; t < T; ++t) corrupted_ids[t] = input_ids[t], is_replaced[t] = 0;
  int32_t* draws = faithful ? new int32_t[T]() : nullptr;  // of each position, to average them
  for (int64_t m = 0; m < M; ++m) {
    if (labels[m] == -100) continue;
    const int64_t t = positions[m];
    if (faithful && draws[t]++ > 0)
      corrupted_ids[t] += sampled[m];
    else
      corrupted_ids[t] = sampled[m];
  }
  for (int64_t m = 0; m < M; ++m) {
    if (labels[m] == -100) continue;
    const int64_t t = positions[m];
    if (faithful && draws[t] > 0) corrupted_ids[t] /= draws[t], draws[t] = 0;
    is_replaced[t] = corrupted_ids[t] != input_ids[t];
  }
  delete[] draws;
}

}  // namespace ef::EF_NS
