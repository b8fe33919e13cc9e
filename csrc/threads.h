// How the ops share work among threads: parallel() and in_ranges(), on the pool of threads.cpp.
#pragma once

#include <stdint.h>

#include "arguments.h"

namespace ef {

// Calls task(body, i) for each i from 0 to count - 1, on at most `threads` threads, of which the caller is one, and
// returns when all calls have. They may come in any order, and must not throw. `count` is below 2**32.
void run_tasks(void (*task)(const void* body, int64_t i), const void* body, int64_t count, int threads);

}  // namespace ef

namespace ef::EF_NS {

namespace {  // internal, as static is for functions: no symbol of theirs leaves the instruction set's object

// Calls body(i) for each i from 0 to count - 1, on at most `threads` threads. What the calls write must not depend on
// which thread runs them, nor on their order.
template <class Body>
void parallel(int64_t count, int64_t threads, const Body& body) {
  if (threads > 1 && count > 1)
    return run_tasks([](const void* of, int64_t i) { (*static_cast<const Body*>(of))(i); }, &body, count, int(threads));
  for (int64_t i = 0; i < count; ++i) body(i);
}

// Calls body(first, end) for ranges of `grain` numbers, and at last maybe fewer, that together are 0 to count - 1.
template <class Body>
void in_ranges(int64_t count, int64_t grain, int64_t threads, const Body& body) {
  parallel((count + grain - 1) / grain, threads, [&](int64_t i) {
    const int64_t first = i * grain, end = first + grain;
    body(first, end < count ? end : count);
  });
}

}  // namespace
}  // namespace ef::EF_NS
