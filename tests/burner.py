"""Keeps a processor busy until it is ended, or until whoever started it is gone: the neighbour of ``make stress``."""

from __future__ import annotations

import os
import time


def burn() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            pass


if __name__ == "__main__":
    burn()
