// x86 with AVX-512 F, BW, DQ and VL.
#include "table.h"
