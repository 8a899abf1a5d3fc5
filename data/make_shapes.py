"""Draws the sample data set into data/shapes: see `gfl/sample.py`."""

import sys

from gfl.cli.sample import main

if __name__ == "__main__":
    sys.exit(main())
