"""See `gfl/cli/train.py`."""

import sys

from gfl.cli.train import main

sys.exit(main())
