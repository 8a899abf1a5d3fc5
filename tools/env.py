"""See `gfl/cli/env.py`."""

import sys

from gfl.cli.env import main

if __name__ == "__main__":
    sys.exit(main())
