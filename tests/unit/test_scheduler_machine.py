"""The scheduler under every order of events that hypothesis can think of."""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from unit.scheduling import Bench, Process

from snakepit._core import model as m

LONG = os.environ.get("SNAKEPIT_LONG") == "1"
"""Many random examples instead of a few fixed ones; hypothesis prints the seed of a failure."""

PICK = st.integers(0, 1000)


class Machine(RuleBasedStateMachine):
    """Callers, worker processes and the clock, in any order that the manager's contract allows."""

    @initialize(
        size=st.integers(1, 3),
        floor=st.integers(0, 3),
        can_claim=st.booleans(),
        max_requests=st.sampled_from([None, None, 1, 3]),
        idle_s=st.sampled_from([None, 2.0]),
        age_s=st.sampled_from([None, 20.0]),
        rss=st.sampled_from([None, 1000]),
        max_sessions=st.sampled_from([2, 100]),
        ttl_s=st.sampled_from([5.0, 3600.0]),
        budget=st.sampled_from([2, 50]),
    )
    def build(
        self,
        size: int,
        floor: int,
        can_claim: bool,
        max_requests: int | None,
        idle_s: float | None,
        age_s: float | None,
        rss: int | None,
        max_sessions: int,
        ttl_s: float,
        budget: int,
    ) -> None:
        self.bench = Bench(
            size,
            min(floor, size),
            can_claim=can_claim,
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
        ttl_s=st.sampled_from([None, 1.0]),
    )
    def submit(self, count: int, session: str | None, mode: str, setup: Any, **options: Any) -> None:
        for _ in range(count):
            request = self.bench.accept(
                session=session, affinity=mode, setup=setup if session else (), **options
            )
            self.inbox.append(m.Submitted(request))

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

    @rule(session=st.sampled_from("abc"))
    def end_session(self, session: str) -> None:
        self.inbox.append(m.SessionEnded(session))

    @precondition(lambda self: not self.shut)
    @rule(count=st.integers(1, 3))
    def want(self, count: int) -> None:
        self.waiters.append(object())
        self.inbox.append(m.WorkersWanted(count, self.waiters[-1]))

    @rule(pick=PICK)
    def restart(self, pick: int) -> None:
        process = self._pick(self.bench.living(), pick)
        if process is not None:
            self.inbox.append(m.RestartRequested(process.worker_id))

    @rule()
    def recycle(self) -> None:
        self.inbox.append(m.RecycleRequested())

    @rule(pick=PICK, cancel=st.booleans())
    def shutdown(self, pick: int, cancel: bool) -> None:
        if pick % 20 == 3:
            self.shut = True
            self.inbox.append(m.ShutdownRequested(cancel))

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

    @rule(pick=PICK, count=st.integers(1, 10))
    def read(self, pick: int, count: int) -> None:
        process = self._pick([p for p in self.bench.living() if p.written], pick)
        if process is not None:
            for _ in range(count):
                self.bench.read(process)

    @rule(pick=PICK)
    def serve(self, pick: int) -> None:
        """Run and read to the end of one pipe: the way to tiny service times."""
        process = self._pick([p for p in self._serving() if p.running or p.frames], pick)
        for _ in range(20):
            if process is None or not (process.running or process.frames):
                return
            if process.running is not None or self.bench.begin(process) is not None:
                process.finish()
            while self.bench.read(process):
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
            while self.bench.read(process):
                pass
            # Nothing that such a worker writes is read any more.
            process.closed = True
            self.bench.handle(m.Misbehaved(process.worker_id, ValueError("garbage")))

    @rule(pick=PICK)
    def close_pipe(self, pick: int) -> None:
        process = self._pick([p for p in self.bench.living() if p.started and not p.closed], pick)
        if process is not None and pick < 300:
            while self.bench.read(process):
                pass
            process.closed = True
            self.bench.handle(m.PipeClosed(process.worker_id))

    @rule(pick=PICK, rss=st.sampled_from([10, 5000]))
    def measure(self, pick: int, rss: int) -> None:
        process = self._pick(self.bench.living(), pick)
        if process is not None:
            self.bench.handle(m.RssMeasured(process.worker_id, rss))

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
        """A pool that is shut down closes, and every accepted request has ended exactly once."""
        if not hasattr(self, "bench"):
            return
        bench = self.bench
        self.inbox.append(m.ShutdownRequested())
        self.deliver(len(self.inbox))
        for _ in range(2000):
            if bench.closed:
                break
            self.settle()
        assert bench.closed, f"not closed: {bench.scheduler.state} {bench.states()}"
        assert not bench.living()
        for request in bench.requests:
            assert request.future.end is not None, f"{request!r} never ended"
            assert m.RequestState.DONE is request.state
            assert bench.ends[request] + (request.future.end == "cancelled") >= 1
        assert len(self.waiters) == len(bench.notices)

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


def test_any_order_of_events() -> None:
    """The invariants hold after each event, and a pool that is shut down closes with nothing left over."""
    profile = settings(
        max_examples=400 if LONG else 250,
        stateful_step_count=70 if LONG else 40,
        deadline=None,
        derandomize=not LONG,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )

    for _ in range(50 if LONG else 1):
        run_state_machine_as_test(Machine, settings=profile)
