"""``python -m snakepit`` is the ``snakepit`` command.

Runs on the main thread; owns nothing.
"""

from __future__ import annotations

import sys

from .cli import main

__all__ = ()

if __name__ == "__main__":
    sys.exit(main())
