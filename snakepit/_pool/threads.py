"""A thread that can be waited for again after Ctrl-C has interrupted the wait."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ("PatientThread",)


class PatientThread(threading.Thread):
    """A thread whose `join` tells the truth also after an interrupted one."""

    # RACE: 1. the main thread waits in `Thread.join`, 2. Ctrl-C raises there.  CPython up to 3.12 then takes the
    # thread for stopped, and the next `join` returns while it still runs (python/cpython#90882).  An event has
    # no such memory (tests/orphans/test_ctrl_c.py::test_the_block_ends_after_its_workers).
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._ended = threading.Event()

    def run(self) -> None:
        """Do what a thread does, and note its end."""
        try:
            super().run()
        finally:
            self._ended.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the thread."""
        if self._ended.wait(timeout):
            super().join()
