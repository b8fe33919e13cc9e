// The table of ops that each instruction set fills and bindings.cpp reads.
#pragma once

#include "arguments.h"

namespace ef {

struct Ops {
#define OP(name, parameters) void(*name) parameters;
#include "ops.inc"
#undef OP
};

namespace base {
extern const Ops ops;
}
namespace avx2 {
extern const Ops ops;
}
namespace avx512 {
extern const Ops ops;
}

}  // namespace ef
