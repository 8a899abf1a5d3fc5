"""See `gfl/cli/lr_test.py`."""

import sys

from gfl.cli.lr_test import main

if __name__ == "__main__":  # loader workers import this file where they are spawned
    sys.exit(main())
