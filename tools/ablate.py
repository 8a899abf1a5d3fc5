"""See `gfl/cli/ablate.py`."""

import sys

from gfl.cli.ablate import main

if __name__ == "__main__":  # loader workers import this file where they are spawned
    sys.exit(main())
