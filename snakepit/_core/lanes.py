"""A queue in order of priority, then acceptance, from which an entry can be withdrawn in O(1).

Pure; used by the scheduler on the manager's thread.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Request

__all__ = ("Entry", "Lane", "Queue", "Tally")

Entry = list[Any]
"""[rank, seq, sub, tick, request]: smaller runs sooner; ``tick`` makes every entry unique."""

_ticks = count()

_COMPACT_FROM = 64
"""Dead entries below which compaction is not worth its walk.  Arbitrary."""


class Tally:
    """How many requests stand in the lanes that share it."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


class Lane:
    """Requests that wait for the same workers.

    Nearly every push comes in order, so the lane is a sorted run (a deque: O(1) at both ends) beside
    a heap for the few that do not (higher priority, or put back after a worker's death).

    Args:
        tally: Counted up and down with the lane's length; lanes may share one.
    """

    # INVARIANT: an entry is live iff `request.entry is entry` (I7).  A dead one names no request, so that it
    # keeps no arguments alive, and is dropped when it surfaces.
    __slots__ = ("_dead", "_heap", "_run", "_tally")

    def __init__(self, tally: Tally | None = None) -> None:
        self._run: deque[Entry] = deque()
        self._heap: list[Entry] = []
        self._dead = 0
        self._tally = tally or Tally()

    def __len__(self) -> int:
        return len(self._run) + len(self._heap) - self._dead

    def push(self, request: Request, sub: int = 0) -> None:
        """Add a request at its place.

        Args:
            request: In no lane so far.
            sub: Order among entries of equal rank and seq; set-up commands use negative ones.
        """
        entry: Entry = [request.rank, request.seq, sub, next(_ticks), request]
        request.entry = entry
        request.lane = self
        self._tally.count += 1
        run = self._run
        if not run or entry > run[-1]:
            run.append(entry)
        else:
            heapq.heappush(self._heap, entry)

    def peek(self) -> Entry | None:
        """Return the first live entry, or None."""
        run, heap = self._run, self._heap
        while run and run[0][4] is None:
            run.popleft()
            self._dead -= 1
        while heap and heap[0][4] is None:
            heapq.heappop(heap)
            self._dead -= 1
        if not heap:
            return run[0] if run else None
        return heap[0] if not run or heap[0] < run[0] else run[0]

    def pop(self) -> Request | None:
        """Take the first live request out, or return None."""
        entry = self.peek()
        if entry is None:
            return None
        if self._run and self._run[0] is entry:
            self._run.popleft()
        else:
            heapq.heappop(self._heap)
        request: Request = entry[4]
        request.entry = None
        request.lane = None
        self._tally.count -= 1
        return request

    def pop_while(self, admits: Callable[[Request], bool], most: int) -> list[Request]:
        """Take out up to ``most`` live requests from the front, the first that is not admitted excluded."""
        taken: list[Request] = []
        while len(taken) < most:
            entry = self.peek()
            if entry is None or not admits(entry[4]):
                break
            if self._heap and self._heap[0] is entry:
                heapq.heappop(self._heap)
            else:
                self._run.popleft()
            request: Request = entry[4]
            request.entry = None
            request.lane = None
            taken.append(request)
        self._tally.count -= len(taken)
        return taken

    def withdraw(self, request: Request) -> None:
        """Take a request out of this lane wherever it stands; its entry is dropped later."""
        assert request.entry is not None
        request.entry[4] = None
        request.entry = None
        request.lane = None
        self._tally.count -= 1
        self._dead += 1
        if self._dead > _COMPACT_FROM and self._dead * 2 > len(self._run) + len(self._heap):
            self._run = deque(entry for entry in self._run if entry[4] is not None)
            self._heap = [entry for entry in self._heap if entry[4] is not None]
            heapq.heapify(self._heap)
            self._dead = 0

    def requests(self) -> list[Request]:
        """Return the live requests in order."""
        return [entry[4] for entry in sorted([*self._run, *self._heap]) if entry[4] is not None]


class Queue:
    """The pool's common queue: what any worker may run, and what binds a strict session, in one order.

    Args:
        tally: Counted up and down with the queue's length.
    """

    # INVARIANT: an opener is the first request of a strict session that no worker holds; one that retires leaves
    # openers to others (`_core/retirement`), and they hold up nothing that stands behind them.
    __slots__ = ("_common", "_openers")

    def __init__(self, tally: Tally | None = None) -> None:
        self._common = Lane(tally)
        self._openers = Lane(tally)

    def __len__(self) -> int:
        return len(self._common) + len(self._openers)

    def push(self, request: Request, *, opener: bool = False) -> None:
        """Add a request at its place."""
        (self._openers if opener else self._common).push(request)

    def peek(self, *, openers: bool = True) -> Entry | None:
        """Return the first live entry, or None."""
        common = self._common.peek()
        if not openers:
            return common
        opener = self._openers.peek()
        return common if opener is None or (common is not None and common < opener) else opener

    def pop(self) -> Request | None:
        """Take the first live request out, or return None."""
        entry = self.peek()
        return None if entry is None else entry[4].lane.pop()

    def pop_while(self, admits: Callable[[Request], bool], most: int) -> list[Request]:
        """Take out up to ``most`` of the first live requests that are admitted; none while openers stand among them."""
        return [] if len(self._openers) else self._common.pop_while(admits, most)

    def requests(self) -> list[Request]:
        """Return the live requests, each lane's in order."""
        return [*self._common.requests(), *self._openers.requests()]
