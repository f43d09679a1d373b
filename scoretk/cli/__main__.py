"""`python -m scoretk.cli`, which is the command `scoretk`."""

import sys

from scoretk.cli import main

sys.exit(main())
