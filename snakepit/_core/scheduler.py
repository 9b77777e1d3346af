"""The pool's decisions as a pure state machine: an event in, actions out.

No thread, no I/O, no clock of its own: ``handle(event, now)`` returns the actions to take, in order.
The parts: ``_core/dispatcher`` (which request where), ``_core/session_rules`` (affinity), ``_core/lifecycle`` and
``_core/upkeep`` (workers), over the tables of ``_core/board``.  Run by the manager's thread.

    worker    STARTING -Ready-> IDLE <-Replied/Dispatch-> BUSY ;  any -> CONDEMNED -Exited-> (gone) -> Spawn
    request   queued -> sent -> done         (it has one home at any time)
    pool      OPEN -> DRAINING -> CLOSED ; any -> BROKEN -RecycleRequested-> OPEN

Invariants, asserted by ``check()``:

    I1 an accepted request is in exactly one place, and exactly one Resolve, Fail or Cancel leaves for it
    I2 BUSY <=> something is in its pipe    I3 on the idle stack <=> IDLE and in service
    I4 affinity never points to a condemned worker           I5 live workers, condemned ones included, <= size
    I6 after handle(), no queued request has an eligible idle worker
    I7 stale entries of lanes and timers are recognised by identity when they surface, never searched for
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from ..config import PoolConfig
from ..errors import PoolBroken, WorkerDied, WorkerStartError
from . import model as m
from .board import Board, fresh
from .dispatcher import Dispatcher
from .invariants import check_invariants
from .lifecycle import Lifecycle
from .model import Action, ExitReason, Outcome, PoolState, Request, RequestKind, RequestState, Worker, WorkerState
from .session_rules import SessionRules
from .upkeep import Alarm

__all__ = ("Scheduler",)


class Scheduler:
    """The pure core of one pool.

    Args:
        name: The pool's name.
        size: Number of workers, >= 1.
        min_workers: Workers kept at all times, 0 to ``size``.
        config: The pool's settings.
        rng: Source of jitter; seeded in tests.
    """

    def __init__(
        self, name: str, size: int, min_workers: int, config: PoolConfig, rng: random.Random | None = None
    ) -> None:
        self.board = Board(name, size, min_workers, config, rng or random.Random())  # noqa: S311  # jitter only
        self.rules = SessionRules(self.board)
        self.dispatcher = Dispatcher(self.board, self.rules)
        self.lifecycle = Lifecycle(self.board, self.rules, self.dispatcher)
        self._waiters: list[tuple[int, Any]] = []
        self._ending = Alarm()
        self._handlers: dict[type, Callable[[Any], None]] = {
            m.Submitted: self._submitted,
            m.Cancelled: self._cancelled,
            m.Started: self._started,
            m.Ready: self._ready,
            m.StartFailed: self._start_failed,
            m.SpawnRefused: self._spawn_refused,
            m.Replied: self._replied,
            m.Adopted: self._adopted,
            m.Served: self._served,
            m.Skipped: self._skipped,
            m.TakenBack: self._taken_back,
            m.Unheard: lambda event: self.rules.unheard(event.session),
            m.Misbehaved: self._misbehaved,
            m.PipeClosed: self._pipe_closed,
            m.Exited: self._exited,
            m.RssMeasured: self._measured,
            m.SessionEnded: self._session_ended,
            m.WorkersWanted: self._workers_wanted,
            m.RestartRequested: self._restart_requested,
            m.RecycleRequested: self._recycle_requested,
            m.ShutdownRequested: self._shutdown_requested,
            m.EndRequested: self._end_requested,
            m.DeadlinePassed: self._deadline_passed,
        }
        self._deadlines: dict[str, Callable[[Any], None]] = {
            "queue": self.dispatcher.timed_out,
            "run": self.lifecycle.run_timed_out,
            "session": self.rules.expire,
            "start": self.lifecycle.start_timed_out,
            "ping": self.lifecycle.unhealthy,
            "closed": self.lifecycle.closed_too_long,
            "drain": self.lifecycle.overdue,
            "respawn": self.lifecycle.backed_off,
            "health": self.lifecycle.check_health,
            "aging": self.lifecycle.check_age,
            "idling": self.lifecycle.check_idle,
            "end": lambda _: self._end_requested(m.EndRequested(False)),
        }

    def handle(self, event: object, now: float) -> list[Action]:
        """Take one event and return the actions that follow from it, in order.

        Args:
            event: One of the events of ``_core/model``.
            now: Monotonic seconds, never smaller than in an earlier call.
        """
        board = self.board
        board.now = now
        actions: list[Action] = []
        board.actions = actions
        self._handlers[type(event)](event)
        self._after()
        # Actions hold requests, and requests their users' futures: nothing is kept until the next event.
        board.actions = []
        return actions

    def start(self, now: float) -> list[Action]:
        """Return the actions with which the pool begins."""
        self.board.now = now
        actions: list[Action] = []
        self.board.actions = actions
        self.lifecycle.grow()
        return actions

    def next_deadline(self) -> float | None:
        """Return when ``DeadlinePassed`` is due next, in monotonic seconds, or None."""
        return self.board.timers.next_deadline()

    def check(self) -> None:
        """Assert the invariants I1 to I7 over the whole state; O(everything), for tests."""
        check_invariants(self.board, self.rules, self.dispatcher, self.lifecycle)

    @property
    def state(self) -> PoolState:
        return self.board.state

    def worker(self, worker_id: str) -> Worker | None:
        """Return a live worker, or None when it is gone."""
        return self.board.workers.by_id.get(worker_id)

    def _after(self) -> None:
        """Draw the conclusions that every event may ask for."""
        board, lifecycle = self.board, self.lifecycle
        if lifecycle.policy.spent and board.broken_by is None:
            self._break(lifecycle.policy.last_error)
        if lifecycle.pending:
            lifecycle.retire_drained()
        self.dispatcher.match()
        if board.workers.free and (len(board.queue) or lifecycle.must_grow):
            lifecycle.grow()
        if self._waiters:
            self._notify()
        if board.state is PoolState.DRAINING:
            self._drain()
        elif board.workers.idle:
            lifecycle.arm_idle()

    # Requests ---------------------------------------------------------------------------------------

    def _submitted(self, event: m.Submitted) -> None:
        for request in event.requests:
            if request.state is not RequestState.DONE:
                self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        board = self.board
        if board.broken_by is not None or board.state is PoolState.CLOSED:
            error = board.broken_by or PoolBroken(f"the pool is closed ({board.numbers()})")
            self.rules.fail(request, fresh(error))
            return
        if request.queue_deadline is not None:
            board.timers.set(request, request.queue_deadline, "queue")
        if request.session_id is None:
            board.queue.push(request)
            return
        worker = self.rules.enqueue(request)
        if worker is not None:
            self.dispatcher.serve(worker)

    def _cancelled(self, event: m.Cancelled) -> None:
        worker = self.dispatcher.cancelled(event.request)
        if worker is not None:
            self.lifecycle.condemn(worker, ExitReason.CANCELLED)

    def _replied(self, event: m.Replied) -> None:
        worker = self.worker(event.worker_id)
        if worker is None or not worker.sent:
            return
        self.lifecycle.proven(worker)
        self.dispatcher.replied(worker, event.count, event.error)
        if worker.state is WorkerState.CONDEMNED:
            return
        if worker.sent and worker.sent[0].state is RequestState.DONE:
            # Cancelled while it stood in the pipe, and begun all the same.
            self.lifecycle.condemn(worker, ExitReason.CANCELLED)
            return
        if worker.state is WorkerState.CHECKING:
            self.lifecycle.checked(worker)
        self.dispatcher.settle_idle(worker)
        self._go_on(worker)

    def _adopted(self, event: m.Adopted) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None:
            self.dispatcher.adopted(worker, event.request)

    def _served(self, event: m.Served) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None:
            self.lifecycle.served(worker, event.count)

    def _skipped(self, event: m.Skipped) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None and worker.state is not WorkerState.CONDEMNED:
            self.dispatcher.skipped(worker)
            self._go_on(worker)

    def _go_on(self, worker: Worker) -> None:
        """Give a worker its next work, unless its time is over."""
        lifecycle = self.lifecycle
        lifecycle.reached_limit(worker)
        if lifecycle.pending:
            lifecycle.retire_drained()
        self.dispatcher.refill(worker)

    def _taken_back(self, event: m.TakenBack) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None:
            self.dispatcher.taken_back(worker, event.count)

    def _session_ended(self, event: m.SessionEnded) -> None:
        self.rules.end_session(event.session_id)

    # Workers ----------------------------------------------------------------------------------------

    def _started(self, event: m.Started) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None:
            worker.pid, worker.argv, worker.limits = event.pid, event.argv, event.limits
            self.board.emit("worker.spawned", {}, worker_id=worker.worker_id, pid=event.pid)

    def _ready(self, event: m.Ready) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None and worker.state is WorkerState.STARTING:
            worker.can_claim, worker.can_end_session = event.can_claim, event.can_end_session
            worker.can_batch = event.can_batch
            self.lifecycle.ready(worker)

    def _start_failed(self, event: m.StartFailed) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None and worker.state is WorkerState.STARTING:
            self.lifecycle.start_failed(worker, event.error)
            if event.fatal and self.board.broken_by is None:
                self._break(event.error)

    def _spawn_refused(self, event: m.SpawnRefused) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None:
            self.lifecycle.spawn_refused(worker, event.error)

    def _misbehaved(self, event: m.Misbehaved) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None:
            self.lifecycle.misbehaved(worker, event.error)

    def _pipe_closed(self, event: m.PipeClosed) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None:
            self.lifecycle.pipe_closed(worker)

    def _exited(self, event: m.Exited) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None:
            self.lifecycle.exited(worker, event)

    def _measured(self, event: m.RssMeasured) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None:
            self.lifecycle.measured(worker, event.rss_bytes)

    def _restart_requested(self, event: m.RestartRequested) -> None:
        worker = self.worker(event.worker_id)
        if worker is not None:
            self.lifecycle.retire(worker, ExitReason.RECYCLED)

    # The pool ---------------------------------------------------------------------------------------

    def _workers_wanted(self, event: m.WorkersWanted) -> None:
        board = self.board
        if board.state is not PoolState.OPEN:
            self._refuse(event.waiter)
            return
        count = min(event.count, board.size)
        self.lifecycle.wanted = max(self.lifecycle.wanted, count)
        self._waiters.append((count, event.waiter))

    def _refuse(self, waiter: Any) -> None:
        """Answer a waiter that waits for nothing: the pool is broken, or shut down."""
        error: BaseException = RuntimeError("the pool is shut down")
        if self.board.broken_by is not None:
            cause = self.board.broken_by.__cause__
            error = cause if isinstance(cause, WorkerStartError) else self.board.broken_by
        self.board.act(m.Notify(waiter, fresh(error)))

    def give_up_waiters(self, error: BaseException) -> list[m.Notify]:
        """Return what to tell those who wait for workers, after a failure of the manager."""
        waiters, self._waiters = self._waiters, []
        return [m.Notify(waiter, error) for _, waiter in waiters]

    def _refuse_waiters(self) -> None:
        for _, waiter in self._waiters:
            self._refuse(waiter)
        self._waiters = []

    def _notify(self) -> None:
        workers = self.board.workers
        ready = workers.available + workers.busy
        still = []
        for count, waiter in self._waiters:
            if ready >= count:
                self.board.act(m.Notify(waiter))
            else:
                still.append((count, waiter))
        self._waiters = still
        self.lifecycle.wanted = max((count for count, _ in still), default=0)

    def _recycle_requested(self, _: m.RecycleRequested) -> None:
        board = self.board
        if board.state is PoolState.BROKEN:
            board.state = PoolState.OPEN
            board.broken_by = None
            self.lifecycle.heal()
            board.act(m.Heal())
        elif board.state is PoolState.OPEN:
            self.lifecycle.recycle()

    def _break(self, cause: BaseException | None) -> None:
        board = self.board
        error = PoolBroken(f"the pool is broken and serves no more ({board.numbers()}): {cause}")
        error.__cause__ = cause
        if board.state is PoolState.OPEN:
            board.state = PoolState.BROKEN
        board.broken_by = error
        board.act(m.Break(error))
        board.emit("pool.broken", {}, error=str(cause))
        self.lifecycle.stop()
        self.dispatcher.fail_all(error)
        for worker in list(board.workers.by_id.values()):
            self.lifecycle.condemn(worker, ExitReason.BROKEN)
        self._refuse_waiters()

    def _shutdown_requested(self, event: m.ShutdownRequested) -> None:
        board = self.board
        if board.state in (PoolState.OPEN, PoolState.BROKEN):
            board.state = PoolState.DRAINING
            self.lifecycle.stop()
            self._refuse_waiters()
        if event.cancel_queued:
            self.dispatcher.cancel_queued()
        timer = self._ending.timer
        if event.end_at is not None and (timer is None or event.end_at < timer[0]):
            board.timers.set(self._ending, event.end_at, "end")

    def _end_requested(self, event: m.EndRequested) -> None:
        board = self.board
        self._shutdown_requested(m.ShutdownRequested(cancel_queued=True))
        for worker in list(board.workers.by_id.values()):
            for request in list(worker.sent):
                if request.kind is RequestKind.USER and request.state is RequestState.SENT:
                    how = "waited in its pipe" if request.started_at is None else board.times(request)
                    what = f"worker {worker.worker_id} (pid {worker.pid}) was ended with its pool"
                    message = f"{what} while {request.command!r} {how} ({board.numbers()})"
                    self.rules.fail(request, WorkerDied(message, pid=worker.pid), Outcome.DIED)
            self.lifecycle.condemn(worker, ExitReason.TERMINATED, kill=event.kill)

    def _drain(self) -> None:
        """End the workers once no accepted work is left, and the pool once no worker is left."""
        board = self.board
        live = [w for w in board.workers.by_id.values() if w.state is not WorkerState.CONDEMNED]
        work = len(board.queue) or any(
            len(w.lane) or any(r.kind is not RequestKind.PING for r in w.sent) for w in live
        )
        if work:
            return
        for worker in live:
            polite = worker.state is not WorkerState.STARTING
            self.lifecycle.condemn(worker, ExitReason.SHUTDOWN, polite=polite)
        if not len(board.workers):
            board.state = PoolState.CLOSED
            board.act(m.Close())

    # Deadlines --------------------------------------------------------------------------------------

    def _deadline_passed(self, _: m.DeadlinePassed) -> None:
        board = self.board
        while (due := board.timers.pop_due(board.now)) is not None:
            kind, owner = due
            self._deadlines[kind](owner)
