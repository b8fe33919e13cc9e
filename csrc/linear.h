// For ops that contain y = x W^T + b: the weight, packed for its products, and the gradients of weight and bias, which
// are summed block by block of rows.
#pragma once

#include "rows.h"

namespace ef::EF_NS {

namespace {

// A weight (N, K), packed once for all blocks and threads: for x W^T, or with `backward` for dy W.
//
// For few rows x, packing the weight takes longer than it saves. Then kPanel rows of x are packed instead, W x^T (N,
// kPanel) is computed, and the product is transposed. The bits are the same: the terms and their order are.
struct Weight {
  const float* const weight;
  const bool backward, few;
  const int64_t depth, width;
  Floats packed;

  Weight(const float* weight, int64_t N, int64_t K, bool backward, const Parts& parts)
      : weight(weight),
        backward(backward),
        few(parts.few && !backward),
        depth(backward ? N : K),
        width(backward ? K : N),
        packed(few ? parts.count * few_size() : packed_size(depth, width)) {
    in_ranges(few ? 0 : width, kPanel, parts.count, [&](int64_t first, int64_t end) {
      if (backward)
        pack(weight + first, K, N, end - first, packed.at + first * depth);
      else
        pack_transposed(weight + first * K, K, K, end - first, packed.at + first * depth);
    });
  }
  // The floats that a part with few rows needs: for kPanel packed rows of x, and for their product.
  int64_t few_size() const { return (depth + width) * kPanel; }
  // c (rows, width) = a (rows, depth) times the weight; `plus` as for product() in gemm.h, but with few rows it must be
  // one row that is added to every row.
  void product(int64_t part, const float* a, int64_t lda, int64_t rows, float* c, int64_t ldc,
               const float* plus = nullptr, int64_t ldplus = 0) const {
    if (!few) return ef::EF_NS::product<false>(a, lda, packed.at, rows, depth, width, c, ldc, plus, ldplus);
    float *panel = packed.at + part * few_size(), *across = panel + depth * kPanel;
    for (int64_t r = 0; r < rows; r += kPanel, a += kPanel * lda, c += kPanel * ldc) {
      const int64_t some = smaller(kPanel, rows - r);
      pack_transposed(a, lda, depth, some, panel);
      for (int64_t n = 0; n < (plus ? width : 0); ++n)
        for (int half = 0; half < kPanel; half += kLanes) store(across + n * kPanel + half, splat(plus[n]));
      ef::EF_NS::product<false>(weight, depth, panel, width, depth, kPanel, across, kPanel, plus ? across : nullptr,
                                kPanel);
      unpack_transposed(across, width, some, c, ldc);
    }
  }
};

// The gradients of y = x W^T + b with x (T, K), y (T, N), to which every thread adds its blocks in order.
struct LinearGradient {
  const int64_t N, K;
  const Parts& parts;
  const Weight weight;
  float* dweight;
  Sum dbias;
  // Each part has a packed block of x, and its share of dW as panels (N, kPanel): so the tiles that products are added
  // to are contiguous. Rows of dW itself may be a power of two apart, and would fall into few cache sets.
  Floats packed, shares, block_sums;

  LinearGradient(const float* weight, int64_t N, int64_t K, const Affine<float>& gradient, const Parts& parts)
      : N(N),
        K(K),
        parts(parts),
        weight(weight, N, K, true, parts),
        dweight(gradient.weight),
        dbias(gradient.bias, N, parts.count),
        packed(parts.count * packed_size(parts.height, K)),
        shares(parts.count * packed_size(N, K)),
        block_sums(parts.count * N) {}
  // Where add_packed expects the packed block of x.
  float* block(int64_t part) const { return packed.at + part * packed_size(parts.height, K); }
  float* share(int64_t part) const { return shares.at + part * packed_size(N, K); }
  void start(int64_t part) {
    memset(share(part), 0, size_t(packed_size(N, K)) * sizeof(float));
    dbias.start(part);
  }
  // Adds to dW and db what x (rows, K) and the gradient dy (rows, N) of the same rows contribute.
  void add(int64_t part, const float* x, int64_t ldx, const float* dy, int64_t ldy, int64_t rows) {
    pack(x, ldx, rows, K, block(part));
    add_packed(part, dy, ldy, rows);
  }
  void add_packed(int64_t part, const float* dy, int64_t ldy, int64_t rows) {
    for (int64_t panel = 0; panel < panels(K); ++panel) {
      float* to = share(part) + panel * N * kPanel;
      product<true>(dy, ldy, block(part) + panel * rows * kPanel, N, rows, kPanel, to, kPanel, to, kPanel);
    }
    float *sums = dbias.of(part), *own = block_sums.at + part * N;
    memset(own, 0, size_t(N) * sizeof(float));
    for (int64_t r = 0; r < rows; r += 16) add_rows(dy + r * ldy, ldy, smaller(16, rows - r), own);
    for (int64_t n = 0; n < N; ++n) sums[n] += own[n];
  }
  // Sums of a few rows are added to those of a block, and these to those of the part: one sum over all rows would round
  // worse.
  void add_rows(const float* dy, int64_t ldy, int64_t rows, float* sums) const {
    int64_t n = 0;
    for (; n + kLanes <= N; n += kLanes) {
      Vec sum = {};
      for (int64_t r = 0; r < rows; ++r) sum += load(dy + r * ldy + n);
      store(sums + n, load(sums + n) + sum);
    }
    for (; n < N; ++n) {
      float sum = 0;
      for (int64_t r = 0; r < rows; ++r) sum += dy[r * ldy + n];
      sums[n] += sum;
    }
  }
  void finish() {
    in_ranges(N, 16, parts.count, [&](int64_t first, int64_t end) {
      for (int64_t n = first; n < end; ++n) {
        for (int64_t k = 0; k < K; k += kPanel) {
          float row[kPanel];
          const int64_t at = (k * N) + n * kPanel, columns = smaller(kPanel, K - k);
          memcpy(row, share(0) + at, sizeof row);
          for (int64_t part = 1; part < parts.count; ++part)
            for (int64_t i = 0; i < kPanel; ++i) row[i] += share(part)[at + i];
          memcpy(dweight + n * K + k, row, size_t(columns) * sizeof(float));
        }
      }
    });
    dbias.finish();
  }
};

}  // namespace
}  // namespace ef::EF_NS
