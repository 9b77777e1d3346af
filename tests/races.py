"""A lock that lies: its takers come in the order the test says, whatever the system's scheduler would do."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from snakepit.testing import ThreadSequencer

__all__ = ("LyingLock",)


class LyingLock:
    """Stands in for a lock; each thread named in ``order`` takes it first in its turn, later ones as they come.

    Args:
        lock: The lock it stands for.
        order: Names of the threads that compete, first to last.
        sequencer: Orders them; block n is the n-th taker's whole critical section.
    """

    def __init__(self, lock: Any, order: list[str], sequencer: ThreadSequencer | None = None) -> None:
        self._lock = lock
        self._places = {name: place for place, name in enumerate(order)}
        self._sequencer = sequencer or ThreadSequencer()
        self._blocks: dict[int, AbstractContextManager[None]] = {}

    def __enter__(self) -> Any:
        place = self._places.pop(threading.current_thread().name, None)
        if place is not None:
            block = self._sequencer(place)
            block.__enter__()
            self._blocks[threading.get_ident()] = block
        return self._lock.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, traceback)
        block = self._blocks.pop(threading.get_ident(), None)
        if block is not None:
            block.__exit__(None, None, None)
