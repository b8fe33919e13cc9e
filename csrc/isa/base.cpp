// The instructions that every CPU of the architecture has.
#include "table.h"
