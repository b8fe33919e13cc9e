// The threads that the core's ops run on, beside the thread that calls them.
//
// The tasks of a call are taken one by one, by the caller as well. So the caller finishes what nobody has begun and
// waits only for tasks that another thread is in the middle of: on a busy machine, where the system runs the others
// late, an op takes no longer than on one thread. A thread without work looks for more for some microseconds, in which
// the next op usually comes, and then sleeps. There is one job at a time: a second thread of Python that calls an op
// meanwhile runs its tasks itself.
//
// Under ThreadSanitizer a thread takes a second task only when each other one has a first: a race between two tasks is
// not seen where one thread runs both.
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#define EF_NS base
#include "threads.h"

namespace ef {
namespace {

constexpr int kLooks = 2000;  // of a thread for work before it sleeps: 40 to 100 us

static inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

struct Pool {
  std::mutex in_use;                 // held by the thread whose job the pool runs
  std::atomic<uint64_t> ticket{0};   // the job's number << 32, and how many of its tasks nobody has begun
  std::atomic<int64_t> finished{0};  // tasks of the job
  std::atomic<bool> waiting{false};  // whether the caller sleeps until all are
  std::atomic<int> asleep{0};        // threads that sleep until there is a job
  std::mutex door;                   // guards sleeping and waking
  std::condition_variable job, end;

  // The job. These are written when the one before has ended, and read before a task is taken: if the ticket is still
  // the same then, they belong to it.
  std::atomic<void (*)(const void*, int64_t)> task{nullptr};
  std::atomic<const void*> body{nullptr};
  std::atomic<int64_t> count{0};
  std::atomic<int> helpers{0};  // threads that may help the caller: those with lower numbers

  int threads = 0;  // that were started; guarded by in_use

  // Under ThreadSanitizer, waits until so many of a job's tasks, or all, have been begun.
  void wait_until_begun([[maybe_unused]] uint64_t number, [[maybe_unused]] int64_t all, [[maybe_unused]] int some) {
#ifdef __SANITIZE_THREAD__
    const int64_t enough = all < some ? all : some;
    for (uint64_t seen = ticket.load(); seen >> 32 == number && all - uint32_t(seen) < enough; seen = ticket.load())
      sched_yield();
#endif
  }

  // Takes a task and runs it; returns whether there was one for this thread. The caller's number is -1.
  bool run_one(int number) {
    uint64_t seen = ticket.load(std::memory_order_acquire);
    while (uint32_t(seen) > 0) {
      const auto function = task.load(std::memory_order_relaxed);
      const void* const argument = body.load(std::memory_order_relaxed);
      const int64_t all = count.load(std::memory_order_relaxed);
      if (number >= helpers.load(std::memory_order_relaxed)) return false;
      if (!ticket.compare_exchange_weak(seen, seen - 1, std::memory_order_acquire)) continue;
      function(argument, all - int64_t(uint32_t(seen)));
      wait_until_begun(seen >> 32, all, helpers.load() + 1);
      if (finished.fetch_add(1) + 1 == all && waiting.load()) {
        std::lock_guard<std::mutex> lock(door);
        end.notify_one();
      }
      return true;
    }
    return false;
  }

  bool has_work(int number) const { return uint32_t(ticket.load()) > 0 && number < helpers.load(); }

  void help(int number) {
    for (;;) {
      for (int looks = 0; looks < kLooks; ++looks) {
        if (run_one(number)) looks = 0;
        pause();
      }
      std::unique_lock<std::mutex> lock(door);
      ++asleep;
      job.wait(lock, [&] { return has_work(number); });
      --asleep;
    }
  }

  // Starts threads until there are this many. They take no signals: Python's handlers belong to its main thread.
  void start(int wanted) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (; threads < wanted; ++threads) std::thread(&Pool::help, this, threads).detach();
    } catch (const std::system_error&) {  // the system has no more threads: those there are do the work
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void run(void (*function)(const void*, int64_t), const void* argument, int64_t tasks, int wanted) {
    if (threads < wanted) start(wanted);
    task.store(function), body.store(argument), count.store(tasks), helpers.store(threads < wanted ? threads : wanted),
        finished.store(0);
    ticket.store(((ticket.load() >> 32) + 1) << 32 | uint64_t(tasks));
    if (asleep.load() > 0) {
      std::lock_guard<std::mutex> lock(door);
      job.notify_all();
    }
    wait_until_begun(ticket.load() >> 32, tasks, helpers.load());
    while (run_one(-1)) {
    }
    for (int looks = 0; looks < kLooks && finished.load() < tasks; ++looks) pause();
    if (finished.load() == tasks) return;
    std::unique_lock<std::mutex> lock(door);
    waiting.store(true);
    end.wait(lock, [&] { return finished.load() == tasks; });
    waiting.store(false);
  }
};

// Never freed, since its threads use it until the process ends. A child of fork() has none of them: it gets a new one.
Pool* pool = new Pool;
const int of_forks = pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });

}  // namespace

void run_tasks(void (*task)(const void* body, int64_t i), const void* body, int64_t count, int threads) {
  const std::unique_lock<std::mutex> mine(pool->in_use, std::try_to_lock);
  if (mine) return pool->run(task, body, count, threads - 1);
  for (int64_t i = 0; i < count; ++i) task(body, i);
}

}  // namespace ef
