"""Deadlines in order, each owned by the object whose ``timer`` attribute names it.

Pure; used by the scheduler on the manager's thread.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any

__all__ = ("Timers",)

Timer = list[Any]
"""[deadline, tick, kind, owner]."""

_COMPACT_FROM = 64
"""Stale timers below which compaction is not worth its walk.  Arbitrary."""


class Timers:
    """A heap of deadlines; setting or clearing one is O(log n), the stale entry is dropped later."""

    # INVARIANT: a timer is live iff `owner.timer is timer` (I7); an owner has one timer at most.  A stale one
    # names no owner, so that it keeps no request alive.
    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self._ticks = count()
        self._stale = 0

    def __len__(self) -> int:
        return len(self._heap) - self._stale

    def set(self, owner: Any, deadline: float, kind: str) -> None:
        """Give the owner this deadline in the place of the one it may have."""
        self.clear(owner)
        timer: Timer = [deadline, next(self._ticks), kind, owner]
        owner.timer = timer
        heapq.heappush(self._heap, timer)

    def clear(self, owner: Any) -> None:
        """Take the owner's deadline away, if it has one."""
        if owner.timer is None:
            return
        owner.timer[3] = None
        owner.timer = None
        self._stale += 1
        if self._stale > _COMPACT_FROM and self._stale * 2 > len(self._heap):
            self._heap = [timer for timer in self._heap if timer[3] is not None]
            heapq.heapify(self._heap)
            self._stale = 0

    def next_deadline(self) -> float | None:
        """Return the earliest live deadline, or None."""
        heap = self._heap
        while heap and heap[0][3] is None:
            heapq.heappop(heap)
            self._stale -= 1
        return heap[0][0] if heap else None

    def pop_due(self, now: float) -> tuple[str, Any] | None:
        """Take out the earliest live timer that is due and return (kind, owner), or None."""
        deadline = self.next_deadline()
        if deadline is None or deadline > now:
            return None
        timer = heapq.heappop(self._heap)
        timer[3].timer = None
        return timer[2], timer[3]
