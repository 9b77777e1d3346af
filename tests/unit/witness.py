"""A bench that also judges: what no caller may ever see, checked after each of the scheduler's decisions.

It keeps books of its own (what was begun, told, promised, and when), so that a rule the scheduler forgot is
noticed although the scheduler's state looks well.  The counters are the real ledger's.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, deque
from typing import Any

from unit.scheduling import Bench, Process

from snakepit._core import model as m
from snakepit._core.affinity import Session
from snakepit._core.model import ExitReason, Outcome, PoolState, Request, RequestKind, Slot, Worker, WorkerState
from snakepit._pool.ledger import Ledger
from snakepit.errors import SessionBusy, SessionLost

PLANNED = (ExitReason.MAX_REQUESTS, ExitReason.MAX_AGE, ExitReason.MAX_RSS, ExitReason.RECYCLED)
UNCOUNTED = (*PLANNED, ExitReason.IDLE, ExitReason.SHUTDOWN, ExitReason.TERMINATED, ExitReason.BROKEN)


class Inbox:
    """What the ledger wants of an inbox: its lock; the machine delivers events itself."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def post_locked(self, event: object) -> bool:
        return False


class Witness(Bench):
    """A bench with books of its own; arguments as for ``Bench``.

    Attributes:
        never: Cancelled while pending, or timed out in the queue: no worker may begin them.
        unheard: Accepted requests that the scheduler has not been told of.
        wants: {waiter: number of workers it waits for}.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ledger = Ledger(Inbox(), None, 1 << 30)  # type: ignore[arg-type]  # the part that is used
        self.never: set[Request] = set()
        self.unheard: set[Request] = set()
        self.in_pipe: set[Request] = set()
        self.places: dict[Request, int] = {}
        self.to_refill: set[Slot] = set()
        self.wants: dict[object, int] = {}
        self.failures = 0
        self.slot_failures: Counter[Slot] = Counter()
        self.not_before: dict[Slot, float] = {}
        self.served: set[str] = set()
        self.reasons: dict[str, ExitReason] = {}
        self.answered: set[str] = set()
        self.ready_at: dict[str, float] = {}
        self.retired_at: dict[Worker, float] = {}
        self.last_begun: dict[Session, int] = {}
        self.lost_until: dict[Session, int] = {}
        self.told: set[str] = set()
        self.steps_begun: Counter[tuple[str, Session]] = Counter()
        self.holds: dict[tuple[str, str], Session] = {}
        self._taken: deque[m.TakenBack] = deque()
        self.end_at = math.inf
        self._recalls = False

    # Callers ----------------------------------------------------------------------------------------

    def accept(self, command: str = "work", **options: Any) -> Request:
        request = super().accept(command, **options)
        self.ledger.admit(request, block=False, deadline=None)
        assert self.accepted == request.seq
        self.places[request] = request.seq
        self.unheard.add(request)
        return request

    def split_off(self, bulk: Request, part: Request) -> None:
        assert bulk not in self.never, f"{bulk!r} is split, and was never to run"
        self.ledger.split_locked(bulk, part)
        self.places[part] = self.places[bulk]
        self.requests.append(part)

    def cancel_future(self, request: Request, *, running: bool = False) -> bool:
        waiting = request.future.state == "pending"
        if not super().cancel_future(request, running=running):
            return False
        assert self.ledger.settle(request, Outcome.CANCELLED), f"{request!r} had ended"
        if waiting:
            self.never.add(request)
        return True

    def send_direct(self, process: Process, command: str = "direct", **options: Any) -> Request:
        request = super().send_direct(process, command, **options)
        self.ledger.begin(request)
        return request

    def end_direct(self, request: Request, error: BaseException | None) -> None:
        super().end_direct(request, error)
        self.unheard.discard(request)
        outcome = Outcome.COMPLETED if error is None else Outcome.ERROR
        assert self.ledger.settle(request, outcome), f"{request!r} had ended"

    def recall(self) -> None:
        """Nothing is handled, read or waited for while a worker is lent."""
        if not self._recalls:
            self._recalls = True
            try:
                super().recall()
            finally:
                self._recalls = False

    def read(self, process: Process, most: int = 1) -> bool:
        self.recall()
        return super().read(process, most)

    # One event --------------------------------------------------------------------------------------

    def handle(self, event: object) -> list[m.Action]:
        self.recall()
        board, rules = self.board, self.scheduler.rules
        if isinstance(event, m.Submitted):
            self.unheard.difference_update(event.requests)
        elif isinstance(event, m.Adopted):
            self.unheard.discard(event.request)
            self.served.add(event.worker_id)
            self.in_pipe.add(event.request)
        elif isinstance(event, m.ShutdownRequested) and event.end_at is not None:
            self.end_at = min(self.end_at, event.end_at)
        self._keep_books(event)
        queue = board.queue.requests()
        wanted = max(self.scheduler.lifecycle.wanted, event.count if isinstance(event, m.WorkersWanted) else 0)
        homes = {s: s.worker for s in rules.table.values() if s.pinned and s.worker is not None}
        setting_up = {s for s in homes if s.steps}
        board.horizon = self.accepted
        actions = self.scheduler.handle(event, self.now)
        self.scheduler.check()
        self.log += actions
        if isinstance(event, m.Submitted):
            queue.extend(event.requests)
        still = set(board.queue.requests())
        self._judge_order([r for r in queue if r in still], actions)
        if isinstance(event, m.ShutdownRequested) and event.cancel_queued:
            # A set-up for which nobody waits any more is given up half done.
            homes = {s: home for s, home in homes.items() if s.unsettled or s not in setting_up}
        self._judge_workers(event, actions, homes)
        self._judge_growth(actions, wanted)
        self._perform(actions)
        while self._taken:
            self.handle(self._taken.popleft())
        return actions

    def _keep_books(self, event: object) -> None:
        worker = self.scheduler.worker(getattr(event, "worker_id", ""))
        if worker is not None and isinstance(event, m.Ready) and worker.state is WorkerState.STARTING:
            self.ready_at[worker.worker_id] = self.now
        if worker is not None and isinstance(event, m.Exited) and worker.worker_id not in self.answered:
            idled_s = self.now - self.ready_at.get(worker.worker_id, math.inf)
            if idled_s >= self.config.restart_backoff_cap_s:
                # Ready for that long, it had started, whatever it was given.
                self.answered.add(worker.worker_id)
                self.failures = self.slot_failures[worker.slot] = 0
        if worker is None:
            if isinstance(event, m.RecycleRequested) and self.scheduler.state is PoolState.BROKEN:
                self.failures = 0
                self.slot_failures.clear()
                self.not_before.clear()
        elif (
            isinstance(event, m.Served) or (isinstance(event, m.Replied) and worker.sent)
        ) and worker.worker_id not in self.answered:
            self.answered.add(worker.worker_id)
            self.failures = self.slot_failures[worker.slot] = 0
        elif (
            isinstance(event, (m.Exited, m.SpawnRefused))
            and worker.worker_id not in self.served | self.answered
            and self.reasons.get(worker.worker_id) not in UNCOUNTED
        ):
            self.failures += 1
            self.slot_failures[worker.slot] += 1
            delay_s = self.config.restart_backoff_s
            delay_s *= self.config.restart_backoff_factor ** (self.slot_failures[worker.slot] - 1)
            delay_s = min(delay_s, self.config.restart_backoff_cap_s)
            self.not_before[worker.slot] = self.now + delay_s * (1 - self.config.restart_backoff_jitter)
        if isinstance(event, m.TakenBack) and worker is not None and event.count:
            self.in_pipe.difference_update(list(worker.sent)[-event.count :])
        if isinstance(event, m.Exited) and worker is not None:
            # Claimed by nobody and its token is back: whatever killed the worker, it costs these nothing.
            process = self.processes[worker.worker_id]
            self._spared = {r for r, claims in process.frames if claims and isinstance(r, Request)}
        else:
            self._spared = set()
        if isinstance(event, (m.Exited, m.SpawnRefused)) and worker is not None:
            reason = self.reasons.get(worker.worker_id)
            if reason not in (ExitReason.IDLE, ExitReason.SHUTDOWN, ExitReason.TERMINATED):
                self.to_refill.add(worker.slot)

    def _judge_order(self, passed_over: list[Request], actions: list[m.Action]) -> None:
        """Nobody is served before somebody of the common queue who was there first (F28)."""
        for action in actions:
            if isinstance(action, m.Dispatch) and action.worker.retire is None:
                for request in action.requests:
                    if request.kind is RequestKind.USER:
                        place = request.rank, self.places[request]
                        for other in passed_over:
                            there = other.rank, self.places[other]
                            # What is left of a bulk has the place of its parts.
                            rest = other.splits and place == there
                            assert place < there or rest, f"{request!r} overtook {other!r}"

    def _judge_workers(self, event: object, actions: list[m.Action], homes: dict[Session, Worker]) -> None:
        board, config = self.board, self.config
        workers, state = board.workers, board.state
        coming = workers.starting + workers.backing_off + workers.counts[WorkerState.CHECKING]
        spawned = [action.worker for action in actions if isinstance(action, m.Spawn)]
        if state in (PoolState.OPEN, PoolState.DRAINING):
            assert not workers.free or coming >= len(board.queue), "somebody waits, and nobody is started"
            if spawned and state is PoolState.DRAINING:
                assert workers.starting <= self._useful(), "a draining pool starts workers for nobody"
        else:
            assert not spawned, f"spawned while {state.value}"
        if state is PoolState.OPEN:
            assert not workers.free or len(workers) + workers.backing_off >= board.min_workers, "below the floor"

        fatal = isinstance(event, m.StartFailed) and event.fatal
        if self.failures >= config.restart_budget:
            assert board.broken_by is not None, f"{self.failures} failed starts, and the pool goes on"
        # At the end of the turn; before the first of its ends so many more were live.
        live = workers.live + sum(isinstance(action, m.Condemn) for action in actions)
        for action in actions:
            if isinstance(action, m.Break):
                assert fatal or self.failures >= config.restart_budget, f"broken after {self.failures}"
            elif isinstance(action, m.Notify) and action.error is None:
                assert workers.available + workers.busy >= min(self.wants[action.waiter], board.size), "too early"
            elif isinstance(action, m.Condemn):
                live -= 1
                self._judge_end(action, homes, live)

        table = set(self.scheduler.rules.table.values())
        for worker in workers.by_id.values():
            if worker.retire is not None:
                self.retired_at.setdefault(worker, self.now)
            limit = config.max_requests_per_worker
            if limit is not None and worker.state is WorkerState.IDLE and worker.requests >= limit:
                assert worker.retire is not None, f"{worker!r} has served its time"
        for session, home in homes.items():
            if session in table and session.pinned and home.state is not WorkerState.CONDEMNED and not session.told:
                assert session.worker is home, f"{session.session_id} left its worker, which lives"
        worker = self.scheduler.worker(getattr(event, "worker_id", ""))
        if worker is None or worker.state is WorkerState.CONDEMNED:
            return
        if isinstance(event, m.RestartRequested):
            assert worker.retire is not None, f"{worker!r} was to be replaced"

    def _judge_growth(self, actions: list[m.Action], wanted: int) -> None:
        """A worker is started in the place of one that was lost, for the floor or a waiter, or for the queue."""
        board = self.board
        workers = board.workers
        slots = {action.worker.slot for action in actions if isinstance(action, m.Spawn)}
        asked = slots - self.to_refill
        self.to_refill -= slots
        if board.state is not PoolState.OPEN:
            self.to_refill.clear()
        if asked:
            places = len(workers) + workers.backing_off
            coming = workers.starting + workers.backing_off + workers.counts[WorkerState.CHECKING]
            floor = max(board.min_workers, wanted, self.scheduler.lifecycle.wanted)
            assert coming <= self._useful() or places <= floor, "a worker is started for nobody"

    def _useful(self) -> int:
        """Return how many workers the common queue could use at most; each item of a bulk could use one."""
        return sum(request.weight if request.splits else 1 for request in self.board.queue.requests())

    def _judge_end(self, action: m.Condemn, homes: dict[Session, Worker], live: int) -> None:
        worker, table = action.worker, self.scheduler.rules.table.values()
        held = [s for s, home in homes.items() if home is worker and s in table]
        if action.reason is ExitReason.HEALTH:
            checks = [request for request in worker.sent if request.kind is RequestKind.PING]
            assert checks, f"{worker!r} has answered its check"
            assert self.now >= checks[0].sent_at + self.config.health_check_timeout_s, f"{worker!r} had time left"
        elif action.reason is ExitReason.IDLE:
            assert not held, f"{worker!r} was shrunk away with {held[0].session_id}"
            assert live >= self.board.min_workers, "shrunk below the floor"
        elif action.reason in PLANNED and worker in self.retired_at and self.scheduler.state is PoolState.OPEN:
            overdue = self.now >= self.retired_at[worker] + self.config.session_drain_s
            assert overdue or not held, f"{worker!r} was replaced under {held[0].session_id}"

    # Time -------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        self.recall()
        super().advance(seconds)
        self.judge_deadlines()

    def pass_deadlines(self) -> None:
        super().pass_deadlines()
        self.judge_deadlines()

    def judge_deadlines(self) -> None:
        """Nothing goes on beyond its time."""
        now, config = self.now, self.config
        if now >= self.end_at:
            assert not self.board.workers.live, "the pool's time is over"
        for request in self.scheduler.dispatcher.waiting():
            assert request.queue_deadline is None or request.queue_deadline > now, f"{request!r} waits too long"
        for worker in self.board.workers.by_id.values():
            if worker.state is WorkerState.CONDEMNED or worker.closed:
                continue
            if worker.state is WorkerState.STARTING:
                assert worker.spawned_at + config.worker_init_timeout_s > now, f"{worker!r} starts too long"
            elif worker.state is WorkerState.CHECKING:
                sent_at = worker.sent[0].sent_at
                assert sent_at + config.health_check_timeout_s > now, f"{worker!r} does not answer"
            elif worker.state is WorkerState.BUSY and worker.sent:
                first = worker.sent[0]
                assert first.started_at is not None
                limit_s = first.timeout_s
                assert limit_s is None or first.started_at + limit_s > now, f"{first!r} runs too long"
            # A pool that closes finishes its work with the workers that it has.
            young = worker.expires_at is None or worker.expires_at > now
            assert young or self.scheduler.state is not PoolState.OPEN, f"{worker!r} is too old"
        for session in self.scheduler.rules.table.values():
            if not (session.unsettled or session.blocked):
                # One that waited for its predecessor's end is idle from that end on.
                assert now < session.timer[0] <= now + session.ttl_s, f"{session.session_id} has expired"

    # Actions ----------------------------------------------------------------------------------------

    def _take_back(self, action: m.TakeBack) -> None:
        """The tokens are read at once; the scheduler is told after the actions at hand, as the manager does it."""
        process = self.processes[action.worker.worker_id]
        assert action.count > 0, "an empty take-back"
        count = min(action.count, process.tokens)
        process.tokens -= count
        sent = list(action.worker.sent)
        self.ledger.put_back(sent[len(sent) - count :])
        self._taken.append(m.TakenBack(process.worker_id, count))

    def take_all_back(self, process: Process) -> None:
        super().take_all_back(process)
        while self._taken:
            self.handle(self._taken.popleft())

    def _spawn(self, action: m.Spawn) -> None:
        super()._spawn(action)
        assert self.now >= self.not_before.get(action.worker.slot, 0.0), "spawned before its back-off was over"

    def _condemn(self, action: m.Condemn) -> None:
        super()._condemn(action)
        # Whoever only hurries the end did not cause it.
        self.reasons.setdefault(action.worker.worker_id, action.reason)

    def _dispatch(self, action: m.Dispatch) -> None:
        self.served.add(action.worker.worker_id)
        super()._dispatch(action)
        self.ledger.sent(action.requests, (0, 0, 0, 0, 0, 0))
        for request in action.requests:
            assert request not in self.never, f"{request!r} is dispatched, and was never to run"
            self.in_pipe.add(request)
            assert request.future is None or request.future.end in (None, "cancelled"), f"{request!r} has ended"
            session = request.session
            if session is not None and request.kind is RequestKind.USER:
                assert request.seq > self.lost_until.get(session, 0), f"{request!r} runs after its session's loss"
        limit = self.config.max_requests_per_worker
        if limit is not None and any(request.ahead for request in action.requests):
            load = action.worker.requests + sum(request.weight for request in action.worker.sent)
            assert load <= limit, f"{action.worker!r} is sent more than it may serve"

    def _check_session(self, request: Request, worker: Worker) -> None:
        session = request.session
        home = None if session is None else self._homes.get(session)
        super()._check_session(request, worker)
        if session is None or session.mode == "hint":
            return
        if home is not None and home is not worker and session not in self.had_setup:
            assert session.session_id in self.told, f"{session.session_id} lost its state, and nobody was told"
        self.told.discard(session.session_id)

    def begin(self, process: Process) -> Request | None:
        forgot = len(process.forgot)
        request = super().begin(process)
        for session_id in process.forgot[forgot:]:
            self.holds.pop((process.worker_id, session_id), None)
        if request is None or request.kind is RequestKind.PING:
            return request
        assert request not in self.never, f"{request!r} begins, and was never to run"
        session = request.session
        if session is None:
            return request
        held = self.holds.setdefault((process.worker_id, session.session_id), session)
        if self.can_end_session and process.condemned is None:
            assert held is session, f"{request!r} finds the state of an ended session"
        if request.kind is RequestKind.SETUP:
            self.steps_begun[process.worker_id, session] += 1
        elif session.mode != "hint" and process.condemned is None:
            assert request.seq > self.last_begun.get(session, 0), f"{request!r} was overtaken"
            self.last_begun[session] = request.seq
            done = self.steps_begun[process.worker_id, session]
            assert done >= len(session.setup), f"{request!r} begins before its session's set-up"
        return request

    def run(self, rounds: int = 1000) -> None:
        """Let every process answer all it has, as ``Bench.run``; each begin goes through the books."""
        for _ in range(rounds):
            moved = False
            for process in self.living():
                if process.ready and not process.closed and (process.frames or process.running):
                    if process.running is not None or self.begin(process) is not None:
                        process.finish()
                    moved = True
                while self.read(process):
                    moved = True
            if not moved:
                return
        raise AssertionError("the bench does not come to rest")

    def _settle(self, action: Any) -> None:
        request, won = action.request, False
        ended = request.future.end
        super()._settle(action)
        if isinstance(action, m.Resolve):
            following = request.worker.sent[0] if request.worker is not None and request.worker.sent else None
            outcome = Outcome.COMPLETED if self._answered[request] is None else Outcome.ERROR
            (won,) = self.ledger.finish([(request, outcome)], following)
        else:
            won = self.ledger.settle(request, getattr(action, "outcome", Outcome.CANCELLED))
        assert won == (ended is None), f"{request!r}: the ledger and the future disagree"
        if not isinstance(action, m.Fail):
            return
        error = action.error
        if action.outcome is Outcome.QUEUE_TIMEOUT:
            assert request.queue_deadline is not None and self.now >= request.queue_deadline, "too early"
            assert request not in self.in_pipe, f"{request!r} timed out in the queue, and stands in a pipe"
            self.never.add(request)
        elif action.outcome is Outcome.COMMAND_TIMEOUT and request.started_at is not None:
            assert self.now >= request.started_at + request.timeout_s, f"{request!r} had time left"
        elif action.outcome is Outcome.DIED:
            assert request not in self._spared, f"{request!r} had not begun, and died with its worker"
        if isinstance(error, SessionLost):
            self.told.add(request.session_id)
            if request.session is not None:
                self.lost_until[request.session] = self.accepted
        if isinstance(error, SessionBusy):
            assert request.session.mode == "fail_fast", f"{request!r} would have waited"

    # The books' balance -----------------------------------------------------------------------------

    def balance(self) -> None:
        """The counters add up, and each is what the requests themselves say."""
        stats = self.ledger.stats()
        ended = stats.completed + stats.errors + stats.cancelled + stats.queue_timeouts + stats.command_timeouts
        assert stats.requests == ended + stats.queued + stats.running == sum(r.weight for r in self.requests)
        for process in self.living():
            if process.condemned is not None and process.alive:
                # The oldest counts as begun, whether or not the process has taken its token by then.
                oldest = [r for r, claims in process.frames if claims and r.state is m.RequestState.DONE]
                assert process.tokens <= len(oldest), "work is left to a worker that is being ended"
        alive = [r for r in self.requests if r.future.end is None]
        running = {r for w in self.board.workers.by_id.values() for r in list(w.sent)[:1] if r in alive}
        lent = {r for r in self.lent.values() if r in alive}
        ahead = {r for w in self.board.workers.by_id.values() for r in list(w.sent)[1:] if r in alive}
        waiting = {r for r in self.scheduler.dispatcher.waiting() if r.future is not None and r in alive}
        assert set(alive) == running | ahead | waiting | (self.unheard & set(alive)), "a request has no home"
        # What a worker had begun when it was condemned may still count as queued.
        sure = sum(r.weight for r in running if r.worker.state is not WorkerState.CONDEMNED)
        direct = sum(r.weight for r in lent)
        assert sure + direct <= stats.running <= sum(r.weight for r in running) + direct, "running"
        kinds = Counter(dict.fromkeys(("ok", "cancelled", "queue_timeout", "timeout"), 0))
        for request in self.requests:
            end = request.future.end
            if isinstance(end, m.Fail):
                kinds[end.outcome.value] += request.weight
            elif isinstance(end, m.Cancel) or end == "cancelled":
                kinds["cancelled"] += request.weight
        counted = (stats.cancelled, stats.queue_timeouts, stats.command_timeouts)
        assert (kinds["cancelled"], kinds["queue_timeout"], kinds["timeout"]) == counted, "counters"
        assert set(self.ledger.pending()) == set(alive), "pending"
