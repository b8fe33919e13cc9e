// Rows shared out among threads: a contiguous range for each, taken in blocks that stay in cache from product to
// product.
#pragma once

#include <stdint.h>
#include <string.h>

#include <new>

#include "gemm.h"
#include "ops.h"

namespace ef::EF_NS {

constexpr int64_t kBlockFloats = 96 * 1024;  // of the widest matrix that a block of rows keeps in the second cache

static inline int64_t ceiling(int64_t n, int64_t of) { return (n + of - 1) / of; }

// Between rows of a scratch block: a power of two would put its columns into few sets of the cache.
static inline int64_t row_stride(int64_t columns) { return ceiling(columns, 16) * 16 + 16; }

namespace {  // internal, as static is for functions: no symbol of theirs leaves the instruction set's object

struct Parts {
  int64_t rows;
  bool few;                     // too few to repay that a weight is packed (linear.h)
  int64_t unit, count, height;  // unit: rows that a product takes at once; height: of a block at most, whole units

  // width: of the widest matrix that a block makes.
  Parts(int64_t rows, int64_t width, int64_t flops_of_a_row, Threads threads)
      : rows(rows),
        few(rows <= 256),
        unit(few ? kPanel : kSliver),
        count(rows * flops_of_a_row < 200000 ? 1 : smaller(threads, ceiling(rows, unit))) {
    const int64_t fit = kBlockFloats / width;
    height = (fit < 48 ? 48 : smaller(fit, 384)) / unit * unit;
  }
  int64_t start(int64_t part) const { return smaller(rows, ceiling(ceiling(rows, unit) * part, count) * unit); }
  // body(first, rows) for blocks of about one size.
  template <class Body>
  void blocks(int64_t part, Body body) const {
    const int64_t first = start(part), end = start(part + 1), number = ceiling(end - first, height);
    const int64_t step = number ? ceiling(ceiling(end - first, number), unit) * unit : 1;
    for (int64_t at = first; at < end; at += step) body(at, smaller(step, end - at));
  }
};

// Floats without a value, for the time of a call.
struct Floats {
  float* at;

  explicit Floats(int64_t count) : at(new (std::align_val_t(64)) float[size_t(count) + 16]) {}
  ~Floats() { operator delete[](at, std::align_val_t(64)); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
};

// An array to which every part adds: the first to the array itself, the others to one of their own each, which finish()
// adds in order, so that the bits are the same for the same number of threads.
struct Sum {
  float* out;
  int64_t size, parts;
  Floats others;

  Sum(float* out, int64_t size, int64_t parts) : out(out), size(size), parts(parts), others((parts - 1) * size) {}
  void start(int64_t part) { memset(of(part), 0, size_t(size) * sizeof(float)); }
  float* of(int64_t part) { return part == 0 ? out : others.at + (part - 1) * size; }
  void finish() {
#pragma omp parallel for num_threads(int(parts)) schedule(static) if (parts > 1)
    for (int64_t i = 0; i < size; i += 1024) {
      const int64_t end = smaller(size, i + 1024);
      for (int64_t part = 1; part < parts; ++part) {
        const float* other = of(part);
        for (int64_t j = i; j < end; ++j) out[j] += other[j];
      }
    }
  }
};

}  // namespace
}  // namespace ef::EF_NS
