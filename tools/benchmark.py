"""See `gfl/cli/benchmark.py`."""

import sys

from gfl.cli.benchmark import main

if __name__ == "__main__":  # loader workers import this file where they are spawned
    sys.exit(main())
