// OpenMP's parallel regions on std::thread, for `make tsan` alone: it is linked into the core in place of libgomp.
//
// ThreadSanitizer reports two accesses of which neither happens before the other. It learns the order from calls that
// it intercepts, such as pthread_create, and does not see the futexes by which libgomp starts and ends a region: with
// libgomp it would report every buffer that is written before a region and read within it. Here each region starts
// its threads and joins them, so no report needs to be suppressed. Nothing else orders the threads of a region, since
// OpenMP promises no more.
//
// These are the entry points that gcc calls for the core's pragmas; the Makefile checks that none is left to libgomp.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr int kLoops = 8;  // dynamic loops of one region, at most

struct Team {
  int size;
  std::atomic<long> taken[kLoops] = {};  // iterations of each loop that threads have taken; relaxed, it orders nothing
};

thread_local Team* team = nullptr;
thread_local int number = 0, loop = -1;
thread_local long first, last, chunk;

bool take(long* from, long* to) {
  const long start = first + team->taken[loop].fetch_add(chunk, std::memory_order_relaxed);
  if (start >= last) return false;
  *from = start, *to = start + chunk < last ? start + chunk : last;
  return true;
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*body)(void*), void* data, unsigned size, unsigned) {
  Team own{int(size > 0 ? size : 1)};
  const auto run = [&](int of_thread) {
    Team* const before = team;
    const int number_before = number, loop_before = loop;
    team = &own, number = of_thread, loop = -1;
    body(data);
    team = before, number = number_before, loop = loop_before;
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < own.size; ++i) threads.emplace_back(run, i);
  run(0);
  for (std::thread& thread : threads) thread.join();
}

int omp_get_thread_num() { return number; }
int omp_get_num_threads() { return team ? team->size : 1; }

bool GOMP_loop_nonmonotonic_dynamic_start(long start, long end, long step, long of_chunk, long* from, long* to) {
  if (step != 1 || ++loop >= kLoops) {
    std::fprintf(stderr, "openmp_by_threads.cpp: a loop with step %ld, or more than %d loops\n", step, kLoops);
    std::abort();
  }
  first = start, last = end, chunk = of_chunk;
  return take(from, to);
}

bool GOMP_loop_nonmonotonic_dynamic_next(long* from, long* to) { return take(from, to); }
void GOMP_loop_end_nowait() {}
}
