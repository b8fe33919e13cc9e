// The Python module _C: it has the ops of the best instruction set that this CPU supports, and a submodule for each
// instruction set, with the ops compiled for it.
//
// electra_fast/ops checks devices, dtypes, shapes and strides before it calls an op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

#include <cstdlib>
#include <exception>
#include <new>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "ops.h"

namespace py = pybind11;

namespace ef {

struct Isa {
  const char* name;
  const Ops* ops;
};

// The instruction sets that are compiled in and that this CPU supports, the best last.
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

#ifdef __linux__
static std::terminate_handler terminate_before;

// Before 3.14, Python ends a daemon thread that asks for the GIL while the interpreter exits: by pthread_exit, which
// unwinds its stack. torch and this file ask for the GIL in destructors, which must not be unwound, so std::terminate
// would abort a process whose work is done. Such a thread sleeps here until the process ends, as in Python 3.14.
static void terminate_unless_python_exits() {
  const bool main_thread = syscall(SYS_gettid) == getpid();
  while (!main_thread && !Py_IsInitialized() && !std::current_exception()) pause();
  terminate_before();
}
#endif

// The address in a Python object: null for None, else that of an integer, of an object with a buffer, or of a tensor
// (data_ptr()). The caller keeps the object alive until the op returns.
static void* address_of(PyObject* from) {
  if (from == Py_None) return nullptr;
  if (PyLong_Check(from)) return PyLong_AsVoidPtr(from);
  if (PyObject_CheckBuffer(from)) {
    Py_buffer buffer;
    if (PyObject_GetBuffer(from, &buffer, PyBUF_SIMPLE)) return nullptr;
    PyBuffer_Release(&buffer);
    return buffer.buf;
  }
  static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* address = PyObject_CallMethodObjArgs(from, data_ptr, nullptr);
  void* at = address ? PyLong_AsVoidPtr(address) : nullptr;
  Py_XDECREF(address);
  return at;
}

// Converts a Python object to an argument or a field of one. Returns false, with Python's error set, if its type or
// value does not fit.
template <class T>
static bool read(PyObject* from, T& to) {
  if constexpr (std::is_class_v<T>) {  // a struct comes as a tuple of its fields
    return to.visit([from](auto&... fields) {
      Py_ssize_t i = 0;
      if (PyTuple_Check(from) && PyTuple_GET_SIZE(from) == sizeof...(fields))
        return (read(PyTuple_GET_ITEM(from, i++), fields) && ...);
      PyErr_Format(PyExc_TypeError, "%s is a tuple of (%s), not a %s of another length or kind", T::kName, T::kFields,
                   Py_TYPE(from)->tp_name);
      return false;
    });
  } else if constexpr (std::is_pointer_v<T>) {
    to = static_cast<T>(address_of(from));
  } else if constexpr (std::is_floating_point_v<T>) {
    to = PyFloat_AsDouble(from);
  } else if constexpr (std::is_same_v<T, Threads>) {
    const long threads = PyLong_AsLong(from);
    to = Threads(threads < 1 ? 1 : threads);
  } else if constexpr (std::is_same_v<T, uint64_t>) {
    to = PyLong_AsUnsignedLongLong(from);
  } else {
    const long long number = PyLong_AsLongLong(from);
    to = T(number);
    if (to != number) PyErr_SetString(PyExc_OverflowError, "a number is out of its range");
  }
  return !PyErr_Occurred();
}

// Adds a line to an op's doc for T if it is a struct, and for each struct among its fields: the names of its fields.
template <class T>
static void describe(std::string& doc) {
  if constexpr (std::is_pointer_v<T>) {
    describe<std::remove_cv_t<std::remove_pointer_t<T>>>(doc);
  } else if constexpr (std::is_class_v<T>) {
    const std::string line = std::string("\n") + T::kName + ": (" + T::kFields + ")";
    if (doc.find(line) == std::string::npos) doc += line;
    T().visit([&](const auto&... fields) { (describe<std::decay_t<decltype(fields)>>(doc), ...); });
  }
}

// An op as a Python function. It is never freed, since the function lives as long as the process.
template <class... Arguments>
struct Function {
  std::string doc;
  PyMethodDef definition;
  void (*op)(Arguments...);

  // METH_FASTCALL, since a call through pybind11 takes a microsecond more.
  static PyObject* call(PyObject* self, PyObject* const* given, Py_ssize_t count) {
    const auto* function = static_cast<Function*>(PyCapsule_GetPointer(self, nullptr));
    if (count != sizeof...(Arguments))
      return PyErr_Format(PyExc_TypeError, "%s; %zd arguments were given", function->doc.c_str(), count);
    std::tuple<std::decay_t<Arguments>...> values;
    const bool fits = std::apply([&](auto&... value) { return (read(*given++, value) && ...); }, values);
    if (!fits) return nullptr;
    try {
      py::gil_scoped_release release;
      std::apply(function->op, values);
    } catch (const std::bad_alloc&) {
      return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
  }
};

template <class... Arguments>
static void bind(py::module_& module, const char* name, std::string doc, void (*op)(Arguments...)) {
  (describe<std::decay_t<Arguments>>(doc), ...);
  auto* function = new Function<Arguments...>{std::move(doc), {}, op};
  const auto call = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&Function<Arguments...>::call));
  function->definition = {name, call, METH_FASTCALL, function->doc.c_str()};
  const py::capsule self(function);
  module.attr(name) = py::reinterpret_steal<py::object>(PyCFunction_New(&function->definition, self.ptr()));
}

static void bind_all(py::module_& module, const Ops& ops) {
#define OP(name, parameters) bind(module, #name, #name #parameters, ops.name);
#include "ops.inc"
#undef OP
}

}  // namespace ef

PYBIND11_MODULE(_C, module) {
  const std::vector<ef::Isa> isas = ef::supported();
  const ef::Isa chosen = ef::choose(isas);
#ifdef __linux__
  ef::terminate_before = std::set_terminate(ef::terminate_unless_python_exits);
#endif
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
