// How rows are divided among threads: each has a contiguous range, cut into blocks that stay in cache from one product
// to the next.
#pragma once

#include <stdint.h>
#include <string.h>

#include <new>

#include "gemm.h"
#include "ops.h"
#include "threads.h"

namespace ef::EF_NS {

constexpr int64_t kBlockFloats = 96 * 1024;  // the widest matrix of a block of rows, which fits in the L2 cache

static inline int64_t ceiling(int64_t n, int64_t of) { return (n + of - 1) / of; }

// The distance between rows of a scratch block: with a power of two, a column would fall into few cache sets.
static inline int64_t row_stride(int64_t columns) { return ceiling(columns, 16) * 16 + 16; }

namespace {  // internal, as static is for functions: no symbol of theirs leaves the instruction set's object

// How rows are divided: into `count` parts, one for each thread, and these into blocks.
struct Parts {
  int64_t rows;
  bool few;        // with so few rows, packing a weight takes longer than it saves (linear.h)
  int64_t unit;    // rows that a product takes at once
  int64_t count;   // parts
  int64_t height;  // the most rows of a block, whole units

  // width: the columns of the widest matrix that is computed for a block.
  Parts(int64_t rows, int64_t width, int64_t flops_of_a_row, Threads threads)
      : rows(rows),
        few(rows <= 256),
        unit(few ? kPanel : kSliver),
        count(rows * flops_of_a_row < 200000 ? 1 : smaller(threads, ceiling(rows, unit))) {
    const int64_t fit = kBlockFloats / (width > 0 ? width : 1);
    height = (fit < 48 ? 48 : smaller(fit, 384)) / unit * unit;
  }
  int64_t start(int64_t part) const { return smaller(rows, ceiling(ceiling(rows, unit) * part, count) * unit); }
  // Calls body(first, rows) for each block of a part; blocks are of about one size.
  template <class Body>
  void blocks(int64_t part, Body body) const {
    const int64_t first = start(part), end = start(part + 1), number = ceiling(end - first, height);
    const int64_t step = number ? ceiling(ceiling(end - first, number), unit) * unit : 1;
    for (int64_t at = first; at < end; at += step) body(at, smaller(step, end - at));
  }
};

// An uninitialised array, aligned to 64 bytes, which is freed with this object.
template <class T>
struct Memory {
  T* at;

  explicit Memory(int64_t count) : at(new (std::align_val_t(64)) T[size_t(count) + 16]) {}
  ~Memory() { operator delete[](at, std::align_val_t(64)); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
};
using Floats = Memory<float>;

// An array that every part adds to. The first part adds to the array itself, each other part to an array of its own;
// finish() adds these up in order, so the same number of threads gives the same bits.
struct Sum {
  float* out;
  int64_t size, parts;
  Floats others;

  Sum(float* out, int64_t size, int64_t parts) : out(out), size(size), parts(parts), others((parts - 1) * size) {}
  void start(int64_t part) { memset(of(part), 0, size_t(size) * sizeof(float)); }
  float* of(int64_t part) { return part == 0 ? out : others.at + (part - 1) * size; }
  void finish() {
    in_ranges(size, 4096, parts, [&](int64_t first, int64_t end) {
      for (int64_t part = 1; part < parts; ++part) {
        const float* other = of(part);
        for (int64_t i = first; i < end; ++i) out[i] += other[i];
      }
    });
  }
};

}  // namespace
}  // namespace ef::EF_NS
