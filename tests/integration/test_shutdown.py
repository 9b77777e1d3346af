"""Shutdown from everywhere and at any moment: every future ends, no process is left, nothing hangs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, wait
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import (
    LIMIT_S,
    adapter,
    balance,
    config,
    handler_pool,
    lines,
    manager_held,
    recorded,
    saboteur_pool,
)

from snakepit import PoolBroken, SnakepitExecutor, WorkerDied
from snakepit._pool.queries import Query

from gates import Gate
from leaks import is_gone, wait_until


def test_accepted_work_is_finished(tmp_path: Path) -> None:
    """shutdown() returns when everything accepted has run and no worker is left."""
    log = tmp_path / "runs"
    ex = handler_pool(2)
    futures = [ex.submit("run", {"value": n, "log": str(log)}) for n in range(50)]

    ex.shutdown()

    assert list(range(50)) == [future.result(0) for future in futures]
    assert sorted(map(str, range(50))) == sorted(lines(log))
    assert (0, 50) == (ex.stats().workers, ex.stats().completed)


def test_without_waiting_work_is_finished_too(gate: Gate) -> None:
    """shutdown(wait=False) returns at once; what runs and what is queued still ends well."""
    ex = handler_pool(1)
    running = ex.submit("hold", {"gate": gate.path, "value": "held"})
    gate.wait_started()
    queued = ex.submit("run", {"value": 1})

    ex.shutdown(wait=False)
    assert not running.done()
    gate.open()

    assert ["held", 1] == [running.result(LIMIT_S), queued.result(LIMIT_S)]


def test_cancel_futures_cancels_what_has_not_begun(gate: Gate) -> None:
    """With cancel_futures the queue is cancelled and what runs is finished."""
    ex = handler_pool(1)
    running = ex.submit("hold", {"gate": gate.path, "value": "held"})
    gate.wait_started()
    queued = [
        ex.submit("run", {}),
        ex.submit("run", {}, session="s"),
        ex.session("t", setup=[("run",)]).submit("run"),
    ]

    ex.shutdown(wait=False, cancel_futures=True)
    assert {*queued} == wait(queued, LIMIT_S).done
    gate.open()
    ex.shutdown()

    assert "held" == running.result(0)
    assert [True] * 3 == [future.cancelled() for future in queued]
    assert (4, 1, 3) == (ex.stats().requests, ex.stats().completed, ex.stats().cancelled)


def test_the_numbers_of_ended_threads_mean_nothing() -> None:
    """The system gives them to other threads, which do not belong to the pool: for these it is shut down."""
    ex = handler_pool(1)
    ex.execute("run")
    own = ex._ledger.threads

    ex.shutdown()

    assert 2 == len(own)
    assert frozenset() == ex._ledger.threads


def test_twice_and_from_many_threads(gate: Gate) -> None:
    """Shutdown may be called by anybody, again, with other arguments."""
    ex = handler_pool(2)
    running = ex.submit("hold", {"gate": gate.path, "value": 1})
    gate.wait_started()
    threads = [
        threading.Thread(target=ex.shutdown, kwargs={"wait": n % 2 == 0, "cancel_futures": n % 3 == 0})
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join(LIMIT_S)
    ex.shutdown()
    ex.terminate_workers()
    ex.kill_workers()

    assert [False] * 6 == [thread.is_alive() for thread in threads]
    assert 1 == running.result(0)
    assert () == ex.workers()


@pytest.mark.parametrize("how", ["silent", "stubborn", ""])
def test_while_starting(how: str) -> None:
    """With every worker before its handshake, shutdown returns within the graces (F5), and spawns no more."""
    with recorded("snakepit.worker.spawned") as seen:
        ex = saboteur_pool(4, env={"SABOTEUR_START": how})
        began = time.monotonic()

        ex.shutdown()

    assert time.monotonic() - began < 4.0
    assert len(seen) <= 4


def test_requests_of_a_pool_that_is_starting_are_served_first(gate: Gate) -> None:
    """Accepted work is finished although no worker was ready when shutdown came."""
    ex = handler_pool(1, adapter=adapter(start_args={"gate": gate.path}))
    gate.wait_started()
    future = ex.submit("run", {"value": 1})

    ex.shutdown(wait=False)
    gate.open()

    assert 1 == future.result(LIMIT_S)
    ex.shutdown()


def test_pending_futures_end_when_the_pool_cannot_start() -> None:
    """Work that waits for a worker that never comes fails when the budget is spent, also while closing."""
    ex = saboteur_pool(
        2, env={"SABOTEUR_START": "exit"}, config=config(restart_budget=3, restart_backoff_s=0.05)
    )
    futures = [ex.submit("do", {}) for _ in range(5)]

    ex.shutdown()

    assert {True} == {future.done() for future in futures}
    assert (5, 5) == (ex.stats().requests, balance(ex.stats()))


def test_from_a_done_callback(gate: Gate) -> None:
    """A callback may shut the pool down; it does not wait, and queued work is finished."""
    ex = handler_pool(1)
    first = ex.submit("hold", {"gate": gate.path})
    second = ex.submit("run", {"value": 2})
    first.add_done_callback(lambda _: ex.shutdown(wait=True))
    gate.wait_started()
    gate.open()

    assert 2 == second.result(LIMIT_S)
    ex.shutdown()


def test_sixteen_stubborn_workers_share_one_grace() -> None:
    """Workers that ignore EOF and TERM are killed together, after one grace each kind (F79)."""
    quick = config(shutdown_grace_s=0.5, kill_grace_s=0.5)
    ex = saboteur_pool(16, env={"SABOTEUR_START": "stubborn"}, config=quick)
    ex.wait_ready(timeout=30, workers=16)
    pids = [worker.pid for worker in ex.workers()]
    began = time.monotonic()

    ex.shutdown()
    took_s = time.monotonic() - began

    assert [True] * 16 == [is_gone(pid or 0) for pid in pids]
    assert 1.0 <= took_s < 3.5


def test_submit_racing_shutdown() -> None:
    """A submit either raises or its future ends; nothing in between."""
    for _ in range(5):
        ex = handler_pool(2)
        ex.wait_ready()
        futures: list[Future[Any]] = []
        refused = threading.Event()
        begun = threading.Semaphore(0)

        def submit(
            ex: SnakepitExecutor = ex,
            futures: list[Future[Any]] = futures,
            refused: threading.Event = refused,
            begun: threading.Semaphore = begun,
        ) -> None:
            while not refused.is_set():
                try:
                    futures.append(ex.submit("run", {"value": 1}))
                    begun.release()
                except RuntimeError:
                    refused.set()

        threads = [threading.Thread(target=submit) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            begun.acquire()
        ex.shutdown()
        for thread in threads:
            thread.join(LIMIT_S)

        assert {1} == {future.result(0) for future in futures}
        assert len(futures) == ex.stats().requests == ex.stats().completed


def test_the_with_block_on_ctrl_c(gate: Gate) -> None:
    """KeyboardInterrupt cancels the queue and ends what runs after the grace."""
    running = queued = None
    with pytest.raises(KeyboardInterrupt), handler_pool(1) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        queued = ex.submit("run", {})
        gate.wait_started()
        raise KeyboardInterrupt

    assert isinstance(running.exception(0), WorkerDied)
    assert queued.cancelled()


def test_the_with_block_on_another_exception(gate: Gate) -> None:
    """Any other exception finishes accepted work, as in the standard library."""
    future = None
    with pytest.raises(ValueError, match="mine"), handler_pool(1) as ex:
        future = ex.submit("run", {"value": 1})
        raise ValueError("mine")

    assert 1 == future.result(0)


def test_closing_one_pool_and_opening_another() -> None:
    """State lives in the pool: one after the other and both at once (F56, F85)."""
    with handler_pool(1) as first:
        with handler_pool(1) as second:
            assert first.execute("pid") != second.execute("pid")
        assert isinstance(first.execute("pid"), int)
    with handler_pool(1) as third:
        assert 1 == third.execute("run", {"value": 1})


@pytest.mark.parametrize("end", ["shutdown", "cancel", "timeout", "terminate_workers", "kill_workers"])
def test_every_future_ends_whatever_the_end(end: str, make_gate: Callable[[], Gate]) -> None:
    """Running, sent ahead, queued, pinned, before set-up: each future ends, the counters add up (F81)."""
    gate, session_gate = make_gate(), make_gate()
    ex = handler_pool(2)
    ex.wait_ready(workers=2)
    wait([ex.submit("run", {"value": n}) for n in range(200)], LIMIT_S)
    futures = [ex.submit("run", {"value": n}) for n in range(50)]
    futures += [
        ex.submit("hold", {"gate": gate.path}),
        ex.submit("hold", {"gate": session_gate.path}, session="s"),
    ]
    gate.wait_started()
    session_gate.wait_started()
    futures += [ex.submit("run", {"value": n}) for n in range(20)]
    futures += [ex.submit("run", {"value": n}, session="s") for n in range(5)]
    futures += [ex.session(f"t{n}", setup=[("run",)], affinity="hint").submit("run") for n in range(3)]
    futures += [ex.submit("run", {"value": n}, priority=1, queue_timeout=60) for n in range(5)]

    if end == "shutdown":
        gate.open()
        session_gate.open()
        ex.shutdown()
    elif end == "cancel":
        ex.shutdown(wait=False, cancel_futures=True)
        gate.open()
        session_gate.open()
        ex.shutdown()
    elif end == "timeout":
        ex.shutdown(timeout=0.1)
    else:
        getattr(ex, end)()

    assert set() == wait(futures, LIMIT_S).not_done
    ex.shutdown()
    stats = ex.stats()
    assert stats.requests == balance(stats) == 200 + len(futures)
    assert (0, 0) == (stats.queued, stats.running)
    for future in futures:
        try:
            error = future.exception(0)
        except CancelledError:
            continue
        assert error is None or isinstance(error, WorkerDied)
    wait_until(lambda: ex.stats().workers == 0)


def test_a_failure_of_the_manager_ends_everything(gate: Gate) -> None:
    """An exception on the pool's own thread: every future and waiter gets PoolBroken with the cause (F50)."""
    with handler_pool(2) as ex:
        futures = [ex.submit("hold", {"gate": gate.path}) for _ in range(2)]
        pids = [arrival.pid for arrival in gate.wait_started(2)]
        futures += [ex.submit("run"), ex.submit("run", session="s")]
        outcome: list[BaseException] = []

        def wait_for_more() -> None:
            try:
                ex.wait_ready(timeout=None, workers=2)
            except BaseException as error:
                outcome.append(error)

        os.kill(pids[0], signal.SIGSTOP)
        manager = ex._manager

        def fail(_: object) -> None:
            raise ZeroDivisionError("manager")

        answers: list[object] = []
        asker = threading.Thread(target=lambda: answers.append(ex.workers()))
        with manager_held(ex):
            # Both are drained in one turn; the second question must not be lost with the first.
            manager.post(Query(fail))
            asker.start()
            wait_until(lambda: len(manager._inbox._items) == 2)
        errors = [future.exception(LIMIT_S) for future in futures]
        asker.join(LIMIT_S)
        with pytest.raises(PoolBroken) as later:
            ex.submit("run")
        wait_for_more()

    assert [PoolBroken] * 4 == [type(error) for error in errors]
    assert all(isinstance(error.__cause__, ZeroDivisionError) for error in (*errors, later.value))
    assert [()] == answers
    assert all(map(is_gone, pids))
    assert [PoolBroken] == [type(error) for error in outcome]
    assert (4, 4) == (ex.stats().errors, balance(ex.stats()))


def test_who_waits_for_workers_is_told_when_the_manager_fails() -> None:
    """A waiter without a time-out does not wait for ever."""
    with saboteur_pool(1, env={"SABOTEUR_START": "silent"}) as ex:
        outcome: list[BaseException] = []

        def wait_ready() -> None:
            try:
                ex.wait_ready(timeout=None)
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=wait_ready)
        thread.start()
        wait_until(lambda: ex._manager.ask(lambda scheduler: scheduler._waiters))

        def fail(_: object) -> None:
            raise ZeroDivisionError("manager")

        ex._manager.ask(fail)
        thread.join(LIMIT_S)

    assert [PoolBroken] == [type(error) for error in outcome]
