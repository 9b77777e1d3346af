"""The scheduler under every order of events that hypothesis can think of."""

from __future__ import annotations

import os
import random
import time
from collections import Counter, deque
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from unit.scheduling import Process
from unit.witness import Witness

from snakepit._core import model as m

STEPS = int(os.environ.get("SNAKEPIT_STEPS") or 200_000)
"""Least number of steps of the long run, ``make fuzz``."""
LONG = os.environ.get("SNAKEPIT_LONG") == "1"
"""Many random examples instead of a few fixed ones."""
SEED = int(os.environ.get("SNAKEPIT_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
"""Of the long run; printed."""

PICK = st.integers(0, 1000)

TROUBLES = ("late", "cancel", "cancel_ahead", "crash", "garbage", "restart", "steal", "unreachable")


class Machine(RuleBasedStateMachine):
    """Callers, worker processes and the clock, in any order that the manager's contract allows."""

    steps: ClassVar[Counter[str]] = Counter()

    @initialize(
        size=st.integers(1, 4),
        floor=st.integers(0, 4),
        can_claim=st.booleans(),
        can_end_session=st.sampled_from([True, True, False]),
        can_batch=st.sampled_from([True, True, False]),
        max_requests=st.sampled_from([None, None, 1, 3]),
        idle_s=st.sampled_from([None, 2.0]),
        age_s=st.sampled_from([None, 20.0]),
        rss=st.sampled_from([None, 1000]),
        max_sessions=st.sampled_from([2, 100]),
        ttl_s=st.sampled_from([5.0, 3600.0]),
        budget=st.sampled_from([2, 4, 50]),
        health_s=st.sampled_from([3.0, 30.0]),
    )
    def build(
        self,
        size: int,
        floor: int,
        can_claim: bool,
        can_end_session: bool,
        can_batch: bool,
        max_requests: int | None,
        idle_s: float | None,
        age_s: float | None,
        rss: int | None,
        max_sessions: int,
        ttl_s: float,
        budget: int,
        health_s: float,
    ) -> None:
        self.bench = Witness(
            size,
            min(floor, size),
            can_claim=can_claim,
            can_end_session=can_end_session,
            can_batch=can_batch,
            health_check_interval_s=health_s,
            health_check_timeout_s=2.0,
            max_requests_per_worker=max_requests,
            worker_idle_timeout_s=idle_s,
            max_worker_age_s=age_s,
            max_worker_rss_bytes=rss,
            max_sessions=max_sessions,
            session_ttl_s=ttl_s,
            session_drain_s=4.0,
            restart_budget=budget,
        )
        self.inbox: deque[Any] = deque()
        self.shut = False
        self.waiters: list[object] = []
        self.bench.start()

    @invariant()
    def balance(self) -> None:
        """Counted here, since it runs after each step: the scheduler's own checks run after each event."""
        Machine.steps["steps"] += 1
        if hasattr(self, "bench"):
            self.bench.balance()

    # Callers ----------------------------------------------------------------------------------------

    @precondition(lambda self: not self.shut and self.bench.refused is None)
    @rule(
        session=st.sampled_from([None, None, "a", "b", "c"]),
        mode=st.sampled_from(["strict", "strict", "hint", "fail_fast"]),
        setup=st.sampled_from([(), (), (("one", None),), (("one", None), ("two", None))]),
        priority=st.sampled_from([0, 0, 0, 1, -1]),
        timeout_s=st.sampled_from([None, None, 1.0, 3.0]),
        queue_timeout_s=st.sampled_from([None, None, 1.0, 2.0]),
        chunk=st.sampled_from([None, None, "chunk"]),
        count=st.sampled_from([1, 1, 2, 8]),
        weight=st.sampled_from([1, 1, 1, 3]),
        ttl_s=st.sampled_from([None, 1.0]),
    )
    def submit(self, count: int, session: str | None, mode: str, setup: Any, **options: Any) -> None:
        for _ in range(count):
            request = self.bench.accept(
                session=session, affinity=mode, setup=setup if session else (), **options
            )
            self.inbox.append(m.Submitted(request))

    @precondition(lambda self: not self.shut and self.bench.refused is None)
    @rule(items=st.sampled_from([1, 2, 8, 40]))
    def submit_bulk(self, items: int) -> None:
        self.inbox.append(m.Submitted(self.bench.accept_bulk(items)))

    @rule(pick=PICK, running=st.booleans())
    def cancel(self, pick: int, running: bool) -> None:
        request = self._pick([r for r in self.bench.requests if r.future.end is None], pick)
        if request is not None and self.bench.cancel_future(request, running=running):
            self.inbox.append(m.Cancelled(request))

    @rule(count=st.integers(1, 12))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.inbox))):
            event = self.inbox.popleft()
            if isinstance(event, m.Cancelled):
                self.bench.hear_cancel(event.request)
            else:
                self.bench.handle(event)

    @rule(
        pick=PICK,
        count=st.integers(0, 3),
        good=st.sampled_from([True, True, False]),
        left=st.booleans(),
        timeout_s=st.sampled_from([None, 1.0]),
    )
    def call_directly(self, pick: int, count: int, good: bool, left: bool, timeout_s: float | None) -> None:
        """A caller has some requests answered by a lent worker, and perhaps sends another one."""
        bench = self.bench
        if self.shut or self.inbox or bench.refused is not None:
            return
        may_lend = bench.scheduler.lifecycle.may_lend
        free = [p for p in self._serving() if p not in bench.lent and may_lend(p.worker)]
        process = self._pick(free, pick)
        if process is None:
            return
        for _ in range(count):
            bench.serve_direct(process, None if good else ValueError("bad"))
        if left:
            bench.send_direct(process, timeout_s=timeout_s)

    @rule(pick=PICK, good=st.sampled_from([True, True, False]))
    def answer_directly(self, pick: int, good: bool) -> None:
        """A lent worker answers, and its caller reads that before the recall."""
        bench = self.bench
        # Whose caller has cancelled is the manager's.
        process = self._pick([p for p, request in bench.lent.items() if request.future.end is None], pick)
        if process is None:
            return
        if process.written:
            bench.read_direct(process)
        else:
            bench.serve_direct(process, None if good else ValueError("bad"))

    @rule(session=st.sampled_from("abc"))
    def end_session(self, session: str) -> None:
        self.inbox.append(m.SessionEnded(session))

    @precondition(lambda self: not self.shut and self.bench.refused is None)
    @rule(session=st.sampled_from("abc"), count=st.integers(1, 4), cancel=st.booleans(), pick=PICK)
    def retry(self, session: str, count: int, cancel: bool, pick: int) -> None:
        """A caller tries again and again, and ends its session each time; it cancels one, or none has its turn."""
        requests = [self.bench.accept(session=session, queue_timeout_s=0.5) for _ in range(count)]
        for request in requests:
            self.inbox.extend((m.Submitted(request), m.SessionEnded(session)))
        self.deliver(len(self.inbox))
        if not cancel:
            self.bench.advance(0.5)
        elif self.bench.cancel_future(requests[pick % count]):
            self.inbox.append(m.Cancelled(requests[pick % count]))

    @precondition(lambda self: not self.shut)
    @rule(count=st.integers(1, 3))
    def want(self, count: int) -> None:
        self.waiters.append(object())
        self.bench.wants[self.waiters[-1]] = count
        self.inbox.append(m.WorkersWanted(count, self.waiters[-1]))

    @rule(pick=PICK)
    def restart(self, pick: int) -> None:
        process = self._pick(self.bench.living(), pick)
        if process is not None:
            self.inbox.append(m.RestartRequested(process.worker_id))

    @rule()
    def recycle(self) -> None:
        self.inbox.append(m.RecycleRequested())

    @rule(pick=PICK, cancel=st.booleans(), bound_s=st.sampled_from([None, None, 0.0, 2.0]))
    def shutdown(self, pick: int, cancel: bool, bound_s: float | None) -> None:
        if pick % 20 == 3:
            end_at = None if bound_s is None else self.bench.now + bound_s
            if end_at is not None and not self.shut and self.bench.refused is None:
                # Somebody still runs when the time is over.
                self.inbox.extend(m.Submitted(self.bench.accept()) for _ in range(3))
                self.deliver(len(self.inbox))
            self.shut = True
            self.inbox.append(m.ShutdownRequested(cancel, end_at))
            if end_at is not None and pick % 40 == 3:
                self.deliver(len(self.inbox))
                self.bench.advance(bound_s + 0.5)

    @rule(pick=PICK, kill=st.booleans())
    def end(self, pick: int, kill: bool) -> None:
        if pick % 20 == 7:
            self.shut = True
            self.inbox.append(m.EndRequested(kill))

    # Processes --------------------------------------------------------------------------------------

    def _pick(self, items: list[Any], pick: int) -> Any:
        return items[pick % len(items)] if items else None

    def _serving(self) -> list[Process]:
        return [p for p in self.bench.living() if p.ready and not p.closed]

    @rule(pick=PICK, fate=st.sampled_from(["ready"] * 3 + ["refused", "failed", "fatal", "garbled"]))
    def start(self, pick: int, fate: str) -> None:
        process = self._pick([p for p in self.bench.living() if not p.ready and not p.closed], pick)
        if process is None:
            return
        bench, error = self.bench, ValueError(fate)
        if fate == "refused" and not process.started:
            bench.handle(m.SpawnRefused(process.worker_id, error))
            assert not process.alive
            return
        if not process.started:
            bench.spawned(process)
        if fate == "ready":
            bench.ready(process)
        elif fate == "garbled":
            bench.handle(m.Misbehaved(process.worker_id, error))
        elif fate in ("failed", "fatal"):
            bench.handle(m.StartFailed(process.worker_id, error, fate == "fatal" and pick < 300))

    @rule()
    def start_all(self) -> None:
        for process in self.bench.living():
            if not process.ready and not process.closed:
                self.bench.ready(process)

    @rule(pick=PICK)
    def begin(self, pick: int) -> None:
        process = self._pick([p for p in self._serving() if p.running is None and p.frames], pick)
        if process is not None:
            self.bench.begin(process)

    @rule(pick=PICK, good=st.sampled_from([True, True, False]))
    def finish(self, pick: int, good: bool) -> None:
        process = self._pick([p for p in self._serving() if p.running is not None], pick)
        if process is not None:
            process.finish(None if good else ValueError("bad"))

    @rule(pick=PICK, count=st.integers(1, 10))
    def work(self, pick: int, count: int) -> None:
        """Run several requests; the host reads nothing of it yet."""
        process = self._pick([p for p in self._serving() if p.running or p.frames], pick)
        if process is None:
            return
        for _ in range(count):
            if process.running is None and self.bench.begin(process) is None:
                return
            process.finish()

    @rule(pick=PICK, count=st.integers(1, 10), most=st.sampled_from([1, 3, 20]))
    def read(self, pick: int, count: int, most: int) -> None:
        process = self._pick([p for p in self.bench.living() if p.written], pick)
        if process is not None:
            for _ in range(count):
                self.bench.read(process, most)

    @rule(pick=PICK)
    def serve(self, pick: int) -> None:
        """Run and read to the end of one pipe: the way to tiny service times."""
        process = self._pick([p for p in self._serving() if p.running or p.frames], pick)
        for _ in range(20):
            if process is None or not (process.running or process.frames):
                return
            if process.running is not None or self.bench.begin(process) is not None:
                process.finish()
            while self.bench.read(process, 5):
                pass

    @rule()
    def rest(self) -> None:
        """Everything that happens by itself happens: the way to deep states."""
        self.deliver(len(self.inbox))
        for _ in range(50):
            for process in self.bench.living():
                if not process.ready and not process.closed and process.condemned is None:
                    self.bench.ready(process)
            self.bench.run()
            if not any(not p.ready and not p.closed and p.condemned is None for p in self.bench.living()):
                return

    @precondition(lambda self: not self.shut and self.bench.refused is None)
    @rule(
        session=st.sampled_from(["a", "b", "c"]),
        mode=st.sampled_from(["strict", "strict", "hint", "fail_fast"]),
        setup=st.sampled_from([(), (), (("one", None),)]),
    )
    def visit(self, session: str, mode: str, setup: Any) -> None:
        """One call of a session, to its end."""
        self.inbox.append(m.Submitted(self.bench.accept(session=session, affinity=mode, setup=setup)))
        self.rest()

    @precondition(lambda self: not self.shut and self.bench.refused is None)
    @rule(
        count=st.integers(4, 16),
        answers=st.integers(2, 3),
        session=st.sampled_from([None, None, "a"]),
        timeout_s=st.sampled_from([None, 1.0]),
        took_s=st.sampled_from([0.0002, 0.001]),
        cut_off=st.sampled_from([False, False, True]),
        pick=PICK,
    )
    def burst(
        self,
        count: int,
        answers: int,
        session: str | None,
        timeout_s: float | None,
        took_s: float,
        cut_off: bool,
        pick: int,
    ) -> None:
        """So many tiny calls of one map that some are sent ahead, to a worker that is left in the midst of them."""
        self.rest()
        for place in range(count):
            whose = session if place % 3 == 2 else None
            request = self.bench.accept(session=whose, chunk="map", timeout_s=timeout_s)
            self.inbox.append(m.Submitted(request))
        self.deliver(len(self.inbox))
        process = self._pick([p for p in self._serving() if p.running or p.frames], pick)
        for _ in range(answers):
            if process is None or not (process.running or process.frames):
                return
            # Short enough for more to be sent ahead, the rest or some of it, and not nothing: the next one begins later
            # than it was sent.
            self.bench.advance(took_s)
            if process.running is not None or self.bench.begin(process) is not None:
                process.finish()
            while self.bench.read(process):
                pass
        if cut_off and process is not None and process.condemned is None:
            self._cut_off(process)

    @precondition(lambda self: not self.shut and self.bench.refused is None)
    @rule(count=st.integers(1, 6), timeout_s=st.sampled_from([None, 3.0]), cancel=st.booleans(), pick=PICK)
    def linger(self, count: int, timeout_s: float | None, cancel: bool, pick: int) -> None:
        """Calls with a queue time-out: some run beyond it, the others wait in vain, or one is cancelled unheard."""
        self.rest()
        requests = [self.bench.accept(queue_timeout_s=1.0, timeout_s=timeout_s) for _ in range(count)]
        self.inbox.append(m.Submitted(*requests))
        self.deliver(count)
        if cancel:
            if self.bench.cancel_future(requests[pick % count]):
                self.inbox.append(m.Cancelled(requests[pick % count]))
            self.serve(pick)
            return
        for process in self._serving():
            if process.running is None and process.frames:
                self.bench.begin(process)
        self.bench.advance(1.5)

    @rule(pick=PICK, kind=st.sampled_from(TROUBLES))
    def trouble(self, pick: int, kind: str) -> None:
        """Something goes wrong in the middle of a worker's work."""
        bench = self.bench
        process = self._pick([p for p in self._serving() if p.worker.sent and p.condemned is None], pick)
        if process is None or (process.running is None and bench.begin(process) is None):
            return
        if kind == "late":
            bench.advance(1.5)
        elif kind in ("cancel", "cancel_ahead"):
            request = process.worker.sent[0 if kind == "cancel" else pick % len(process.worker.sent)]
            if request.future is not None and bench.cancel_future(request, running=True):
                bench.hear_cancel(request)
        elif kind == "crash":
            bench.exit(process, signal=11)
        elif kind == "restart":
            bench.handle(m.RestartRequested(process.worker_id))
        elif kind == "unreachable":
            self._cut_off(process)
        elif kind == "steal":
            for other in self._serving():
                while other is not process and (other.running or other.frames):
                    if other.running is not None or bench.begin(other) is not None:
                        other.finish()
                    while bench.read(other):
                        pass
        else:
            self._garble(process)

    def _cut_off(self, process: Process) -> None:
        """A process has answered most of what it had, and that is read after a write to it has failed."""
        for _ in range(max(1, len(process.worker.sent) * 3 // 4)):
            if process.running is None and self.bench.begin(process) is None:
                break
            process.finish()
        process.closed = True
        self.bench.handle(m.PipeClosed(process.worker_id))
        while self.bench.read(process, 20):
            pass

    @rule(pick=PICK)
    def crash(self, pick: int) -> None:
        process = self._pick([p for p in self.bench.living() if p.started], pick)
        if process is not None:
            self.bench.exit(process, signal=9, tail="oh no")

    @rule()
    def end_condemned(self) -> None:
        for process in self.bench.living():
            if process.condemned is not None and process.started:
                self.bench.exit(process, code=0)

    @rule(pick=PICK)
    def misbehave(self, pick: int) -> None:
        process = self._pick(self._serving(), pick)
        if process is not None and pick < 300:
            self._garble(process)

    def _garble(self, process: Process) -> None:
        while self.bench.read(process):
            pass
        # Nothing that such a worker writes is read any more.
        process.closed = True
        self.bench.take_all_back(process)
        self.bench.handle(m.Misbehaved(process.worker_id, ValueError("garbage")))

    @rule(pick=PICK, unread=st.booleans())
    def close_pipe(self, pick: int, unread: bool) -> None:
        """A process reads no more; what it wrote before is read first, or later: it was written to first."""
        process = self._pick([p for p in self.bench.living() if p.started and not p.closed], pick)
        if process is not None and pick < 300:
            while not unread and self.bench.read(process):
                pass
            process.closed = True
            self.bench.handle(m.PipeClosed(process.worker_id))

    @rule(pick=PICK, rss=st.sampled_from([10, 5000]))
    def measure(self, pick: int, rss: int) -> None:
        process = self._pick(self.bench.living(), pick)
        if process is not None:
            self.bench.handle(m.RssMeasured(process.worker_id, rss))

    @rule(pick=PICK, kind=st.sampled_from(["Replied", "Ready", "StartFailed", "Skipped", "TakenBack", "RssMeasured"]))
    def stray(self, pick: int, kind: str) -> None:
        """What comes late, from a process that is gone, changes nothing."""
        process = self._pick([p for p in self.bench.processes.values() if not p.alive], pick)
        if process is not None and self.bench.scheduler.worker(process.worker_id) is None:
            more = {"StartFailed": (ValueError("late"), True), "TakenBack": (1,), "RssMeasured": (9999,)}
            self._nothing_follows(getattr(m, kind)(process.worker_id, *more.get(kind, ())))

    @rule(pick=PICK)
    def stray_end(self, pick: int) -> None:
        """A second exit, a second end of the pipe and garbage of a process that is gone change nothing."""
        process = self._pick([p for p in self.bench.processes.values() if not p.alive], pick)
        if process is not None and self.bench.scheduler.worker(process.worker_id) is None:
            self._nothing_follows(m.Exited(process.worker_id, 1))
            self._nothing_follows(m.PipeClosed(process.worker_id))
            self._nothing_follows(m.Misbehaved(process.worker_id, ValueError("late")))
            self._nothing_follows(m.SpawnRefused(process.worker_id, ValueError("late")))
            self._nothing_follows(m.RestartRequested(process.worker_id))

    @rule(pick=PICK)
    def twice(self, pick: int) -> None:
        """A second handshake, a late failed start and a reply to nothing change nothing in a worker that serves."""
        process = self._pick(self._serving(), pick)
        if process is not None:
            self._nothing_follows(m.Ready(process.worker_id, True, True), process)
            self._nothing_follows(m.StartFailed(process.worker_id, ValueError("late"), True), process)
            if not process.worker.sent:
                self._nothing_follows(m.Replied(process.worker_id), process)

    def _nothing_follows(self, event: object, process: Process | None = None) -> None:
        self.bench.recall()
        before = self.bench.states(), None if process is None else process.worker.can_claim
        assert [] == self.bench.handle(event), f"{event!r} has consequences"
        assert before == (self.bench.states(), None if process is None else process.worker.can_claim)

    @rule(pick=PICK)
    def deaf(self, pick: int) -> None:
        """A process that was ended is never seen to end while others serve: its slot stays taken."""
        process = self._pick([p for p in self.bench.living() if p.condemned is not None], pick)
        if process is not None and process.started and not process.condemned.kill and pick < 200:
            self.inbox.append(m.EndRequested(True)) if self.shut else self.bench.advance(0.1)

    # Time -------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.5, 1.5, 6.0]))
    def wait(self, seconds: float) -> None:
        self.bench.advance(seconds)

    @rule()
    def wait_for_deadline(self) -> None:
        deadline = self.bench.scheduler.next_deadline()
        if deadline is not None:
            self.bench.now = max(self.bench.now, deadline)
            self.bench.pass_deadlines()

    # The end ----------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """A pool that is shut down closes, and every accepted request has ended exactly once.

        In half of the games every request has to end while the pool is open: what waits for ever would be ended by
        the shutdown, and not be noticed.
        """
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        if len(bench.requests) % 2:
            self.come_to_rest()
        self.inbox.append(m.ShutdownRequested())
        self.deliver(len(self.inbox))
        for _ in range(10_000):
            if bench.closed:
                break
            self.settle()
        assert bench.closed, f"not closed: {bench.scheduler.state} {bench.states()}"
        assert not bench.living()
        for request in bench.requests:
            assert request.future.end is not None, f"{request!r} never ended"
            assert m.RequestState.DONE is request.state
            assert bench.ends[request] + (request.future.end in ("cancelled", "split")) >= 1
        bench.balance()
        assert 0 == bench.ledger.stats().running == bench.ledger.stats().queued
        assert len(self.waiters) == len(bench.notices)

    def come_to_rest(self) -> None:
        """Every accepted request ends when the workers do what they are told."""
        self.deliver(len(self.inbox))
        for _ in range(10_000):
            if all(request.future.end is not None for request in self.bench.requests):
                break
            self.settle()
        waiting = [request for request in self.bench.requests if request.future.end is None]
        assert not waiting, f"{waiting} wait for ever: {self.bench.scheduler.state} {self.bench.states()}"

    def settle(self) -> None:
        """Let everything that can happen by itself happen once; when nothing can, let time pass."""
        bench, moved = self.bench, False
        for process in bench.living():
            if process.condemned is not None:
                if not process.started:
                    bench.spawned(process)
                bench.exit(process, signal=15)
                moved = True
            elif not process.ready and not process.closed:
                bench.ready(process)
                moved = True
            elif not process.closed and (process.running or process.frames):
                if process.running is not None or bench.begin(process) is not None:
                    process.finish()
                moved = True
            while process.alive and bench.read(process):
                moved = True
        if not moved:
            self.wait_for_deadline()


def explore(examples: int, steps: int, number: int | None) -> None:
    """Let hypothesis play so many games; with a seed, random ones."""

    class Game(Machine):
        pass

    if number is not None:
        seed(number)(Game)
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=number is None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Game, settings=profile)


# Hypothesis makes what it has found smaller for 300 s at most; only then it tells.
@pytest.mark.timeout(0 if LONG else 600)
def test_any_order_of_events() -> None:
    """The invariants hold after each event, and a pool that is shut down closes with nothing left over."""
    if not LONG:
        explore(400, 50, None)
        return

    began, rounds = time.monotonic(), 0
    Machine.steps.clear()
    while Machine.steps["steps"] < STEPS:
        print(f"round {rounds}: SNAKEPIT_SEED={SEED + rounds}", flush=True)
        explore(250, 100, SEED + rounds)
        rounds += 1
    took_s = time.monotonic() - began
    print(f"{Machine.steps['steps']} steps in {rounds} rounds, {took_s:.0f} s, first seed {SEED}", flush=True)
