"""See `gfl/cli/test.py`."""

import sys

from gfl.cli.test import main

if __name__ == "__main__":  # loader workers import this file where they are spawned
    sys.exit(main())
