"""See `gfl/cli/analyze.py`."""

import sys

from gfl.cli.analyze import main

if __name__ == "__main__":  # loader workers import this file where they are spawned
    sys.exit(main())
