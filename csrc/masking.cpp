// Choosing the tokens to predict, and writing the generator's samples over them; see electra_fast/ops/masking.py.
#include "ops.h"
#include "philox.h"

namespace ef::EF_NS {

static inline bool is_candidate(int64_t id, const int64_t* special_ids, int64_t K) {
  for (int64_t k = 0; k < K; ++k)
    if (id == special_ids[k]) return false;
  return true;
}

// The k-th smallest of n distinct keys (quickselect; the keys are random, so it is linear); reorders them.
static uint64_t kth_smallest(uint64_t* keys, int64_t n, int64_t k) {
  for (int64_t low = 0, high = n - 1; low < high;) {
    const uint64_t pivot = keys[low + (high - low) / 2];
    int64_t i = low, j = high;
    while (i <= j) {
      while (keys[i] < pivot) ++i;
      while (keys[j] > pivot) --j;
      if (i > j) break;
      const uint64_t key = keys[i];
      keys[i++] = keys[j], keys[j--] = key;
    }
    if (k <= j)
      high = j;
    else if (k >= i)
      low = i;
    else
      break;
  }
  return keys[k];
}

// Each token's place in the order of choice: a random word, ties broken by position.
static inline uint64_t choice_key(const Words& words, int64_t index) { return uint64_t(words.w[0]) << 32 | index; }

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
    for (int64_t i = start; i < end; ++i)
      if (is_candidate(input_ids[i], special_ids, K))
        scratch[candidates++] = faithful ? i : choice_key(philox(seed, row_ids[i], 0, 0), i - start);

    if (faithful) {  // with replacement: draw after draw
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
    } else {  // without: the tokens up to the chosen-th smallest key
      const int64_t chosen = last - slot < candidates ? last - slot : candidates, stop = slot + chosen;
      const uint64_t largest = chosen > 0 ? kth_smallest(scratch, candidates, chosen - 1) : 0;
      for (int64_t i = start; i < end; ++i) {
        masked_ids[i] = input_ids[i];
        if (slot == stop || !is_candidate(input_ids[i], special_ids, K)) continue;
        const Words words = philox(seed, row_ids[i], 0, 0);
        if (choice_key(words, i - start) > largest) continue;
        if (words.w[1] < replace_threshold) masked_ids[i] = mask_id;
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
