"""A thread that Ctrl-C leaves neither half started nor taken for ended; and whether a lock is this thread's.

Started and waited for on any thread; owns no state but that.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import Any

__all__ = ("PatientThread", "is_owned")

# Undocumented; threading.Condition rests on it.
is_owned: Callable[[threading.RLock], bool] = operator.methodcaller("_is_owned")
"""Says whether this thread has the lock: then it has come again, from a finalizer or a signal handler, for one, and
finds half a change."""


class PatientThread(threading.Thread):
    """A thread that does its work exactly if it was started to the end, and whose `join` tells the truth.

    Attributes:
        is_wanted: Whether it was: it does its work, or has done it.
    """

    # RACE: 1. the main thread waits in `Thread.join`, 2. Ctrl-C raises there.  CPython up to 3.12 then takes the
    # thread for stopped, and the next `join` returns while it still runs (python/cpython#90882).  An event has
    # no such memory (tests/orphans/test_ctrl_c.py::test_the_block_ends_after_its_workers).
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.is_wanted = False
        self._ended = threading.Event()
        # LOCK: held until the start is over; a lock, since only the interpreter's own let go in one step.
        self._gate = threading.Lock()
        self._gate.acquire()

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: The system has no thread to give; raised here.
        """
        # RACE: 1. the thread is made, 2. Ctrl-C ends the wait for its start, so that nobody will ever stop it
        # (tests/integration/test_host_faults_system.py::test_ctrl_c_in_the_start_of_a_thread_leaves_nothing).
        try:
            super().start()
            self.is_wanted = True
        finally:
            self._gate.release()

    def run(self) -> None:
        """Do what a thread does, and note its end."""
        self._gate.acquire()
        try:
            if self.is_wanted:
                super().run()
        finally:
            self._ended.set()

    def join(self, timeout: float | None = None) -> None:
        """Wait for the end of the thread."""
        if self._ended.wait(timeout):
            super().join()
