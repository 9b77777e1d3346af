"""A worker that dies costs the request it ran and no other; the pool comes back to its size."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, balance, config, handler_pool, lines, recorded, saboteur_pool

from snakepit import WorkerDied
from snakepit._supervision.reports import Exited

from gates import Gate
from leaks import is_gone, wait_until


def test_only_the_running_request_fails(gate: Gate) -> None:
    """The running request gets WorkerDied with the facts; the queued ones run on the next incarnation."""
    with handler_pool(1) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        (arrival,) = gate.wait_started()
        queued = [ex.submit("run", {"value": n}) for n in range(3)]

        os.kill(arrival.pid, signal.SIGKILL)

        error = running.exception(LIMIT_S)
        assert [0, 1, 2] == [future.result(LIMIT_S) for future in queued]
        (worker,) = ex.workers()
        stats = ex.stats()

    assert isinstance(error, WorkerDied)
    assert (arrival.pid, None, signal.SIGKILL, "") == (
        error.pid,
        error.exit_code,
        error.signal,
        error.stderr_tail,
    )
    assert "SIGKILL" in str(error)
    assert "'hold'" in str(error)
    assert (0, 2) == (worker.slot, worker.incarnation)
    assert worker.pid != arrival.pid
    assert (4, 3, 1, 1) == (stats.requests, stats.completed, stats.errors, stats.restarts)


def test_an_exit_tells_code_and_stderr() -> None:
    """A worker that exits by itself leaves its status and its last words in the error."""
    with handler_pool(1) as ex:
        error = ex.submit("die", {"code": 5, "text": "out of cheese\n"}).exception(LIMIT_S)

        assert isinstance(error, WorkerDied)
        assert (5, None) == (error.exit_code, error.signal)
        assert "out of cheese" in error.stderr_tail
        assert "exit code 5" in str(error)


def test_pool_comes_back_to_its_size(gate: Gate) -> None:
    """After every worker was killed the pool has as many workers as before, with other pids."""
    with handler_pool(3) as ex:
        ex.wait_ready(workers=3)
        old = {worker.pid for worker in ex.workers()}

        for pid in old:
            os.kill(pid or 0, signal.SIGKILL)
        wait_until(lambda: ex.stats().restarts == 3, what="three restarts")
        ex.wait_ready(workers=3)

        new = {worker.pid for worker in ex.workers()}
        assert (3, set()) == (len(new), new & old)
        assert {0, 1, 2} == {worker.slot for worker in ex.workers()}


def test_reply_then_exit() -> None:
    """A reply that was written before the exit is the result, whatever is seen first."""
    with saboteur_pool(1) as ex:
        for restarts, code in enumerate((0, 0, 1, 0, 0), 1):
            assert "last words" == ex.submit("do", {"how": "reply_exit", "code": code}).result(LIMIT_S)
            wait_until(lambda seen=restarts: ex.stats().restarts == seen)
        stats = ex.stats()

    assert (5, 5, 0) == (stats.requests, stats.completed, stats.errors)


def test_the_exit_is_seen_before_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager handles the exit with the reply unread in the pipe: the reply is the result (F60)."""
    with saboteur_pool(1) as ex:
        ex.wait_ready()
        poll, inbox = ex._manager._links.poll, ex._manager._inbox
        held = []

        def poll_late(timeout_s: float | None) -> Any:
            ready = poll(timeout_s)
            if held or all(link is None for link, _ in ready):
                return ready
            wait_until(lambda: any(isinstance(item, Exited) for item in list(inbox._items)))
            held.append(ready)
            return []

        monkeypatch.setattr(ex._manager._links, "poll", poll_late)
        result = ex.submit("do", {"how": "reply_exit"}).result(LIMIT_S)

        assert "last words" == result
        assert 1 == len(held)
        wait_until(lambda: ex.stats().restarts == 1)


def test_what_was_sent_ahead_runs_exactly_once(gate: Gate, tmp_path: Path) -> None:
    """The worker dies with requests in its pipe: the one that ran fails, every other one runs once."""
    log = tmp_path / "runs"
    with handler_pool(1) as ex:
        list(ex.map("run", ({"value": n} for n in range(300))))
        running = ex.submit("hold", {"gate": gate.path, "value": "held", "log": str(log)})
        rest = [ex.submit("run", {"value": n, "log": str(log)}) for n in range(200)]
        (arrival,) = gate.wait_started()

        os.kill(arrival.pid, signal.SIGKILL)

        assert isinstance(running.exception(LIMIT_S), WorkerDied)
        assert list(range(200)) == [future.result(LIMIT_S) for future in rest]

    assert ["held", *map(str, range(200))] == lines(log)


def test_nothing_runs_twice_under_fire(tmp_path: Path) -> None:
    """Workers killed during a flood: each request runs at most once, and once if it has a result."""
    log = tmp_path / "runs"
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        futures = []
        for round_number in range(5):
            futures += [
                ex.submit("run", {"value": f"{round_number}-{n}", "log": str(log)}) for n in range(200)
            ]
            futures[-150].exception(LIMIT_S)
            for worker in ex.workers():
                if worker.pid is not None and worker.state != "condemned" and not is_gone(worker.pid):
                    os.kill(worker.pid, signal.SIGKILL)
        outcomes = [future.exception(LIMIT_S) for future in futures]
        stats = ex.stats()

    runs = lines(log)
    assert len(runs) == len(set(runs))
    finished = {f"{n // 200}-{n % 200}" for n, error in enumerate(outcomes) if error is None}
    assert finished <= set(runs)
    assert {WorkerDied} >= {type(error) for error in outcomes if error is not None}
    assert (1000, 1000) == (stats.requests, balance(stats))
    assert sum(error is not None for error in outcomes) == stats.errors <= 10


def test_a_death_in_idleness_is_replaced_and_told(make_gate: Callable[[], Gate]) -> None:
    """A worker killed while idle fails nothing; it is replaced, and the events give the reason."""
    with recorded("snakepit.worker.exited", "snakepit.worker.restarted") as seen, handler_pool(1) as ex:
        pid = ex.execute("pid")

        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ex.stats().restarts == 1)

        assert pid != ex.execute("pid")
        assert 0 == ex.stats().errors
        assert [("snakepit.worker.exited", "crash"), ("snakepit.worker.restarted", "crash")] == [
            (event, metadata["reason"]) for event, _, metadata in seen
        ]


def test_recycling_after_a_number_of_requests_loses_nothing(tmp_path: Path) -> None:
    """Far more tasks than the workers may serve are all done, once (T38)."""
    log = tmp_path / "runs"
    with handler_pool(2, config=config(max_requests_per_worker=5)) as ex:
        futures = [ex.submit("run", {"value": n, "log": str(log)}) for n in range(60)]

        assert list(range(60)) == [future.result(LIMIT_S) for future in futures]

        assert len({future.pid for future in futures}) >= 12
    assert sorted(map(str, range(60))) == sorted(lines(log))


def test_restart_worker_replaces_that_one(gate: Gate) -> None:
    """restart_worker drains the worker named, and its slot goes on with the next incarnation."""
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        first, second = ex.workers()

        ex.restart_worker(first.worker_id)
        wait_until(lambda: ex.stats().recycled == 1)
        ex.wait_ready(workers=2)

        fresh, same = ex.workers()
        assert (first.slot, first.incarnation + 1) == (fresh.slot, fresh.incarnation)
        assert second.pid == same.pid
        assert is_gone(first.pid or 0)
