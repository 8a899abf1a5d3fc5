"""See `gfl/cli/test.py`."""

import sys

from gfl.cli.test import main

sys.exit(main())
