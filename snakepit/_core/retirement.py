"""How workers are replaced as planned: one after another, between requests, after their strict sessions.

Pure; a part of the scheduler, on the manager's thread.

A worker that is to be replaced stands in the line first, and serves as ever.  At its turn it *retires*: no new
strict session is bound to it and nothing is sent ahead to it, but until it may go it serves on, what everybody
could serve included.  It may go when no strict session is bound to it, or when it has waited for them for
``session_drain_s``; it goes at the next moment at which its pipe is empty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from .board import Board
from .model import ExitReason, PoolState, Slot, Worker, WorkerState

__all__ = ("Retirement",)


class Retirement(ABC):
    """Replaces workers as planned; the base of ``Upkeep``, which says which of them."""

    # INVARIANT: `retiring` (the table's) holds exactly the live workers whose `retire` is set.
    # INVARIANT: `replacing` is the one slot whose worker is being replaced in turn; it is given up when the
    # new worker is ready.
    # INVARIANT: `patient` is the one worker that had its turn and still waits for its sessions: it retires, and
    # others have their turn meanwhile.
    # INVARIANT: who stands in `_line` does not retire yet.
    def __init__(self, board: Board) -> None:
        self._board = board
        self.replacing: Slot | None = None
        self.patient: Worker | None = None
        self._line: dict[Worker, ExitReason] = {}

    @property
    def retiring(self) -> dict[Worker, None]:
        """The workers that retire."""
        return self._board.workers.retiring

    @property
    def pending(self) -> bool:
        """True when some worker retires, or stands in the line."""
        return bool(self._line) or bool(self.retiring)

    @abstractmethod
    def condemn(
        self,
        worker: Worker,
        reason: ExitReason,
        *,
        error: BaseException | None = None,
        polite: bool = False,
        kill: bool = False,
    ) -> None:
        """Begin to end a worker."""

    # The line ---------------------------------------------------------------------------------------

    def recycle(self) -> None:
        """Replace every worker: those that serve one after another, those that start at once."""
        for worker in list(self._board.workers.by_id.values()):
            if worker.state is WorkerState.STARTING:
                self.condemn(worker, ExitReason.RECYCLED)
            else:
                self.retire_later(worker, ExitReason.RECYCLED)

    def retire_later(self, worker: Worker, reason: ExitReason) -> None:
        """Line a worker up for replacement; one at a time, so that capacity never falls by more than one."""
        if worker.retire is None and worker.state is not WorkerState.CONDEMNED and worker not in self._line:
            self._line[worker] = reason
            self._next_turn()

    def _next_turn(self) -> None:
        """Let the next worker retire, unless one is being replaced."""
        while self.replacing is None:
            if self.patient is not None and self._may_go(self.patient):
                self.replacing, self.patient = self.patient.slot, None
                return
            free = (worker for worker in self._line if not self._held(worker))
            worker = next(free, None)
            if worker is not None:
                self.replacing = worker.slot
            elif self._line and self.patient is None:
                worker = self.patient = next(iter(self._line))
            else:
                return
            self._retire(worker, self._line.pop(worker))

    # Retiring ---------------------------------------------------------------------------------------

    def retire(self, worker: Worker, reason: ExitReason) -> None:
        """Replace a worker, whoever's turn it is, as soon as it may go."""
        if worker.state is WorkerState.CONDEMNED:
            return
        if worker.state is WorkerState.STARTING:
            self.condemn(worker, reason)
            return
        self._line.pop(worker, None)
        if self.patient is worker:
            self.patient = None
        if worker.retire is None:
            self._retire(worker, reason)
        self.retire_if_drained(worker)

    def _retire(self, worker: Worker, reason: ExitReason) -> None:
        board = self._board
        worker.retire = reason
        worker.drain_by = board.now + board.config.session_drain_s
        self.retiring[worker] = None
        board.workers.idle.pop(worker, None)
        if worker.state is not WorkerState.CHECKING and not worker.closed:
            board.timers.set(worker, worker.drain_by, "drain")

    def overdue(self, worker: Worker) -> None:
        """Wait no longer for a retiring worker's sessions."""
        worker.overdue = True

    def _held(self, worker: Worker) -> bool:
        """Say whether a strict session may still come back to the worker."""
        is_open = self._board.state is PoolState.OPEN
        return any(s.pinned and (is_open or s.unsettled) for s in worker.sessions.values())

    def _may_go(self, worker: Worker) -> bool:
        """Say whether nothing is left that only this worker can do, or its time is over."""
        return worker.overdue or not (len(worker.lane) or self._held(worker))

    def retire_if_drained(self, worker: Worker) -> None:
        """Condemn a retiring worker when it may go and its pipe is empty."""
        if worker.retire is None or worker.closed or worker.state is not WorkerState.IDLE:
            return
        if worker is self.patient or not self._may_go(worker):
            return
        if self.replacing is None:
            self.replacing = worker.slot
        self.condemn(worker, worker.retire, polite=True)

    def retire_drained(self) -> None:
        """Give the next turn, and condemn the retiring workers for which nobody has to wait any longer."""
        self._next_turn()
        for worker in list(self.retiring):
            self.retire_if_drained(worker)

    # Coming and going -------------------------------------------------------------------------------

    def replaced(self, worker: Worker) -> None:
        """Note that a worker serves from now on: the next one has its turn."""
        if worker.slot is self.replacing:
            self.replacing = None
            self._next_turn()

    def left(self, worker: Worker) -> None:
        """Note that a worker is condemned, for whatever reason."""
        self.retiring.pop(worker, None)
        self._line.pop(worker, None)
        if self.patient is worker:
            self.patient = None

    def stop(self) -> None:
        """Line up nobody any more: the pool is closing, or broken."""
        self._line.clear()
        self.replacing = self.patient = None
