"""The queue: its limits, its order, what leaves it, and that nobody waits behind a call that never ends."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, balance, config, handler_pool, lines, manager_held

from snakepit import QueueFull, QueueTimeout, SnakepitExecutor

from gates import Gate
from leaks import wait_until


def test_limits_and_timeouts_together(gate: Gate, tmp_path: Path) -> None:
    """One worker held, a queue of 5 with queue_timeout: 5 time out, 4 are refused, 1 has a result (T16)."""
    log = tmp_path / "runs"
    with handler_pool(1, max_queue_size=5, queue_timeout=0.2) as ex:
        ex.wait_ready()
        running = ex.submit("hold", {"gate": gate.path, "value": "held", "log": str(log)})
        gate.wait_started()
        queued, refused = [], 0
        # None of the queue's time-outs is over before the last call is refused.
        with manager_held(ex):
            for n in range(9):
                try:
                    queued.append(ex.submit("run", {"value": n, "log": str(log)}))
                except QueueFull as error:
                    refused += 1
                    assert "6 unsettled requests, 6 allowed" in str(error)

        wait(queued, LIMIT_S)
        gate.open()

        assert "held" == running.result(LIMIT_S)
        assert (5, 4) == (len(queued), refused)
        assert {QueueTimeout} == {type(future.exception(0)) for future in queued}
        stats = ex.stats()
    assert ["held"] == lines(log)
    assert (6, 1, 5, 4) == (stats.requests, stats.completed, stats.queue_timeouts, stats.pool_saturated)


def test_cancelled_requests_leave_the_queue_at_once(gate: Gate, tmp_path: Path) -> None:
    """A full queue of cancelled requests has room, and what was cancelled never runs (T18, T22)."""
    log = tmp_path / "runs"
    with handler_pool(1, max_queue_size=3) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        doomed = [ex.submit("run", {"value": n, "log": str(log)}) for n in range(3)]
        with pytest.raises(QueueFull):
            ex.submit("run", {})

        assert [True] * 3 == [future.cancel() for future in doomed]
        assert 0 == ex.stats().queued
        fresh = [ex.submit("run", {"value": f"fresh {n}", "log": str(log)}) for n in range(3)]
        gate.open()

        running.result(LIMIT_S)
        assert ["fresh 0", "fresh 1", "fresh 2"] == [future.result(LIMIT_S) for future in fresh]
        assert (3, 7) == (ex.stats().cancelled, balance(ex.stats()))
    assert ["fresh 0", "fresh 1", "fresh 2"] == lines(log)


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run a call in a thread of its own; its result or exception lands in the list."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def blocked(ex: SnakepitExecutor) -> int:
    """Return how many submits wait for room."""
    return ex._ledger._blocked


def test_a_blocking_submit_is_woken_by_room(gate: Gate) -> None:
    """queue_full="block" waits until a request is settled, then accepts."""
    with handler_pool(1, max_queue_size=0, queue_full="block") as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        thread, outcome = in_thread(lambda: ex.submit("run", {"value": 1}))
        wait_until(lambda: blocked(ex) == 1)

        assert [] == outcome
        gate.open()
        thread.join(LIMIT_S)

        running.result(LIMIT_S)
        assert 1 == outcome[0].result(LIMIT_S)
        assert 0 == ex.stats().pool_saturated


def test_a_blocking_submit_gives_up_after_the_queue_timeout(gate: Gate) -> None:
    """Waiting for room counts against queue_timeout; then it is QueueFull and was never accepted."""
    with handler_pool(1, max_queue_size=0, queue_full="block") as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()

        with pytest.raises(QueueFull, match="saturated"):
            ex.submit("run", {}, queue_timeout=0.1)
        gate.open()

        running.result(LIMIT_S)
        assert (1, 1) == (ex.stats().requests, ex.stats().pool_saturated)


def test_a_blocking_submit_is_woken_by_shutdown(gate: Gate) -> None:
    """A shutdown ends the wait with the error of a submit after shutdown."""
    with handler_pool(1, max_queue_size=0, queue_full="block") as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        waiting = [in_thread(lambda: ex.submit("run", {})) for _ in range(3)]
        wait_until(lambda: blocked(ex) == 3)

        ex.shutdown(wait=False)
        for thread, _ in waiting:
            thread.join(LIMIT_S)
        gate.open()

        running.result(LIMIT_S)
        assert ["cannot schedule new futures after shutdown"] * 3 == [
            str(outcome[0]) for _, outcome in waiting
        ]


def test_a_callback_never_blocks() -> None:
    """On the pool's own thread a full queue is QueueFull, also with "block"."""
    outcome: list[Any] = []
    done = threading.Event()
    with handler_pool(1, max_queue_size=1, queue_full="block") as ex:

        def fill(_: object) -> None:
            try:
                for _ in range(3):
                    ex.submit("run")
            except QueueFull as error:
                outcome.append(error)
            done.set()

        ex.submit("run").add_done_callback(fill)
        assert done.wait(LIMIT_S)

    assert [QueueFull] == [type(error) for error in outcome]


