"""A bench for the scheduler: a fake clock, fake futures, and worker processes that exist only as a model.

It does what the manager does: performs the actions in order, answers ``TakeBack`` at once from the
claim tokens left in the pipe, reads a pipe empty before it reports an exit, and calls ``check()`` after every
event.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

from snakepit._core import model as m
from snakepit._core.affinity import Session
from snakepit._core.model import Request, Worker
from snakepit._core.scheduler import Scheduler
from snakepit.config import PoolConfig

ENDS = (m.Resolve, m.Fail, m.Cancel)


class FakeFuture:
    """A future as the scheduler sees it, with what became of it.

    Attributes:
        state: "pending", "running", "cancelled" or "done".
        end: The action that settled it, "cancelled" for its caller's cancellation, or None.
        error: What it failed with, or None.
    """

    def __init__(self) -> None:
        self.state = "pending"
        self.end: Any = None
        self.error: BaseException | None = None

    def claim(self) -> bool:
        if self.state == "pending":
            self.state = "running"
        return self.state == "running"


class FakePart(FakeFuture):
    """What a part of a bulk has: no caller can cancel it."""

    def __init__(self) -> None:
        super().__init__()
        self.state = "running"


class FakeBulk(FakeFuture):
    """A bulk of items as the scheduler sees it.

    Attributes:
        parts: What was split off.
    """

    def __init__(self, bench: Bench, bulk: Request) -> None:
        super().__init__()
        self._bench = bench
        self._bulk = bulk
        self.parts: list[Request] = []

    def split(self, most: int) -> Request | None:
        bulk = self._bulk
        assert most >= 1
        assert bulk.weight >= 1
        if self.state != "pending":
            return None
        part = Request(bulk.content, bulk.command, future=FakePart(), accepted_at=bulk.accepted_at)
        part.weight, part.seq = min(most, bulk.weight), bulk.seq
        part.answers = [] if part.weight > 1 else None
        self._bench.split_off(bulk, part)
        if not bulk.weight:
            self.state, self.end = "done", "split"
        self.parts.append(part)
        return part


class Process:
    """A worker process: frames in its pipe, claim tokens, and what it wrote and nobody has read.

    Attributes:
        frames: (request, needs a claim token), not begun yet.
        running: What it runs, or None.
        written: "skipped", or (request, error): replies that the host has not read.
        told: Session ids whose end it was told, each with how many requests it had begun by then.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.worker_id = worker.worker_id
        self.frames: deque[tuple[Request | str, bool]] = deque()
        self.tokens = 0
        self.running: Request | None = None
        self.written: deque[Any] = deque()
        self.begun: list[Request] = []
        self.forgot: list[str] = []
        self.started = False
        self.ready = False
        self.closed = False
        self.condemned: m.Condemn | None = None
        self.alive = True

    def begin(self) -> Request | None:
        """Take the next frame that may run; step over those that were taken back."""
        assert self.running is None
        while self.frames:
            item, claims = self.frames.popleft()
            if isinstance(item, str):
                self.forgot.append(item)
            elif claims and not self.tokens:
                self.written.append("skipped")
            else:
                self.tokens -= claims
                self.running = item
                self.begun.append(item)
                return item
        return None

    def finish(self, error: BaseException | None = None) -> None:
        """Write the reply to what it runs."""
        assert self.running is not None
        self.written.append((self.running, error))
        self.running = None

    def work(self, error: BaseException | None = None) -> None:
        """Begin, if need be, and finish one request."""
        if self.running is None:
            self.begin()
        if self.running is not None:
            self.finish(error)


