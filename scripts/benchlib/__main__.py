"""`python3 -m benchlib`, which scripts/bench runs."""

import sys

from . import ports
from .cli import main

if sys.argv[1:2] == ["ports"]:
    sys.exit(ports.main(sys.argv[2:]))
sys.exit(main())
