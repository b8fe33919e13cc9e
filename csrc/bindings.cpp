// Python's view of the core: the ops of the best instruction set at the top, those of each in a submodule of its name.
//
// Addresses arrive as integers; electra_fast/ops checks devices, dtypes, shapes and strides before it passes them.
#include <pthread.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "ops.h"

namespace py = pybind11;

namespace ef {

struct Isa {
  const char* name;
  const Ops* ops;
};

// Compiled and supported by this CPU, the best last.
static std::vector<Isa> supported() {
  std::vector<Isa> found = {{"base", &base::ops}};
#ifdef EF_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return found;
  found.push_back({"avx2", &avx2::ops});
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    found.push_back({"avx512", &avx512::ops});
#endif
  return found;
}

static Isa choose(const std::vector<Isa>& isas) {
  const char* asked = std::getenv("ELECTRA_FAST_ISA");
  if (!asked || !*asked) return isas.back();
  std::string names;
  for (const Isa& isa : isas) {
    if (isa.name == std::string(asked)) return isa;
    names += (names.empty() ? "" : ", ") + std::string(isa.name);
  }
  throw py::import_error("ELECTRA_FAST_ISA is '" + std::string(asked) + "'; this build on this CPU has " + names +
                         "; set it to one of these, or unset it for the best, " + isas.back().name);
}

// After fork() the child has OpenMP's state but not its threads, and would wait for them for ever.
static bool forked = false;

template <class T>
struct Argument {
  using Python = T;
  static T from(T value) { return value; }
};

template <class T>
struct Argument<T*> {
  using Python = uintptr_t;
  static T* from(uintptr_t address) { return reinterpret_cast<T*>(address); }
};

template <>
struct Argument<Threads> {
  using Python = int;
  static Threads from(int threads) { return Threads(forked || threads < 1 ? 1 : threads); }
};

template <class... Arguments>
static void bind(py::module_& module, const char* name, const char* doc, void (*op)(Arguments...)) {
  module.def(
      name, [op](typename Argument<Arguments>::Python... values) { op(Argument<Arguments>::from(values)...); }, doc,
      py::call_guard<py::gil_scoped_release>());
}

static void bind_all(py::module_& module, const Ops& ops) {
  py::options options;
  options.disable_function_signatures();  // the declaration in C++ says more
#define OP(name, parameters) bind(module, #name, #name #parameters, ops.name);
#include "ops.inc"
#undef OP
}

}  // namespace ef

PYBIND11_MODULE(_C, module) {
  const std::vector<ef::Isa> isas = ef::supported();
  const ef::Isa chosen = ef::choose(isas);
  pthread_atfork(nullptr, nullptr, [] { ef::forked = true; });
  std::vector<std::string> names;
  for (const ef::Isa& isa : isas) {
    py::module_ submodule = module.def_submodule(isa.name);
    ef::bind_all(submodule, *isa.ops);
    names.push_back(isa.name);
  }
  ef::bind_all(module, *chosen.ops);
  module.def("isa", [chosen] { return chosen.name; }, "The instruction set in use.");
  module.def("isas", [names] { return names; }, "Those compiled and supported by this CPU, the best last.");
}
