"""`python -m electra_fast` is `electra-fast`."""

import sys

from electra_fast.cli.main import main

sys.exit(main())
