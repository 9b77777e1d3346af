"""What the scripts have in common.  Importing it makes them measure the checkout that they lie in."""

import compileall
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if sys.path[0] != ROOT:
    sys.path.insert(0, ROOT)

# As pip does when it installs the package.  Where PYTHONDONTWRITEBYTECODE is set, each worker would compile its bridge.
for folder in ("snakepit", "bridges/python"):
    compileall.compile_dir(f"{ROOT}/{folder}", quiet=1)
