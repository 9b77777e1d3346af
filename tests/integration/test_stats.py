"""The counters tell the truth at every instant."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, balance, config, handler_pool

from snakepit import (
    CommandError,
    CommandTimeout,
    EncodeError,
    QueueFull,
    QueueTimeout,
    SessionError,
    SnakepitExecutor,
    WorkerDied,
)

from gates import Gate
from leaks import wait_until


def outcome_of(future: Future[Any]) -> str:
    """Return the counter that this future's end belongs to."""
    try:
        error = future.exception(LIMIT_S)
    except CancelledError:
        return "cancelled"
    if isinstance(error, CommandTimeout):
        return "command_timeouts"
    if isinstance(error, QueueTimeout):
        return "queue_timeouts"
    assert error is None or isinstance(error, (WorkerDied, CommandError, SessionError)), error
    return "completed" if error is None else "errors"


class Caller:
    """One thread's random operations, with its own counts.

    Args:
        ex: The pool.
        seed: Of this caller.
        gate: A call that waits there is ended by its time-out.
    """

    def __init__(self, ex: SnakepitExecutor, seed: str, gate: Gate) -> None:
        self.ex = ex
        self.random = random.Random(seed)
        self.gate = gate
        self.futures: list[Future[Any]] = []
        self.refused = self.saturated = 0

    def run(self) -> None:
        for _ in range(150):
            try:
                self.step(self.random.random())
            except QueueFull:
                self.saturated += 1
            except EncodeError:
                self.refused += 1

    def step(self, choice: float) -> None:
        submit, futures = self.ex.submit, self.futures
        session = self.random.choice([None, None, "a", "b"])
        if choice < 0.6:
            futures.append(
                submit("run", {"value": 1}, session=session, priority=self.random.choice([0, 0, 1]))
            )
        elif choice < 0.65:
            futures.append(submit("fail", session=session))
        elif choice < 0.7:
            submit("run", {"value": {1}})
        elif choice < 0.73:
            futures.append(submit("die", {"code": 1}))
        elif choice < 0.76:
            futures.append(submit("hold", {"gate": self.gate.path}, timeout=0.05))
        elif choice < 0.82:
            futures.append(submit("run", queue_timeout=0.01))
        elif choice < 0.92 and futures:
            self.random.choice(futures).cancel()
        elif choice < 0.94 and futures:
            self.random.choice(futures).cancel(running=True)  # type: ignore[call-arg]
        elif futures:
            wait(futures[-5:], LIMIT_S)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_sum_holds_at_every_reading(seed: int, gate: Gate) -> None:
    """While four callers do random things every snapshot adds up; at the end it equals their counts (F29)."""
    print(f"seed {seed}")
    broken: list[Any] = []
    with handler_pool(
        3, max_queue_size=60, config=config(restart_budget=50, health_check_interval_s=0.05)
    ) as ex:
        ex.wait_ready(workers=3)
        stop = threading.Event()

        def read() -> None:
            last = ex.stats()
            while not stop.is_set():
                stats = ex.stats()
                fine = stats.requests == balance(stats) and min(stats.queued, stats.running) >= 0
                fine = fine and stats.workers <= 3 and stats.running <= 3
                for name in (
                    "requests",
                    "completed",
                    "errors",
                    "cancelled",
                    "queue_timeouts",
                    "command_timeouts",
                ):
                    # A result that fails to load moves from completed to errors; commands have none such.
                    fine = fine and getattr(stats, name) >= getattr(last, name)
                if not fine:
                    broken.append((last, stats))
                last = stats

        callers = [Caller(ex, f"{seed}.{n}", gate) for n in range(4)]
        threads = [threading.Thread(target=caller.run) for caller in callers]
        reader = threading.Thread(target=read)
        for thread in (reader, *threads):
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S * 3)
        counts = Counter(outcome_of(future) for caller in callers for future in caller.futures)
        stop.set()
        reader.join(LIMIT_S)
        stats = ex.stats()

    assert [] == broken
    assert sum(len(caller.futures) for caller in callers) == stats.requests
    assert sum(caller.saturated for caller in callers) == stats.pool_saturated
    names = ("completed", "errors", "cancelled", "queue_timeouts", "command_timeouts")
    assert {name: counts[name] for name in names} == {name: getattr(stats, name) for name in names}
    assert (0, 0) == (stats.queued, stats.running)


def test_running_and_queued_are_told_apart(gate: Gate) -> None:
    """The oldest request of a worker is running, what waits or was sent ahead is queued."""
    with handler_pool(1) as ex:
        wait([ex.submit("run", {"value": n}) for n in range(100)], LIMIT_S)
        held = ex.submit("hold", {"gate": gate.path})
        rest = [ex.submit("run") for _ in range(30)]
        gate.wait_started()

        stats = ex.stats()
        gate.open()
        wait([held, *rest], LIMIT_S)

        assert (1, 30, 100) == (stats.running, stats.queued, stats.completed)
        assert (1, 0, 1) == (stats.busy, stats.available, stats.workers)


def test_what_was_not_accepted_is_not_counted(gate: Gate) -> None:
    """Bad input and submits after shutdown are not in requests; refusals have a counter of their own."""
    with handler_pool(1, max_queue_size=0) as ex:
        held = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        with pytest.raises(EncodeError):
            ex.submit("run", {"value": {1}})
        with pytest.raises(QueueFull):
            ex.submit("run")
        gate.open()
        held.result(LIMIT_S)
    with pytest.raises(RuntimeError):
        ex.submit("run")

    stats = ex.stats()
    assert (1, 1, 1) == (stats.requests, stats.completed, stats.pool_saturated)


def test_the_pools_own_requests_are_not_counted() -> None:
    """Health checks and set-ups run without a trace in the callers' counters."""
    with handler_pool(1, config=config(health_check_interval_s=0.02)) as ex:
        ex.session("s", setup=[("run",), ("run",)]).execute("run")
        wait_until(lambda: any(worker.state == "checking" for worker in ex.workers()))
        wait_until(lambda: any(worker.state == "idle" for worker in ex.workers()))

        stats = ex.stats()

        assert (1, 1, 0, 0) == (stats.requests, stats.completed, stats.queued, stats.running)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_a_worker_that_runs_is_busy(mode: str, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who knows that a request has begun finds its worker busy, though the manager is in the middle of its turn."""
    monkeypatch.setenv("SNAKEPIT_DIRECT_CALLS", mode)
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        publish, seen = ex._ledger.publish, threading.Event()

        def late(*numbers: Any, **options: Any) -> None:
            assert seen.wait(LIMIT_S)
            publish(*numbers, **options)

        # The end of the turn in which the request is sent comes after the reading.
        ex._manager._ledger = PausedEnd(ex._ledger, late)  # type: ignore[assignment]  # what is used of it
        held = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        stats = ex.stats()
        seen.set()
        gate.open()
        held.result(LIMIT_S)

    assert (1, 1, 1, 0) == (stats.busy, stats.available, stats.running, stats.queued)


class PausedEnd:
    """A ledger whose numbers about workers are published in another way at the end of a turn."""

    def __init__(self, ledger: Any, publish: Any) -> None:
        self._ledger, self.publish = ledger, publish

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)
