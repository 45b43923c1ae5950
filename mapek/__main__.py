"""`python -m mapek`."""

from __future__ import annotations

import sys

from mapek.cli import main

if __name__ == "__main__":
    sys.exit(main())
