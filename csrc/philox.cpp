// Words, seeds and dropout masks from Philox; see electra_fast/ops/_philox.py.
#include "philox.h"

#include "ops.h"

namespace ef::EF_NS {

void philox_words(int64_t seed, const int64_t* row_ids, int64_t T, int64_t group, int64_t plane, uint32_t* out) {
  for (int64_t t = 0; t < T; ++t) {
    const Words words = philox(seed, row_ids[t], uint32_t(group), uint32_t(plane));
    for (int i = 0; i < 4; ++i) out[4 * t + i] = words.w[i];
  }
}

void derive_seeds(int64_t seed, int64_t step, int64_t first, int64_t n, int64_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    const Words words = philox(seed, step, uint32_t(first + i), 0);
    out[i] = int64_t(words.w[0] | uint64_t(words.w[1]) << 32);
  }
}

// out (T, columns): 1 where an element is kept.
void dropout_mask(const Dropout& dropout, int64_t T, int64_t columns, int64_t plane, uint8_t* out, Threads threads) {
  // byte > threshold - 1, not byte >= threshold, so that both are bytes: 255 drops all. A threshold of 0 keeps all.
  const uint8_t limit = uint8_t(dropout.threshold - 1), all = dropout.threshold <= 0;
  in_ranges(T, 64, T * columns < 32768 ? 1 : threads, [&](int64_t first, int64_t end) {
    for (int64_t t = first; t < end; ++t) {
      for (int64_t c = 0; c < columns; c += kBlockColumns) {
        uint8_t bytes[kBlockColumns];
        philox_block(dropout.seed, dropout.row_ids[t], uint32_t(c / 16), uint32_t(plane), bytes);
        const int64_t width = columns - c < kBlockColumns ? columns - c : kBlockColumns;
        uint8_t* row = out + t * columns + c;
        for (int64_t i = 0; i < width; ++i) row[i] = uint8_t(bytes[i] > limit) | all;
      }
    }
  });
}

}  // namespace ef::EF_NS
