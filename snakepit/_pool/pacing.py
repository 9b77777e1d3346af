"""How often the pool's thread looks at the pipes, and since when what it finds there can have come.

Used on the manager's thread; owns the time of the last look.
"""

from __future__ import annotations

from time import sleep

from .._clock import monotonic_s
from .._core.board import Board

__all__ = ("Pace",)

GATHER_S = 0.0001
"""Pause in which answers and requests gather.  Measured (benchmarks/throughput.py, 16 callers): half of it gains less,
four times as much lets the workers run dry."""

LEAST_AHEAD = 2
"""Requests sent ahead, to all workers together, with which these seldom run dry in such a pause."""

DEEP = 64
"""Queue that gives the thread enough to do at each look as it is."""

SLEPT_S = 0.0001
"""A look that takes longer has slept; one that finds something takes a tenth of that."""


class Pace:
    """Paces the turns of one pool's thread.

    Args:
        board: The scheduler's.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._looked_at = 0.0

    def gather(self) -> None:
        """Pause before a look, while the workers have more to do than what they are at.

        As a network card gathers packets before it interrupts: each wake-up of this thread takes the interpreter's
        lock from the callers, which are about to post, or to wait.
        """
        board = self._board
        if board.ahead >= LEAST_AHEAD and len(board.queue) < DEEP:
            sleep(GATHER_S)

    def looked(self, began: float, *, may_sleep: bool) -> None:
        """Tell the scheduler since when there can be what a look has found.

        Args:
            began: When the look began, monotonic seconds.
            may_sleep: Whether it was to wait where there was nothing.
        """
        now = monotonic_s()
        # Who slept has seen that there was nothing when it began to.
        slept = may_sleep and now - began > SLEPT_S
        self._board.looked_at, self._looked_at = began if slept else self._looked_at, now
