"""`python3 -m benchlib`, which scripts/bench runs."""

import sys

from .cli import main

sys.exit(main())
