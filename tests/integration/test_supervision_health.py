"""Idle workers that no longer answer are found and replaced; busy and slow ones are left alone."""

from __future__ import annotations

import os
import signal
import time

import pytest
from integration.workers.pools import LIMIT_S, config, handler_pool, recorded

from snakepit import SnakepitExecutor

from gates import Gate
from leaks import is_gone, wait_until

INTERVAL_S, TIMEOUT_S = 0.2, 2.0
"""The time-out is one that a healthy worker keeps on a busy machine too."""
BOUND_S = 5.0
"""What a busy machine may add; arbitrary."""

QUICK = config(health_check_interval_s=INTERVAL_S, health_check_timeout_s=TIMEOUT_S)


def pids(ex: SnakepitExecutor) -> list[int]:
    return [info.pid for info in ex.workers() if info.pid is not None]


def states(ex: SnakepitExecutor) -> list[str]:
    return [info.state for info in ex.workers()]


@pytest.mark.parametrize("size", [1, 4])
def test_stopped_idle_workers_are_replaced(size: int) -> None:
    """However many stop at once, all are replaced within interval, time-out and the grace before KILL."""
    with recorded("snakepit.worker.exited") as seen, handler_pool(size, config=QUICK) as ex:
        ex.wait_ready(timeout=LIMIT_S, workers=size)
        stopped = pids(ex)

        began = time.monotonic()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: len(seen) == size, LIMIT_S, "all have ended")
        took_s = time.monotonic() - began
        ex.wait_ready(timeout=LIMIT_S, workers=size)

        served = [ex.submit("pid").result(LIMIT_S) for _ in range(size)]

    assert took_s < INTERVAL_S + TIMEOUT_S + QUICK.kill_grace_s + BOUND_S
    assert ["health"] * size == [metadata["reason"] for _, _, metadata in seen[:size]]
    assert all(is_gone(pid) for pid in stopped)
    assert not set(served) & set(stopped)


def test_a_stopped_busy_worker_is_left_alone(gate: Gate) -> None:
    """Health checks end the stopped idle worker beside it, not the one that runs a request."""
    with recorded("snakepit.worker.exited") as seen, handler_pool(2, config=QUICK) as ex:
        running = ex.submit("hold", {"gate": gate.path, "value": 7})
        busy = gate.wait_started()[0].pid
        ex.wait_ready(timeout=LIMIT_S, workers=2)
        (idle,) = set(pids(ex)) - {busy}

        os.kill(busy, signal.SIGSTOP)
        os.kill(idle, signal.SIGSTOP)
        wait_until(lambda: seen, LIMIT_S, "the idle one has ended")
        ex.wait_ready(timeout=LIMIT_S, workers=2)
        (fresh,) = set(pids(ex)) - {busy}
        os.kill(fresh, signal.SIGSTOP)
        wait_until(lambda: len(seen) == 2, LIMIT_S, "its successor has ended, a check later")

        assert not is_gone(busy)
        assert running.running()
        os.kill(busy, signal.SIGCONT)
        gate.open()
        assert (7, busy) == (running.result(LIMIT_S), running.pid)

    assert {idle, fresh}.isdisjoint({busy})
    assert ["health", "health"] == [metadata["reason"] for _, _, metadata in seen[:2]]


def test_a_late_answer_in_time_is_good() -> None:
    """A worker that answers its check late, but within the time-out, stays and serves what waited."""
    patient = config(health_check_interval_s=INTERVAL_S, health_check_timeout_s=LIMIT_S)
    with recorded("snakepit.worker.exited") as seen, handler_pool(config=patient) as ex:
        pid = ex.submit("pid").result(LIMIT_S)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: states(ex) == ["checking"], LIMIT_S, "the check is in its pipe")

        waiting = ex.submit("pid")
        assert not waiting.running()
        os.kill(pid, signal.SIGCONT)

        assert pid == waiting.result(LIMIT_S)
        assert [] == seen
        assert 0 == ex.stats().restarts


def test_an_answer_that_comes_too_late_changes_nothing() -> None:
    """The late answer of a worker that is being ended for its silence is dropped; what waited runs elsewhere, once."""
    with recorded("snakepit.worker.exited") as seen, handler_pool(config=QUICK) as ex:
        # TERM does not end it, and the pool lets a stopped process go on with it: so it answers, until KILL.
        pid = ex.submit("ignore_term").result(LIMIT_S)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: states(ex) == ["checking"] or seen, LIMIT_S, "the check is in its pipe")

        waiting = ex.submit("pid")

        assert pid != waiting.result(LIMIT_S)
        stats = ex.stats()
        assert (2, 2, 0, 1) == (stats.requests, stats.completed, stats.errors, stats.restarts)
        assert [("health", signal.SIGKILL)] == [(metadata["reason"], metadata["signal"]) for _, _, metadata in seen]