class Bench:
    """A scheduler on a bench.

    Args:
        size: Number of workers.
        min_workers: Kept at all times; None: all.
        can_claim: What workers announce: requests may be sent ahead to them.
        can_end_session: What workers announce: they keep sessions.
        can_batch: What workers announce: items may travel together to them.
        seed: Of the jitter.
        config: Fields of ``PoolConfig``.
    """

    def __init__(
        self,
        size: int = 1,
        min_workers: int | None = None,
        *,
        can_claim: bool = False,
        can_end_session: bool = True,
        can_batch: bool = True,
        seed: int = 1,
        **config: Any,
    ) -> None:
        self.now = 1000.0
        self.can_claim = can_claim
        self.can_end_session = can_end_session
        self.can_batch = can_batch
        floor = size if min_workers is None else min_workers
        self.config = PoolConfig(**config)
        self.scheduler = Scheduler("pool", size, floor, self.config, random.Random(seed))
        self.board = self.scheduler.board
        self.processes: dict[str, Process] = {}
        self.requests: list[Request] = []
        self.accepted = 0
        self.log: list[m.Action] = []
        self.notices: list[m.Notify] = []
        self.ends: Counter[Request] = Counter()
        self.begun: set[Request] = set()
        self.cancels_seen: set[Request] = set()
        self.closed = False
        self.refused: BaseException | None = None
        self._homes: dict[Session, Worker] = {}
        self._told: set[Session | None] = set()
        self.had_setup: set[Session] = set()
        self._last_sent: dict[Session, int] = {}
        self._answered: dict[Request, BaseException | None] = {}
        self.lent: dict[Process, Request] = {}
        self.served_direct: Counter[Process] = Counter()

    # Events -----------------------------------------------------------------------------------------

    def start(self) -> Bench:
        """Begin: the first workers are spawned."""
        self._perform(self.scheduler.start(self.now))
        self.scheduler.check()
        return self

    def up(self) -> Bench:
        """Begin, and let every worker that is spawned answer its handshake."""
        self.start()
        self.ready_all()
        return self

    def handle(self, event: object) -> list[m.Action]:
        """Hand over one event, perform the actions, and return them."""
        self.board.horizon = self.accepted
        actions = self.scheduler.handle(event, self.now)
        self.scheduler.check()
        self.log += actions
        self._perform(actions)
        return actions

    def accept(self, command: str = "work", **options: Any) -> Request:
        """Accept a request; the scheduler has yet to hear of it."""
        queue_timeout_s = options.pop("queue_timeout_s", None)
        if queue_timeout_s is not None:
            options["queue_deadline"] = self.now + queue_timeout_s
        session = options.pop("session", None)
        request = Request(
            command, command, future=FakeFuture(), accepted_at=self.now, session_id=session, **options
        )
        self.accepted += 1
        request.seq = self.accepted
        self.requests.append(request)
        return request

    def accept_bulk(self, items: int) -> Request:
        """Accept a bulk of items; the scheduler has yet to hear of it."""
        bulk = self.accept("bulk", weight=items)
        bulk.splits, bulk.future = True, FakeBulk(self, bulk)
        return bulk

    def split_off(self, bulk: Request, part: Request) -> None:
        """Note that some of a bulk's items are a part from now on."""
        bulk.weight -= part.weight
        self.requests.append(part)

    def submit(self, command: str = "work", **options: Any) -> Request:
        """Accept a request and hand it over."""
        request = self.accept(command, **options)
        self.handle(m.Submitted(request))
        return request

    # Callers that have a lent worker: until the recall the scheduler knows nothing of what they do.

    def send_direct(self, process: Process, command: str = "direct", **options: Any) -> Request:
        """Accept a request and send it to an idle worker, as its caller does."""
        assert self.scheduler.lifecycle.may_lend(process.worker)
        assert self.lent.get(process) is None, "one call at a time"
        request = self.accept(command, **options)
        request.future.state = "running"
        request.state = m.RequestState.SENT
        request.sent_at = request.started_at = self.now
        process.frames.append((request, False))
        self.lent[process] = request
        return request

    def serve_direct(self, process: Process, error: BaseException | None = None) -> Request:
        """Send a request to an idle worker and read the answer, as its caller does."""
        request = self.lent.get(process) or self.send_direct(process)
        if process.running is None:
            self.begin(process)
        process.finish(error)
        self.read_direct(process)
        return request

    def read_direct(self, process: Process) -> None:
        """The caller reads what its worker has answered, and the call ends there."""
        request, error = process.written.popleft()
        assert request is self.lent.pop(process), "another's answer"
        request.state = m.RequestState.DONE
        self.served_direct[process] += 1
        self.end_direct(request, error)

    def end_direct(self, request: Request, error: BaseException | None) -> None:
        """Settle a request as its caller does."""
        self.ends[request] += 1
        request.future.end, request.future.error, request.future.state = m.Resolve(request), error, "done"

    def adopt(self, process: Process, request: Request) -> None:
        """Recall a lent worker whose caller has had no answer."""
        assert self.lent.pop(process) is request
        self.handle(m.Adopted(process.worker_id, request))

    def serve(self, process: Process) -> None:
        """Tell of what a lent worker has answered."""
        self.handle(m.Served(process.worker_id, self.served_direct.pop(process)))

    def recall(self) -> None:
        """Recall every lent worker, as the manager does before it hands over anything."""
        for process, request in list(self.lent.items()):
            self.adopt(process, request)
        for process in list(self.served_direct):
            self.serve(process)

    def cancel(self, request: Request, *, running: bool = False) -> bool:
        """Cancel as a caller does, and hand the news over."""
        if not self.cancel_future(request, running=running):
            return False
        self.hear_cancel(request)
        return True

    def cancel_future(self, request: Request, *, running: bool = False) -> bool:
        """Cancel as a caller does; the scheduler has yet to hear of it."""
        future = request.future
        is_open = future.state == "pending" or (running and future.state == "running")
        if not is_open or isinstance(future, FakePart):
            return False
        future.state = "cancelled"
        future.end = "cancelled"
        return True

    def hear_cancel(self, request: Request) -> None:
        """Hand over the news that a caller cancelled."""
        self.handle(m.Cancelled(request))
        self.cancels_seen.add(request)

    def advance(self, seconds: float) -> None:
        """Let time pass, from deadline to deadline; before each, the pipes are read."""
        until = self.now + seconds
        while (deadline := self.scheduler.next_deadline()) is not None and deadline <= until:
            self.now = max(self.now, deadline)
            self.pass_deadlines()
        self.now = self.scheduler.board.looked_at = until

    def pass_deadlines(self) -> None:
        """Read the pipes and hand over ``DeadlinePassed``, until no deadline is due."""
        for _ in range(10):
            self.read_all()
            self.handle(m.DeadlinePassed())
            deadline = self.scheduler.next_deadline()
            if deadline is None or deadline > self.now:
                return
        raise AssertionError("a deadline that is due again and again keeps the manager busy")

    # Processes --------------------------------------------------------------------------------------

    def __getitem__(self, index: int) -> Process:
        """Return the living process of a slot."""
        worker = self.board.workers.slots[index].worker
        assert worker is not None, f"slot {index} is empty"
        return self.processes[worker.worker_id]

    def spawned(self, process: Process) -> None:
        """The process exists."""
        process.started = True
        pid = 100 + len(self.log) % 1000
        self.handle(m.Started(process.worker_id, pid, ("worker", "--now")))

    def ready(self, process: Process) -> None:
        """The process answers its handshake."""
        if not process.started:
            self.spawned(process)
        process.ready = True
        self.handle(m.Ready(process.worker_id, self.can_claim, self.can_end_session, self.can_batch))

    def ready_all(self) -> None:
        """Every process that has not answered its handshake does so, until nothing is spawned any more."""
        while waiting := [p for p in self.living() if not p.ready and p.condemned is None]:
            for process in waiting:
                self.ready(process)

    def read(self, process: Process, most: int = 1) -> bool:
        """Read one thing that the process wrote, or up to ``most`` answers as one event; False: nothing was there."""
        if not process.written:
            return False
        if process.written[0] == "skipped":
            process.written.popleft()
            self.handle(m.Skipped(process.worker_id))
            return True
        sent = list(process.worker.sent)
        answered: dict[Request, BaseException | None] = {}
        while process.written and process.written[0] != "skipped" and len(answered) < most:
            request, error = process.written[0]
            known = len(answered) < len(sent) and sent[len(answered)] is request
            waits = request.kind is m.RequestKind.USER and request.state is m.RequestState.SENT
            if answered and not (known and waits):
                break
            process.written.popleft()
            if not known:
                return True
            answered[request] = error
            if not waits:
                break
        self._answered = answered
        self.handle(m.Replied(process.worker_id, next(iter(answered.values())), len(answered)))
        self._answered = {}
        return True

    def read_all(self) -> None:
        """Read every pipe empty."""
        for process in list(self.processes.values()):
            while self.read(process):
                pass

    def reply(self, index: int = 0, error: BaseException | None = None) -> Request:
        """The process of a slot answers its oldest request, and it is read."""
        process = self[index]
        process.work(error)
        request = next(item for item in process.written if item != "skipped")[0]
        while self.read(process):
            pass
        return request

    def run(self, rounds: int = 1000) -> None:
        """Let every process answer all it has, until nothing moves."""
        for _ in range(rounds):
            moved = False
            for process in self.living():
                if process.ready and not process.closed and (process.frames or process.running):
                    process.work()
                    moved = True
                while self.read(process):
                    moved = True
            if not moved:
                return
        raise AssertionError("the bench does not come to rest")

    def exit(
        self, process: Process, code: int | None = None, signal: int | None = None, tail: str = ""
    ) -> None:
        """The process ends: no more is sent to it, its pipe is read empty, then the exit is reported."""
        process.alive = False
        if not process.closed:
            process.closed = True
            self.handle(m.PipeClosed(process.worker_id))
        while self.read(process):
            pass
        self.take_all_back(process)
        self.handle(m.Exited(process.worker_id, code, signal, tail))

    def take_all_back(self, process: Process) -> None:
        """Take back what a process that has ended, or cannot be understood, has not begun."""
        action = m.TakeBack.everything(process.worker)
        if action.count:
            self._take_back(action)

    def exit_condemned(self) -> None:
        """Every process that is being ended is gone."""
        for process in self.living():
            if process.condemned is not None:
                self.exit(process, signal=15)

    def living(self) -> list[Process]:
        """Return the processes that are alive."""
        return [process for process in self.processes.values() if process.alive]

    # What came out ----------------------------------------------------------------------------------

    def actions(self, kind: type) -> list[Any]:
        """Return the actions of one kind, oldest first."""
        return [action for action in self.log if isinstance(action, kind)]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the metadata of the telemetry events of this name, oldest first."""
        return [action.metadata for action in self.actions(m.Emit) if action.event == f"snakepit.{name}"]

    def sent(self, index: int = 0) -> list[str]:
        """Return the commands in the pipe of a slot's worker, oldest first."""
        return [request.command for request in self[index].worker.sent]

    def states(self) -> list[str]:
        """Return the states of the slots' workers; "" for an empty slot."""
        return [slot.worker.state.value if slot.worker else "" for slot in self.board.workers.slots]

    # Actions ----------------------------------------------------------------------------------------

    def _perform(self, actions: Iterable[m.Action]) -> None:
        acts: dict[type, Callable[[Any], None]] = {
            m.Spawn: self._spawn,
            m.Condemn: self._condemn,
            m.Dispatch: self._dispatch,
            m.TakeBack: self._take_back,
            m.EndSession: self._end_session,
            m.Forget: self._forget,
            m.Notify: self.notices.append,
            m.Break: lambda action: setattr(self, "refused", action.error),
            m.Heal: lambda _: setattr(self, "refused", None),
            m.Close: lambda _: self._close(),
            m.Emit: lambda _: None,
            m.Resolve: self._settle,
            m.Fail: self._settle,
            m.Cancel: self._settle,
        }
        for action in actions:
            acts[type(action)](action)

    def _spawn(self, action: m.Spawn) -> None:
        worker = action.worker
        assert worker.worker_id not in self.processes, "an incarnation is spawned once"
        self.processes[worker.worker_id] = Process(worker)
        assert len(self.living()) <= self.board.size, "I5 more processes than slots"

    def _condemn(self, action: m.Condemn) -> None:
        process = self.processes[action.worker.worker_id]
        assert process.condemned is None or action.kill, "condemned twice"
        process.condemned = action

    def _dispatch(self, action: m.Dispatch) -> None:
        process = self.processes[action.worker.worker_id]
        assert process.alive, "dispatched to a process that is gone"
        assert process.ready, "dispatched before the handshake"
        assert process.condemned is None, "dispatched to a condemned worker"
        assert not process.closed, "dispatched to a closed pipe"
        assert not action.worker.closed, "dispatched to a worker that is known to have closed its pipe"
        for request in action.requests:
            assert request not in self.cancels_seen, f"{request!r} dispatched after its cancellation"
            assert request not in self.begun, f"{request!r} began and is dispatched again"
            if request.kind is m.RequestKind.USER:
                self._check_session(request, action.worker)
            process.frames.append((request, request.ahead))
            process.tokens += request.ahead
            if request.ahead:
                assert self.can_claim and request.queue_deadline is None and not request.priority

    def _check_session(self, request: Request, worker: Worker) -> None:
        session = request.session
        if session is None:
            return
        for other in self.requests:
            if other.session_id == request.session_id and other.session not in (session, None):
                assert other.seq > request.seq or other.state is m.RequestState.DONE, "two sessions of one id"
        if session.mode == "hint":
            assert request.seq > self._last_sent.get(session, 0), f"{request!r} was overtaken"
            self._last_sent[session] = request.seq
            return
        if session.setup:
            # Set up elsewhere; or begun anew without, after a set-up that failed and told that it did.
            self.had_setup.add(session)
        home = self._homes.get(session)
        if home is not worker:
            lost = home is None or home.state is m.WorkerState.CONDEMNED or session in self.had_setup
            assert lost, f"{session.session_id} moved from {home!r} to {worker!r}"
            told = home is None or session in self.had_setup or session in self._told
            assert told, f"{session.session_id} moved to {worker!r}, and nobody heard of its loss"
            self._told.discard(session)
            self._homes[session] = worker

    def begin(self, process: Process) -> Request | None:
        """Let a process begin its next request, and check that it may."""
        request = process.begin()
        if request is not None and request.kind is m.RequestKind.USER:
            assert request not in self.begun, f"{request!r} runs twice"
            if process.condemned is None:
                assert request not in self.cancels_seen, f"{request!r} began after its cancellation"
            self.begun.add(request)
        return request

    def _take_back(self, action: m.TakeBack) -> None:
        process = self.processes[action.worker.worker_id]
        assert action.count > 0, "an empty take-back"
        count = min(action.count, process.tokens)
        process.tokens -= count
        self.handle(m.TakenBack(process.worker_id, count))

    def _end_session(self, action: m.EndSession) -> None:
        process = self.processes[action.worker.worker_id]
        assert process.alive and process.condemned is None
        process.frames.append((action.session_id, False))

    def _forget(self, action: m.Forget) -> None:
        self.processes[action.worker.worker_id].alive = False

    def _settle(self, action: Any) -> None:
        request = action.request
        self.ends[request] += 1
        assert self.ends[request] == 1, f"{request!r} ended twice"
        if isinstance(action, m.Resolve):
            assert request in self._answered, f"{request!r} resolved with another's reply"
        future = request.future
        if future.end is None:
            assert future.state != "done"
            future.end = action
            future.state = "cancelled" if isinstance(action, m.Cancel) else "done"
            future.error = getattr(action, "error", None)
            self._told |= {getattr(action, "loss_of", None)}
        elif isinstance(action, m.Fail) and action.loss_of is not None:
            self.handle(m.Unheard(action.loss_of))

    def _close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True


def outcome(request: Request) -> Any:
    """Return how a request ended: "ok", "cancelled", an ``Outcome``, or None while it has not."""
    end = request.future.end
    if end is None:
        return None
    if isinstance(end, m.Resolve):
        return "ok"
    if isinstance(end, m.Fail):
        return end.outcome
    return "cancelled"
