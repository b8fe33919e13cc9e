// What every CPU of the architecture runs.
#include "table.h"