def test_queued_bytes_are_bounded(gate: Gate) -> None:
    """Encoded requests that wait may hold max_queued_bytes; what is running counts no more."""
    with handler_pool(1, config=config(max_queued_bytes=10_000)) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        first = ex.submit("size", {"data": b"x" * 6000})
        with pytest.raises(QueueFull, match=r"max_queued_bytes \(10000\)"):
            ex.submit("size", {"data": b"x" * 6000})
        small = ex.submit("size", {"data": b"x" * 100})

        assert first.cancel()
        third = ex.submit("size", {"data": b"x" * 9000})
        gate.open()

        running.result(LIMIT_S)
        assert [100, 9000] == [small.result(LIMIT_S), third.result(LIMIT_S)]
        # One that is larger than the limit goes into an empty queue.
        assert 50_000 == ex.submit("size", {"data": b"x" * 50_000}).result(LIMIT_S)


def test_priorities(gate: Gate, tmp_path: Path) -> None:
    """Larger runs sooner, and equals in the order of acceptance."""
    log = tmp_path / "runs"
    with handler_pool(1) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        futures = [
            ex.submit("run", {"value": f"{priority}.{n}", "log": str(log)}, priority=priority)
            for n in range(3)
            for priority in (0, 5, -5, 1)
        ]
        gate.open()
        wait([running, *futures], LIMIT_S)

    expected = [f"{priority}.{n}" for priority in (5, 1, 0, -5) for n in range(3)]
    assert expected == lines(log)


def test_a_pinned_head_blocks_nobody(make_gate: Callable[[], Gate]) -> None:
    """The queue's head waits for its session's worker; what is behind it runs on the other (T20)."""
    gate_a, gate_b = make_gate(), make_gate()
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        held_a = ex.submit("hold", {"gate": gate_a.path}, session="a")
        (arrival_a,) = gate_a.wait_started()
        held_b = ex.submit("hold", {"gate": gate_b.path})
        (arrival_b,) = gate_b.wait_started()
        pinned = ex.submit("pid", {}, session="a")
        free = ex.submit("pid", {})

        gate_b.release()

        assert arrival_b.pid == free.result(LIMIT_S)
        assert not pinned.done()
        gate_a.open()
        assert arrival_a.pid == pinned.result(LIMIT_S)
        wait([held_a, held_b], LIMIT_S)


def test_what_was_sent_ahead_is_taken_back(gate: Gate) -> None:
    """After tiny calls a call may sit in the pipe behind one that waits for it: it runs elsewhere."""
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        for _ in range(3):
            assert list(range(200)) == list(ex.map("run", ({"value": n} for n in range(200))))
        first = [ex.submit("run", {"value": n}) for n in range(20)]
        blocker = ex.submit("hold", {"gate": gate.path, "value": "held"})
        later = [ex.submit("run", {"value": n}) for n in range(300)]

        # Only when all the later calls are done is the gate opened.
        assert set() == wait(later, LIMIT_S).not_done
        assert not blocker.done()
        gate.open()

        assert "held" == blocker.result(LIMIT_S)
        assert list(range(300)) == [future.result(0) for future in later]
        assert list(range(20)) == [future.result(0) for future in first]


def test_a_sessions_requests_in_the_pipe_keep_nobody_there(gate: Gate) -> None:
    """Calls of a strict session that were sent ahead stay with their worker; those between them move."""
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        ex.execute("pid", {}, session="s")
        for _ in range(3):
            wait([ex.submit("run", {"value": n}) for n in range(200)], LIMIT_S)
        free, pinned = [], []
        with manager_held(ex):
            # All in one turn, so that the session's worker has both kinds in its pipe behind the blocker.
            free += [ex.submit("run", {"value": n}) for n in range(20)]
            blocker = ex.submit("hold", {"gate": gate.path, "value": "held"}, session="s")
            for n in range(100):
                free.append(ex.submit("run", {"value": n}))
                pinned.append(ex.submit("append", [n], session="s"))

        assert set() == wait(free, LIMIT_S).not_done
        assert not any(future.done() for future in (blocker, *pinned))
        gate.open()

        assert set() == wait([blocker, *pinned], LIMIT_S).not_done
        assert list(range(100)) == pinned[-1].result()[1]


def test_a_cancelled_flood_leaves_no_memory(gate: Gate) -> None:
    """100,000 queued and cancelled requests leave the tables as they were (F15)."""
    with handler_pool(1) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        futures = [ex.submit("run") for _ in range(100)]
        wait_until(lambda: [future.cancel() for future in futures] and ex.workers())
        futures.clear()
        before = sys.getallocatedblocks()

        for _ in range(20):
            futures = [ex.submit("run", queue_timeout=60) for _ in range(5000)]
            assert all(future.cancel() for future in futures)
        futures.clear()
        # An answer comes in a turn's first step; what the turn has decided is told, and freed, in the second.
        # The second question belongs to a later turn.
        ex.workers()
        ex.workers()
        after = sys.getallocatedblocks()
        board = ex._manager._scheduler.board

        assert (100_100, 0) == (ex.stats().cancelled, ex.stats().queued)
        assert after - before < 5000
        assert (0, 0) == (len(board.queue), len(ex._ledger.unsettled) - 1)
        gate.open()
        running.result(LIMIT_S)


def test_timed_out_flood_leaves_nothing(gate: Gate) -> None:
    """Thousands of queue time-outs in a row empty the queue and its timers (T19)."""
    with handler_pool(1) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        futures = [ex.submit("run", queue_timeout=0.05) for _ in range(5000)]

        wait(futures, LIMIT_S)

        assert (5000, 0) == (ex.stats().queue_timeouts, ex.stats().queued)
        gate.open()
        running.result(LIMIT_S)
        board = ex._manager._scheduler.board
        assert 0 == len(board.queue)
