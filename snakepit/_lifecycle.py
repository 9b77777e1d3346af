"""How workers come, are checked, are replaced and go.

Pure; a part of the scheduler, on the manager's thread.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from ._board import Board
from ._dispatcher import Dispatcher
from ._model import (
    EXPECTED_EXITS,
    Condemn,
    Emit,
    Exited,
    ExitReason,
    Forget,
    Outcome,
    PoolState,
    Request,
    RequestKind,
    RequestState,
    Slot,
    Spawn,
    TakeBack,
    Worker,
    WorkerState,
)
from ._restarts import RestartPolicy
from ._session_rules import SessionRules
from .errors import ProtocolError, WorkerDied, WorkerStartError, describe_exit

__all__ = ("Lifecycle",)

CLOSED_PIPE_GRACE_S = 1.0
"""Seconds between a closed reply pipe and the exit that should follow.  Arbitrary, far above what an exit takes."""

AGE_JITTER = 0.1
"""Share by which ages vary, so that workers started together are not replaced together.
Source: HikariCP, pool/HikariPool.java (maxLifetime)."""


class Alarm:
    """Owner of one of the pool's own deadlines."""

    def __init__(self) -> None:
        self.timer: Any = None


class Lifecycle:
    """Slots are filled, workers judged, condemned and buried."""

    def __init__(self, board: Board, rules: SessionRules, dispatcher: Dispatcher) -> None:
        config = board.config
        self._board = board
        self._rules = rules
        self._dispatcher = dispatcher
        self.policy = RestartPolicy(
            first_s=config.restart_backoff_s,
            factor=config.restart_backoff_factor,
            cap_s=config.restart_backoff_cap_s,
            jitter=config.restart_backoff_jitter,
            budget=config.restart_budget,
            rng=board.rng,
        )
        self.wanted = 0
        self.restarts = 0
        self.recycled = 0
        self.health = Alarm()
        self.aging = Alarm()
        self.idling = Alarm()
        self.ending = Alarm()
        self._to_retire: deque[tuple[Worker, ExitReason]] = deque()
        self._replacing: Slot | None = None
        self._replaces: dict[Slot, ExitReason] = {}

    # Growing ----------------------------------------------------------------------------------------

    def grow(self) -> None:
        """Start as many workers as the pool's floor, its waiters and its queue ask for."""
        board = self._board
        workers = board.workers
        if not workers.free or board.state not in (PoolState.OPEN, PoolState.DRAINING):
            return
        demand = len(board.queue) - workers.starting
        want = min(board.size, len(workers) + demand) if demand > 0 and not workers.idle else 0
        if board.state is PoolState.OPEN:
            want = max(want, board.min_workers, min(self.wanted, board.size))
        for slot in list(workers.free):
            if len(workers) >= want and slot not in self._replaces:
                continue
            if board.state is PoolState.DRAINING and len(workers) >= want:
                continue
            self._spawn(slot)

    def _spawn(self, slot: Slot) -> None:
        board = self._board
        worker = board.workers.make(slot, board.now)
        board.timers.set(worker, board.now + board.config.worker_init_timeout_s, "start")
        reason = self._replaces.pop(slot, None)
        if reason is not None:
            planned = reason in EXPECTED_EXITS
            self.recycled += planned
            self.restarts += not planned
            event = "worker.recycled" if planned else "worker.restarted"
            board.emit(event, {}, worker_id=worker.worker_id, reason=reason.value)
        board.act(Spawn(worker))

    # Starting ---------------------------------------------------------------------------------------

    def ready(self, worker: Worker) -> None:
        """Let a worker serve: its handshake is valid and its ``on_start`` has run."""
        board = self._board
        board.timers.clear(worker)
        worker.ready_at = worker.idle_since = board.now
        board.workers.move(worker, WorkerState.IDLE)
        board.emit(
            "worker.initialized", {"initialization_time_s": board.now - worker.spawned_at}, worker_id=worker.worker_id
        )
        if worker.slot is self._replacing:
            self._replacing = None
            self._retire_next()
        self.arm()
        self._dispatcher.serve(worker)

    def start_failed(self, worker: Worker, error: BaseException) -> None:
        """End a worker whose handshake failed; the failure is counted when its exit is seen."""
        if worker.state is WorkerState.STARTING:
            worker.start_error = error
            self.condemn(worker, ExitReason.START_FAILED)

    def spawn_refused(self, worker: Worker, error: BaseException) -> None:
        """Count a start for which the system could not make a process."""
        if worker.start_error is None:
            worker.start_error = error
        self._bury(worker, Exited(worker.worker_id), f"worker {worker.worker_id} could not be started: {error}")

    def arm(self) -> None:
        """Set the pool's own deadlines that the settings ask for."""
        board, config = self._board, self._board.config
        if self.health.timer is None:
            board.timers.set(self.health, board.now + config.health_check_interval_s, "health")
        if config.max_worker_age_s is not None and self.aging.timer is None:
            board.timers.set(self.aging, board.now + config.max_worker_age_s * (1 - AGE_JITTER), "aging")
        self.arm_idle()

    def arm_idle(self) -> None:
        board = self._board
        limit_s = board.config.worker_idle_timeout_s
        if limit_s is not None and self.idling.timer is None and board.workers.idle:
            first = next(iter(board.workers.idle))
            board.timers.set(self.idling, first.idle_since + limit_s, "idling")

    # Judging ----------------------------------------------------------------------------------------

    def check_health(self) -> None:
        """Send a ping to every idle worker; busy ones are judged by their time-outs only."""
        board = self._board
        for worker in list(board.workers.idle):
            ping = Request(None, "ping", kind=RequestKind.PING)
            ping.accepted_at = board.now
            self._dispatcher.send(worker, [ping])
            board.timers.set(worker, board.now + board.config.health_check_timeout_s, "ping")
        if len(board.workers):
            self.arm()

    def check_age(self) -> None:
        """Line up the workers that are older than allowed."""
        board = self._board
        limit_s = board.config.max_worker_age_s
        assert limit_s is not None
        for worker in board.workers.by_id.values():
            spread = 1 + AGE_JITTER * (2 * board.rng.random() - 1)
            if worker.ready_at is not None and board.now - worker.ready_at >= limit_s * spread:
                self.retire_later(worker, ExitReason.MAX_AGE)
        board.timers.set(self.aging, board.now + max(limit_s * AGE_JITTER / 4, 0.01), "aging")

    def check_idle(self) -> None:
        """End the workers above the floor that have been idle for too long."""
        board = self._board
        limit_s = board.config.worker_idle_timeout_s
        assert limit_s is not None
        spare = len(board.workers) - max(board.min_workers, 0)
        for worker in list(board.workers.idle):
            if spare <= 0 or worker.idle_since + limit_s > board.now:
                break
            if any(session.pinned for session in worker.sessions.values()):
                # A strict session's worker is never shrunk away; it goes to the young end of the stack.
                worker.idle_since = board.now
                board.workers.idle[worker] = board.workers.idle.pop(worker)
                continue
            self.condemn(worker, ExitReason.IDLE, polite=True)
            spare -= 1
        if spare > 0:
            self.arm_idle()

    def measured(self, worker: Worker, rss_bytes: int) -> None:
        """Line up a worker whose process group holds more memory than allowed."""
        worker.rss_bytes = rss_bytes
        limit = self._board.config.max_worker_rss_bytes
        if limit is not None and rss_bytes > limit:
            self.retire_later(worker, ExitReason.MAX_RSS)

    def checked(self, worker: Worker) -> None:
        """Note that an idle worker has answered its health check."""
        self._board.timers.clear(worker)
        if worker.retire is not None:
            self._board.timers.set(worker, self._board.now + self._board.config.session_drain_s, "drain")

    def proven(self, worker: Worker) -> None:
        """Note that a worker has answered: its death will cost no restart budget."""
        if not worker.proven:
            worker.proven = True
            self.policy.succeeded(worker.slot)

    # Replacing --------------------------------------------------------------------------------------

    def retire_later(self, worker: Worker, reason: ExitReason) -> None:
        """Line a worker up for replacement; one at a time, so that capacity never falls by more than one."""
        if worker.retire is None and all(waiting is not worker for waiting, _ in self._to_retire):
            self._to_retire.append((worker, reason))
            self._retire_next()

    def _retire_next(self) -> None:
        while self._replacing is None and self._to_retire:
            worker, reason = self._to_retire.popleft()
            if worker.state not in (WorkerState.CONDEMNED, WorkerState.STARTING) and worker.retire is None:
                self._replacing = worker.slot
                self.retire(worker, reason)

    def retire(self, worker: Worker, reason: ExitReason) -> None:
        """Drain a worker and replace it: no new work, and at most ``session_drain_s`` for its strict sessions."""
        board = self._board
        if worker.state is WorkerState.CONDEMNED or worker.retire is not None:
            return
        if worker.state is WorkerState.STARTING:
            self.condemn(worker, reason)
            return
        worker.retire = reason
        board.workers.idle.pop(worker, None)
        if worker.state is not WorkerState.CHECKING:
            board.timers.set(worker, board.now + board.config.session_drain_s, "drain")
        self.retire_if_drained(worker)

    def retire_overdue(self, worker: Worker) -> None:
        """Wait no longer for a retiring worker's sessions."""
        worker.overdue = True
        self.retire_if_drained(worker)

    def retire_if_drained(self, worker: Worker) -> None:
        """Condemn a retiring worker once nothing is left that only it can do."""
        if worker.retire is None or worker.state is not WorkerState.IDLE:
            return
        if worker.overdue or (not len(worker.lane) and not any(s.pinned for s in worker.sessions.values())):
            self.condemn(worker, worker.retire, polite=True)

    def reached_limit(self, worker: Worker) -> bool:
        """Replace a worker that has answered as many requests as it may; True when it is condemned."""
        limit = self._board.config.max_requests_per_worker
        if limit is None or worker.requests < limit or worker.state is not WorkerState.IDLE:
            return False
        if any(session.pinned for session in worker.sessions.values()):
            self.retire(worker, ExitReason.MAX_REQUESTS)
        else:
            self.condemn(worker, ExitReason.MAX_REQUESTS, polite=True)
        return worker.state is WorkerState.CONDEMNED

    # Ending -----------------------------------------------------------------------------------------

    def condemn(self, worker: Worker, reason: ExitReason, *, polite: bool = False, kill: bool = False) -> None:
        """Begin to end a worker; whatever the reason, this is the one way."""
        board = self._board
        if worker.state is WorkerState.CONDEMNED:
            if kill:
                board.act(Condemn(worker, reason, kill=True))
            return
        # RACE: 1. the worker answers its oldest request and begins the next one it was sent ahead,
        # 2. the manager, which has not read that answer, ends the worker.  Only what is taken back here
        # is certain not to have begun; the rest is judged when the exit is seen and the pipe read empty.
        # (tests/unit/test_scheduler.py::test_what_was_begun_is_not_put_back)
        board.workers.move(worker, WorkerState.CONDEMNED)
        worker.reason = reason
        board.timers.clear(worker)
        if worker.can_claim and worker.sent:
            board.act(TakeBack(worker, len(worker.sent) if worker.sent[0].ahead else len(worker.sent) - 1))
        self._rules.worker_lost(worker)
        board.act(Condemn(worker, reason, polite=polite, kill=kill))

    def misbehaved(self, worker: Worker, error: BaseException) -> None:
        """Fail the request in flight and replace a worker that broke the protocol."""
        if worker.state is WorkerState.STARTING:
            self.start_failed(worker, error)
        elif worker.state is not WorkerState.CONDEMNED:
            self._fail_oldest(worker, error)
            self.condemn(worker, ExitReason.PROTOCOL)

    def pipe_closed(self, worker: Worker) -> None:
        """Give the exit that should follow a closed pipe a moment to be seen."""
        # RACE: a dying process closes its pipes before its exit can be learned.  The exit says more, so it
        # is waited for; a process that closed its pipe and lives on has broken the protocol.
        if worker.state is not WorkerState.CONDEMNED:
            board = self._board
            board.workers.idle.pop(worker, None)
            worker.retire = worker.retire or ExitReason.PROTOCOL
            board.timers.set(worker, board.now + CLOSED_PIPE_GRACE_S, "closed")

    def closed_too_long(self, worker: Worker) -> None:
        """End a worker that closed its reply pipe and did not exit."""
        self.misbehaved(
            worker,
            ProtocolError(
                f"worker {worker.worker_id} (pid {worker.pid}) closed its reply pipe and did not exit"
                f" ({self._board.numbers()})"
            ),
        )

    def _fail_oldest(self, worker: Worker, error: BaseException) -> None:
        if not worker.sent:
            return
        request = worker.sent.popleft()
        if request.state is not RequestState.SENT:
            return
        if request.kind is RequestKind.USER:
            outcome = Outcome.DIED if isinstance(error, WorkerDied) else Outcome.ERROR
            self._rules.fail(request, error, outcome)
        elif request.kind is RequestKind.SETUP:
            self._rules.end(request)
            self._rules.setup_replied(request, error)

    def exited(self, worker: Worker, event: Exited) -> None:
        """Bury a worker whose process is gone; its pipe has been read empty."""
        how = describe_exit(event.code, event.signal)
        tail = f"; its stderr ended with:\n{event.stderr_tail}" if event.stderr_tail else ""
        self._bury(worker, event, f"worker {worker.worker_id} (pid {worker.pid}) ended with {how}", tail)

    def _bury(self, worker: Worker, event: Exited, what: str, tail: str = "") -> None:
        board = self._board
        reason = worker.reason or self._reason(worker)
        started = worker.ready_at is not None
        oldest = worker.sent[0] if worker.sent else None
        if oldest is not None and oldest.started_at is not None:
            message = f"{what} while it ran {oldest.command!r}, which {board.times(oldest)} ({board.numbers()}){tail}"
            died = WorkerDied(
                message, pid=worker.pid, exit_code=event.code, signal=event.signal, stderr_tail=event.stderr_tail
            )
            self._fail_oldest(worker, died)
        leftover = [request for request in worker.sent if request.state is RequestState.SENT]
        worker.sent.clear()
        if worker.state is not WorkerState.CONDEMNED:
            board.workers.move(worker, WorkerState.CONDEMNED)
            self._rules.worker_lost(worker)
        for request in leftover:
            if request.ahead:
                request.ahead = False
                board.ahead -= 1
            self._rules.requeue(request)
        board.timers.clear(worker)
        board.workers.remove(worker)
        board.act(Forget(worker))
        uptime_s = board.now - worker.spawned_at
        board.act(
            Emit(
                "snakepit.worker.exited",
                {"uptime_s": uptime_s},
                {
                    "pool": board.name,
                    "worker_id": worker.worker_id,
                    "reason": reason.value,
                    "exit_code": event.code,
                    "signal": event.signal,
                    "stderr_tail": event.stderr_tail,
                },
            )
        )
        delay_s = 0.0
        if reason not in EXPECTED_EXITS and reason is not ExitReason.BROKEN and not worker.proven and oldest is None:
            cause = worker.start_error
            if started:
                what += " before it had answered anything but its handshake"
            elif cause is not None:
                what += f" after a failed start: {cause}"
            else:
                what += " before its handshake"
            if worker.argv:
                what += f"; command line: {' '.join(worker.argv)}"
            error = WorkerStartError(
                f"{what}{tail}",
                argv=worker.argv,
                exit_code=event.code,
                signal=event.signal,
                stderr_tail=event.stderr_tail,
            )
            error.__cause__ = cause
            delay_s = self.policy.failed(worker.slot, error)
        self._free(worker.slot, reason, delay_s)

    def _reason(self, worker: Worker) -> ExitReason:
        return ExitReason.CRASH if worker.ready_at is not None else ExitReason.START_FAILED

    def _free(self, slot: Slot, reason: ExitReason, delay_s: float) -> None:
        board = self._board
        if board.state is PoolState.OPEN and reason not in (ExitReason.IDLE, ExitReason.SHUTDOWN, ExitReason.TERMINATED):
            self._replaces[slot] = reason
        elif slot is self._replacing:
            self._replacing = None
        if delay_s > 0:
            board.timers.set(slot, board.now + delay_s, "respawn")
        else:
            board.workers.release(slot)

    def forget_plans(self) -> None:
        """Start no more workers than the queue needs: the pool is closing, or broken."""
        self._replaces.clear()
        self._to_retire.clear()
        self._replacing = None
        self.wanted = 0
        for alarm in (self.health, self.aging, self.idling):
            self._board.timers.clear(alarm)
