"""How workers come and go: started, condemned, buried, started again.

Pure; a part of the scheduler, on the manager's thread.
"""

from __future__ import annotations

import signal as signals

from .._text import show_argv
from ..errors import CommandTimeout, InternalError, ProtocolError, WorkerDied, WorkerStartError
from .board import Board
from .dispatcher import Dispatcher
from .model import (
    EXPECTED_EXITS,
    Condemn,
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
    describe_exit,
)
from .restarts import RestartPolicy
from .session_rules import SessionRules
from .upkeep import Upkeep

__all__ = ("Lifecycle",)

CLOSED_PIPE_GRACE_S = 1.0
"""Seconds between a closed reply pipe and the exit that should follow.  Arbitrary, far above its time."""

_NOT_REFILLED = (ExitReason.IDLE, ExitReason.SHUTDOWN, ExitReason.TERMINATED)
"""Exits after which a slot stays empty until there is a demand."""


class Lifecycle(Upkeep):
    """Slots are filled, workers condemned and buried; judging them is ``Upkeep``'s part."""

    # INVARIANT: `_replaces` holds the empty slots that are filled again whether or not there is a demand;
    # `_vacated` those of a pool that drains, which are filled again only if there is one.
    def __init__(self, board: Board, rules: SessionRules, dispatcher: Dispatcher) -> None:
        super().__init__(board, dispatcher)
        config = board.config
        self._rules = rules
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
        self._replaces: dict[Slot, ExitReason] = {}
        self._vacated: dict[Slot, ExitReason] = {}

    # Starting ---------------------------------------------------------------------------------------

    @property
    def must_grow(self) -> bool:
        """True when workers are missing whatever the queue holds."""
        board = self._board
        floor = max(board.min_workers, self.wanted) if board.state is PoolState.OPEN else 0
        return bool(self._replaces) or len(board.workers) + board.workers.backing_off < floor

    def grow(self) -> None:
        """Start as many workers as the pool's floor, its waiters and its queue ask for."""
        board = self._board
        workers = board.workers
        if board.state not in (PoolState.OPEN, PoolState.DRAINING):
            return
        for slot in [slot for slot in self._replaces if slot in workers.free]:
            self._spawn(slot)
        # A slot in its back-off will serve the queue too: no other one is started in its place.
        places = len(workers) + workers.backing_off
        coming = workers.starting + workers.backing_off + workers.counts[WorkerState.CHECKING]
        want = places + max(0, board.demand() - coming)
        if board.state is PoolState.OPEN:
            want = max(want, board.min_workers, self.wanted)
        for slot in list(workers.free)[: want - places]:
            self._spawn(slot)

    def _spawn(self, slot: Slot) -> None:
        board = self._board
        worker = board.workers.make(slot, board.now)
        board.timers.set(worker, board.now + board.config.worker_init_timeout_s, "start")
        reason = self._replaces.pop(slot, None) or self._vacated.pop(slot, None)
        if reason is not None:
            planned = reason in EXPECTED_EXITS
            self.recycled += planned
            self.restarts += not planned
            event = "worker.recycled" if planned else "worker.restarted"
            board.emit(event, {}, worker_id=worker.worker_id, reason=reason.value)
        board.act(Spawn(worker))

    def ready(self, worker: Worker) -> None:
        """Let a worker serve: its handshake is valid and its ``on_start`` has run."""
        board = self._board
        if not worker.closed:
            board.timers.clear(worker)
        worker.ready_at = worker.idle_since = board.now
        board.workers.move(worker, WorkerState.IDLE)
        init_s = board.now - worker.spawned_at
        board.emit("worker.initialized", {"initialization_time_s": init_s}, worker_id=worker.worker_id)
        self.began(worker)

    def start_failed(self, worker: Worker, error: BaseException) -> None:
        """End a starting worker whose handshake failed; the failure is counted when its exit is seen."""
        worker.start_error = error
        self.condemn(worker, ExitReason.START_FAILED)

    def start_timed_out(self, worker: Worker) -> None:
        """End a worker that was not ready in time."""
        limit_s = self._board.config.worker_init_timeout_s
        self.start_failed(worker, TimeoutError(f"it did not answer the handshake within {limit_s:g} s"))

    def spawn_refused(self, worker: Worker, error: BaseException) -> None:
        """Count a start for which the system could not make a process."""
        worker.start_error = error
        self._bury(worker, Exited(worker.worker_id))

    def backed_off(self, slot: Slot) -> None:
        """Let an empty slot be filled: its back-off is over."""
        self._board.workers.release(slot)

    def proven(self, worker: Worker) -> None:
        """Note that a worker has answered: its death will cost no restart budget."""
        if not worker.proven:
            worker.proven = True
            self.policy.succeeded(worker.slot)

    def may_lend(self, worker: Worker) -> bool:
        """Say whether callers may use a worker by themselves until the next event: it idles, and nobody waits."""
        board = self._board
        if board.state is not PoolState.OPEN or len(board.queue) or self.pending:
            return False
        limited = board.config.max_requests_per_worker is not None
        return worker.state is WorkerState.IDLE and worker.in_service and not limited

    def served(self, worker: Worker, count: int) -> None:
        """Note what an idle worker has answered meanwhile to callers that used it by themselves."""
        self.proven(worker)
        worker.used = True
        worker.requests += count
        worker.idle_since = self._board.now

    # Ending -----------------------------------------------------------------------------------------

    def condemn(
        self,
        worker: Worker,
        reason: ExitReason,
        *,
        error: BaseException | None = None,
        polite: bool = False,
        kill: bool = False,
    ) -> None:
        """Begin to end a worker; whatever the reason, this is the one way.

        Args:
            worker: Live, or condemned already (then ``kill`` hurries its end).
            reason: Why, as ``snakepit.worker.exited`` tells it.
            error: What its oldest request fails with now; None leaves it to the exit.
            polite: Close its pipe first.
            kill: Send KILL at once.
        """
        board = self._board
        if worker.state is WorkerState.CONDEMNED:
            if error is not None:
                self._fail_oldest(worker, error)
            if kill:
                board.act(Condemn(worker, reason, kill=True))
            return
        board.workers.move(worker, WorkerState.CONDEMNED)
        worker.reason = reason
        self.left(worker)
        worker.expires_at = None
        board.timers.clear(worker)
        if error is not None:
            self._fail_oldest(worker, error)
        # RACE: 1. the worker answers its oldest request and begins the next one it was sent ahead,
        # 2. the manager, which has not read that answer, ends the worker.  Only what is taken back here
        # is certain not to have begun; the rest is judged when the exit is seen and the pipe read empty.
        # (tests/unit/test_scheduler.py::test_what_was_begun_is_not_put_back)
        unbegun = sum(request.started_at is None for request in worker.sent)
        if unbegun:
            board.act(TakeBack(worker, unbegun))
        self._rules.worker_lost(worker)
        board.act(Condemn(worker, reason, polite=polite, kill=kill))

    def run_timed_out(self, request: Request) -> None:
        """Fail a request that ran for too long, and end its worker."""
        board, worker = self._board, request.worker
        if worker is None or not worker.sent or worker.sent[0] is not request:
            raise InternalError(f"{request!r} timed out without being the oldest of its worker")
        error = CommandTimeout(
            f"{request.command!r} exceeded its time-out of {request.timeout_s} s: it {board.times(request)};"
            f" worker {worker.worker_id} (pid {worker.pid}) is ended ({board.numbers()})"
        )
        self.condemn(worker, ExitReason.TIMEOUT, error=error)

    def misbehaved(self, worker: Worker, error: BaseException) -> None:
        """Fail the request in flight and replace a worker that broke the protocol."""
        if worker.state is WorkerState.STARTING:
            self.start_failed(worker, error)
        elif worker.state is not WorkerState.CONDEMNED:
            worker.start_error = error
            self.condemn(worker, ExitReason.PROTOCOL, error=error)

    def pipe_closed(self, worker: Worker) -> None:
        """Give the exit that should follow a closed pipe a moment to be seen."""
        # RACE: 1. a dying process closes its pipes, 2. its exit can be learned.  The exit says more, so it
        # is waited for; a process that closed its pipe and lives on has broken the protocol.
        # When the exit is seen first, the manager says so here before it reads what is left in the pipe, so
        # that a worker that is gone gets no more work in return for its last replies
        # (tests/unit/test_scheduler_lifecycle.py::test_closed_pipe_waits_for_the_exit).
        if worker.state is not WorkerState.CONDEMNED and not worker.closed:
            board = self._board
            worker.closed = True
            board.workers.idle.pop(worker, None)
            board.timers.set(worker, board.now + CLOSED_PIPE_GRACE_S, "closed")

    def closed_too_long(self, worker: Worker) -> None:
        """End a worker that closed its reply pipe and did not exit."""
        what = f"worker {worker.worker_id} (pid {worker.pid}) closed its reply pipe and did not exit"
        self.misbehaved(worker, ProtocolError(f"{what} ({self._board.numbers()})"))

    def _fail_oldest(self, worker: Worker, error: BaseException) -> None:
        if not worker.sent:
            return
        request = worker.sent.popleft()
        if request.state is not RequestState.SENT:
            return
        if request.kind is RequestKind.USER:
            outcome = Outcome.ERROR
            if isinstance(error, WorkerDied):
                outcome = Outcome.DIED
            elif isinstance(error, CommandTimeout):
                outcome = Outcome.COMMAND_TIMEOUT
            self._rules.fail(request, error, outcome)
            return
        self._rules.end(request)
        if request.kind is RequestKind.SETUP:
            self._rules.setup_replied(request, error)

    def exited(self, worker: Worker, event: Exited) -> None:
        """Bury a worker whose process is gone; its pipe has been read empty."""
        self._bury(worker, event)

    def _bury(self, worker: Worker, event: Exited) -> None:
        board = self._board
        ready = worker.ready_at is not None
        reason = worker.reason or (ExitReason.CRASH if ready else ExitReason.START_FAILED)
        tail = f"; its stderr ended with:\n{event.stderr_tail}" if event.stderr_tail else ""
        if worker.state is not WorkerState.CONDEMNED:
            board.workers.move(worker, WorkerState.CONDEMNED)
        while worker.sent:
            # What was not taken back had begun: none of it may run a second time.
            oldest = worker.sent[0]
            what = f"worker {worker.worker_id} (pid {worker.pid}) ended with {describe_exit(event.code, event.signal)}"
            ran = f"while it ran {oldest.command!r}, which {board.times(oldest)}{_cut(event)}"
            died = WorkerDied(
                f"{what} {ran} ({board.numbers()}){tail}",
                pid=worker.pid,
                exit_code=event.code,
                signal=event.signal,
                stderr_tail=event.stderr_tail,
            )
            self._fail_oldest(worker, died)
        self._rules.worker_lost(worker)
        self.left(worker)
        board.timers.clear(worker)
        board.workers.remove(worker)
        board.act(Forget(worker))
        board.emit(
            "worker.exited",
            {"uptime_s": board.now - worker.spawned_at},
            worker_id=worker.worker_id,
            reason=reason.value,
            exit_code=event.code,
            signal=event.signal,
            stderr_tail=event.stderr_tail,
        )
        unasked = reason not in EXPECTED_EXITS and reason is not ExitReason.BROKEN
        delay_s = 0.0
        if worker.ready_at is not None and board.now - worker.ready_at >= board.config.restart_backoff_cap_s:
            self.proven(worker)
        if unasked and not worker.used and not worker.proven:
            worker.start_error = self._start_error(worker, event, tail)
            delay_s = self.policy.failed(worker.slot, worker.start_error)
        self._free(worker.slot, reason, delay_s)

    @staticmethod
    def _start_error(worker: Worker, event: Exited, tail: str) -> WorkerStartError:
        cause, code, signal = worker.start_error, event.code, event.signal
        who = f"worker {worker.worker_id}" + (f" (pid {worker.pid})" if worker.pid else "")
        how = f"{who} ended with {describe_exit(code, signal)}"
        if cause is None and worker.ready_at is not None:
            what = f"{how} before it was given anything but its handshake"
        elif cause is None:
            what = f"{how} before its handshake{_cut(event)}"
        else:
            what = f"{who} failed to start: {cause}"
            if signal in (signals.SIGTERM, signals.SIGKILL):
                # The pool's own, sent for that reason: it tells nothing of the worker.
                what, signal = f"{what} (ended by the pool)", None
            elif code is not None or signal is not None:
                what += f" (it ended with {describe_exit(code, signal)})"
        argv: tuple[str, ...] = worker.argv or getattr(cause, "argv", ())
        if argv:
            what += f"; command line: {show_argv(argv)}"
        if worker.limits:
            what += f"; it had the limits {worker.limits}, and one too small keeps a program from starting"
        tail_of = event.stderr_tail
        error = WorkerStartError(f"{what}{tail}", argv=argv, exit_code=code, signal=signal, stderr_tail=tail_of)
        error.__cause__ = cause
        return error

    def _free(self, slot: Slot, reason: ExitReason, delay_s: float) -> None:
        board = self._board
        if reason not in _NOT_REFILLED:
            if board.state is PoolState.OPEN:
                self._replaces[slot] = reason
            elif board.state is PoolState.DRAINING:
                self._vacated[slot] = reason
        if delay_s > 0:
            board.timers.set(slot, board.now + delay_s, "respawn")
        else:
            board.workers.release(slot)

    def heal(self) -> None:
        """Begin again with a full restart budget."""
        self.policy.reset()
        for slot in self._board.workers.slots:
            slot.failures = 0
            self._board.timers.clear(slot)
            self._board.workers.release(slot)

    def stop(self) -> None:
        """Start no more workers than the queue needs: the pool is closing, or broken."""
        super().stop()
        self._replaces.clear()
        self.wanted = 0


def _cut(event: Exited) -> str:
    """Return what to add to a message when the process ended in the middle of one of its own."""
    return f"; {event.cut}" if event.cut else ""
