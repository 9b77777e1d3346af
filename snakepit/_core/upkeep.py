"""Which workers are looked after, and replaced as planned: health, age, idle time, memory, requests.

Pure; a part of the scheduler, on the manager's thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from typing import Any

from .board import Board
from .dispatcher import Dispatcher
from .model import ExitReason, PoolState, Request, RequestKind, Slot, Worker, WorkerState

__all__ = ("Upkeep",)

AGE_JITTER = 0.1
"""Share by which ages vary, so that workers started together are not replaced together.
Source: HikariCP, pool/HikariPool.java (maxLifetime)."""


class Alarm:
    """Owner of one of the pool's own deadlines."""

    def __init__(self) -> None:
        self.timer: Any = None


class Upkeep(ABC):
    """Judges workers and replaces them as planned; the base of ``Lifecycle``, which ends them."""

    # INVARIANT: `retiring` holds exactly the live workers whose `retire` is set.
    # INVARIANT: `replacing` is the one slot whose worker is being replaced in turn; it is given up when the
    # new worker is ready.
    def __init__(self, board: Board, dispatcher: Dispatcher) -> None:
        self._board = board
        self._dispatcher = dispatcher
        self.health = Alarm()
        self.aging = Alarm()
        self.idling = Alarm()
        self.retiring: dict[Worker, None] = {}
        self.replacing: Slot | None = None
        self._to_retire: deque[tuple[Worker, ExitReason]] = deque()

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

    # Alarms -----------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Set the pool's own deadlines that the settings ask for."""
        board = self._board
        if self.health.timer is None:
            board.timers.set(self.health, board.now + board.config.health_check_interval_s, "health")
        self._arm_age()
        self.arm_idle()

    def _arm_age(self) -> None:
        due = [w.expires_at for w in self._board.workers.by_id.values() if w.expires_at is not None]
        if due:
            self._board.timers.set(self.aging, min(due), "aging")

    def arm_idle(self) -> None:
        """Set the deadline of the worker that has been idle for longest."""
        board = self._board
        limit_s = board.config.worker_idle_timeout_s
        if limit_s is None or self.idling.timer is not None or board.workers.live <= board.min_workers:
            return
        if board.workers.idle:
            since = min(worker.idle_since for worker in board.workers.idle)
            board.timers.set(self.idling, since + limit_s, "idling")

    # Judging ----------------------------------------------------------------------------------------

    def began(self, worker: Worker) -> None:
        """Note that a worker serves from now on."""
        board = self._board
        limit_s = board.config.max_worker_age_s
        if limit_s is not None:
            worker.expires_at = board.now + limit_s * (1 + AGE_JITTER * (2 * board.rng.random() - 1))
        if worker.slot is self.replacing:
            self.replacing = None
            self._retire_next()
        self.arm()

    def check_health(self, _: Alarm) -> None:
        """Send a ping to every idle worker; busy ones are judged by their time-outs only."""
        board = self._board
        for worker in list(board.workers.idle):
            ping = Request(None, "ping", kind=RequestKind.PING)
            ping.accepted_at = board.now
            self._dispatcher.send(worker, [ping])
            board.timers.set(worker, board.now + board.config.health_check_timeout_s, "ping")
        if board.workers.live:
            self.arm()

    def checked(self, worker: Worker) -> None:
        """Note that an idle worker has answered its health check."""
        board = self._board
        if worker.closed:
            return
        board.timers.clear(worker)
        if worker.retire is not None:
            board.timers.set(worker, board.now + board.config.session_drain_s, "drain")

    def unhealthy(self, worker: Worker) -> None:
        """End a worker that did not answer its health check."""
        self.condemn(worker, ExitReason.HEALTH)

    def check_age(self, _: Alarm) -> None:
        """Line up the workers that are older than allowed."""
        for worker in self._board.workers.by_id.values():
            if worker.expires_at is not None and worker.expires_at <= self._board.now:
                worker.expires_at = None
                self.retire_later(worker, ExitReason.MAX_AGE)
        self._arm_age()

    def check_idle(self, _: Alarm) -> None:
        """End the workers above the floor that have been idle for too long."""
        board = self._board
        limit_s = board.config.worker_idle_timeout_s
        assert limit_s is not None
        spare = board.workers.live - board.min_workers
        for worker in sorted(board.workers.idle, key=lambda worker: worker.idle_since):
            if spare <= 0 or worker.idle_since + limit_s > board.now:
                break
            if any(session.pinned for session in worker.sessions.values()):
                # A strict session's worker is never shrunk away; it is looked at again after the same time.
                worker.idle_since = board.now
                continue
            self.condemn(worker, ExitReason.IDLE, polite=True)
            spare -= 1
        self.arm_idle()

    def measured(self, worker: Worker, rss_bytes: int) -> None:
        """Line up a worker whose process group holds more memory than allowed."""
        worker.rss_bytes = rss_bytes
        limit = self._board.config.max_worker_rss_bytes
        if limit is not None and rss_bytes > limit and worker.state is not WorkerState.STARTING:
            self.retire_later(worker, ExitReason.MAX_RSS)

    def reached_limit(self, worker: Worker) -> None:
        """Retire a worker that has answered as many requests as it may."""
        limit = self._board.config.max_requests_per_worker
        if limit is not None and worker.requests >= limit:
            self.retire(worker, ExitReason.MAX_REQUESTS)

    # Replacing --------------------------------------------------------------------------------------

    def recycle(self) -> None:
        """Replace every worker: those that serve one after another, those that start at once."""
        for worker in list(self._board.workers.by_id.values()):
            if worker.state is WorkerState.STARTING:
                self.condemn(worker, ExitReason.RECYCLED)
            else:
                self.retire_later(worker, ExitReason.RECYCLED)

    def retire_later(self, worker: Worker, reason: ExitReason) -> None:
        """Line a worker up for replacement; one at a time, so that capacity never falls by more than one."""
        if worker.retire is None and all(waiting is not worker for waiting, _ in self._to_retire):
            self._to_retire.append((worker, reason))
            self._retire_next()

    def _retire_next(self) -> None:
        while self.replacing is None and self._to_retire:
            worker, reason = self._to_retire.popleft()
            if worker.state is not WorkerState.CONDEMNED and worker.retire is None:
                self.replacing = worker.slot
                self.retire(worker, reason)

    def retire(self, worker: Worker, reason: ExitReason) -> None:
        """Replace a worker once it is drained: no new work, at most ``session_drain_s`` for its sessions."""
        board = self._board
        if worker.state is WorkerState.CONDEMNED or worker.retire is not None:
            return
        if worker.state is WorkerState.STARTING:
            self.condemn(worker, reason)
            return
        worker.retire = reason
        self.retiring[worker] = None
        board.workers.idle.pop(worker, None)
        if worker.state is not WorkerState.CHECKING and not worker.closed:
            board.timers.set(worker, board.now + board.config.session_drain_s, "drain")
        self.retire_if_drained(worker)

    def overdue(self, worker: Worker) -> None:
        """Wait no longer for a retiring worker's sessions."""
        worker.overdue = True

    def retire_if_drained(self, worker: Worker) -> None:
        """Condemn a retiring worker once nothing is left that only it can do."""
        if worker.retire is None or worker.closed or worker.state is not WorkerState.IDLE:
            return
        if worker.overdue or not (len(worker.lane) or self._held(worker)):
            self.condemn(worker, worker.retire, polite=True)

    def _held(self, worker: Worker) -> bool:
        """Say whether a strict session may still come back to the worker."""
        is_open = self._board.state is PoolState.OPEN
        return any(s.pinned and (is_open or s.unsettled) for s in worker.sessions.values())

    def retire_drained(self) -> None:
        """Condemn the retiring workers for which nobody has to wait any longer."""
        for worker in list(self.retiring):
            self.retire_if_drained(worker)

    def stop(self) -> None:
        """Look after no worker any more: the pool is closing, or broken."""
        self._to_retire.clear()
        self.replacing = None
        for alarm in (self.health, self.aging, self.idling):
            self._board.timers.clear(alarm)
