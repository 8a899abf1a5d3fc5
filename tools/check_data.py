"""See `gfl/cli/check_data.py`."""

import sys

from gfl.cli.check_data import main

if __name__ == "__main__":
    sys.exit(main())
