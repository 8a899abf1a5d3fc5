"""`python -m gfl COMMAND ...`, where the command `gfl` is not on the path."""

import sys

from gfl.cli.main import main

if __name__ == "__main__":  # loader workers import this file where they are spawned
    sys.exit(main())
