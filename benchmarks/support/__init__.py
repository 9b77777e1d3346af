"""What the scripts have in common.  Importing it makes them measure the checkout that they lie in."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if sys.path[0] != ROOT:
    sys.path.insert(0, ROOT)
