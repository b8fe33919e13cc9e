// x86 with AVX2 and FMA.
#include "table.h"
