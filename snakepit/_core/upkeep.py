"""Which workers are ended or replaced before they fail: health, age, idle time, memory, requests.

Pure; a part of the scheduler, on the manager's thread.
"""

from __future__ import annotations

from typing import Any

from .board import Board
from .dispatcher import Dispatcher
from .model import ExitReason, Request, RequestKind, Worker, WorkerState
from .retirement import Retirement

__all__ = ("Upkeep",)

AGE_JITTER = 0.1
"""Share by which ages vary, so that workers started together are not replaced together.
Source: HikariCP, pool/HikariPool.java (maxLifetime)."""

REQUESTS_SHARE = 10
"""A worker is lined up in the last tenth of the requests it may answer: as with ages, and so that there is time
to replace the workers one after another."""

LEAST_PAUSE_S = 0.001
"""Least time until the pool looks after its workers again.  Arbitrary: no shorter interval is of use, and one below the
clock's resolution would be over at once, again and again."""


class Alarm:
    """Owner of one of the pool's own deadlines."""

    def __init__(self) -> None:
        self.timer: Any = None


class Upkeep(Retirement):
    """Judges workers; the base of ``Lifecycle``, which ends them."""

    def __init__(self, board: Board, dispatcher: Dispatcher) -> None:
        super().__init__(board)
        self._dispatcher = dispatcher
        self.health = Alarm()
        self.aging = Alarm()
        self.idling = Alarm()

    # Alarms -----------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Set the pool's own deadlines that the settings ask for."""
        board = self._board
        if self.health.timer is None:
            interval_s = max(board.config.health_check_interval_s, LEAST_PAUSE_S)
            board.timers.set(self.health, board.now + interval_s, "health")
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
            board.timers.set(self.idling, max(since + limit_s, board.now + LEAST_PAUSE_S), "idling")

    # Judging ----------------------------------------------------------------------------------------

    def began(self, worker: Worker) -> None:
        """Note that a worker serves from now on."""
        board = self._board
        limit_s = board.config.max_worker_age_s
        if limit_s is not None:
            worker.expires_at = board.now + limit_s * (1 + AGE_JITTER * (2 * board.rng.random() - 1))
        most = board.config.max_requests_per_worker
        if most is not None:
            worker.lined_up_at = most - int(board.rng.random() * (most // REQUESTS_SHARE + 1))
        self.replaced(worker)
        self.arm()

    def check_health(self, _: Alarm) -> None:
        """Send a ping to every idle worker; busy ones are judged by their time-outs only."""
        board = self._board
        retiring = [w for w in self.retiring if w.state is WorkerState.IDLE and not w.closed]
        for worker in [*board.workers.idle, *retiring]:
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
            # The time to wait for its sessions began when it retired, and goes on.
            board.timers.set(worker, worker.drain_by, "drain")

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
        # A worker that has done nothing yet would be followed by one of the same size.
        if limit is not None and rss_bytes > limit and (worker.requests or worker.sent):
            self.retire_later(worker, ExitReason.MAX_RSS)

    def reached_limit(self, worker: Worker) -> None:
        """Line up a worker that is near the most requests it may answer; retire it when it is there."""
        most = self._board.config.max_requests_per_worker
        if most is None or worker.requests < worker.lined_up_at:
            return
        if worker.requests < most:
            self.retire_later(worker, ExitReason.MAX_REQUESTS)
        else:
            self.retire(worker, ExitReason.MAX_REQUESTS)

    def stop(self) -> None:
        """Look after no worker any more: the pool is closing, or broken."""
        super().stop()
        for alarm in (self.health, self.aging, self.idling):
            self._board.timers.clear(alarm)
