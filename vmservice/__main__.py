"""`python3 -m vmservice` is the command `vmservice`."""

from __future__ import annotations

import sys

from vmservice.cli import main

sys.exit(main())
