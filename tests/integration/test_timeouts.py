"""Time-outs end what they say they end, at their time; cancel(running=True) and the hard ends."""

from __future__ import annotations

import os
import select
import signal
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import (
    HANDLERS,
    LIMIT_S,
    adapter,
    balance,
    config,
    handler_pool,
    lines,
    manager_held,
    saboteur_pool,
)

from snakepit import CommandTimeout, PythonAdapter, QueueTimeout, WorkerDied

import gates
from gates import Gate
from leaks import is_gone, wait_until


class Timed(PythonAdapter):
    """Gives each command its own time-out."""

    def __init__(self, timeout_s: float | None) -> None:
        super().__init__(HANDLERS, env={"PYTHONPATH": gates.DIRECTORY})
        self.timeout_s = timeout_s
        self.asked: list[tuple[str, Any]] = []

    def command_timeout(self, command: str, args: Any) -> float | None:
        self.asked.append((command, args))
        return self.timeout_s


def test_a_command_that_runs_too_long_is_ended(gate: Gate, tmp_path: Path) -> None:
    """The future fails at its deadline, the worker is gone, the next call works, and it ran once (T24)."""
    log = tmp_path / "runs"
    with handler_pool(1) as ex:
        ex.wait_ready()
        began = time.monotonic()
        future = ex.submit("hold", {"gate": gate.path, "log": str(log), "value": 1}, timeout=1.0)
        (arrival,) = gate.wait_started()

        error = future.exception(LIMIT_S)
        took_s = time.monotonic() - began

        assert isinstance(error, CommandTimeout)
        assert 1.0 <= took_s < 2.2
        assert "'hold' exceeded its time-out of 1.0 s" in str(error)
        assert "waited" in str(error)
        assert "ran" in str(error)
        assert f"pid {arrival.pid}" in str(error)
        assert "next" == ex.submit("run", {"value": "next"}).result(LIMIT_S)
        assert is_gone(arrival.pid)
        assert ["1"] == lines(log)
        stats = ex.stats()
        assert (1, 1, 1) == (stats.command_timeouts, stats.completed, stats.restarts)


def test_a_stubborn_worker_is_killed_after_the_grace() -> None:
    """The future does not wait for a worker that ignores TERM; KILL follows, and then the replacement."""
    with saboteur_pool(1, config=config(kill_grace_s=0.2)) as ex:
        pid = ex.execute("do", {"how": "stubborn"})
        future = ex.submit("do", {"how": "hang", "ignore_term": True}, timeout=0.1)

        assert isinstance(future.exception(LIMIT_S), CommandTimeout)
        assert pid == future.pid
        after = ex.submit("do", {"value": 1})

        assert 1 == after.result(LIMIT_S)
        assert pid != after.pid
        assert is_gone(pid)


@pytest.mark.parametrize(
    ("call_s", "adapter_s", "pool_s"),
    [(0.1, 60.0, 60.0), ("inherit", 0.1, 60.0), ("inherit", "none", 0.1), (0.1, "none", None)],
    ids=["call", "adapter", "pool", "call-alone"],
)
def test_the_nearest_timeout_is_applied(gate: Gate, call_s: Any, adapter_s: Any, pool_s: Any) -> None:
    """Per call goes before the adapter's, that before the pool's, and it is applied (T23)."""
    kind = adapter() if adapter_s == "none" else Timed(adapter_s)
    options = {} if call_s == "inherit" else {"timeout": call_s}
    with handler_pool(1, adapter=kind, timeout=pool_s) as ex:
        future = ex.submit("hold", {"gate": gate.path}, **options)

        error = future.exception(LIMIT_S)

    assert "time-out of 0.1 s" in str(error)


@pytest.mark.parametrize("options", [{"timeout": None}, {}], ids=["per-call", "adapter"])
def test_none_is_no_limit_and_overrides(gate: Gate, options: dict[str, Any]) -> None:
    """An explicit None, from the call or the adapter, lifts the limit outside it."""
    kind = adapter() if options else Timed(None)
    with handler_pool(1, adapter=kind, timeout=0.2) as ex:
        future = ex.submit("hold", {"gate": gate.path, "value": 1}, **options)
        gate.wait_started()

        with pytest.raises(TimeoutError):
            future.result(0.4)
        gate.open()

        assert 1 == future.result(LIMIT_S)


def test_the_clock_starts_when_the_request_is_the_oldest(gate: Gate) -> None:
    """Time in the queue is not run time: the second call has its whole time-out."""
    with handler_pool(1) as ex:
        first = ex.submit("hold", {"gate": gate.path, "value": 1}, timeout=None)
        second = ex.submit("run", {"value": 2}, timeout=1.0)
        gate.wait_started()

        with pytest.raises(TimeoutError):
            second.result(1.2)
        gate.open()

        assert [1, 2] == [first.result(LIMIT_S), second.result(LIMIT_S)]


def test_reply_beats_deadline(gate: Gate) -> None:
    """A reply that lies in the pipe when the deadline is handled is the result."""
    with handler_pool(1) as ex:
        ex.wait_ready()
        future = ex.submit("hold", {"gate": gate.path, "value": "in time"}, timeout=2.0)
        sent_at = time.monotonic()
        gate.wait_started()
        (link,) = ex._manager._links

        with manager_held(ex):
            gate.open()
            wait_until(
                lambda: select.select([link.channel.reply_fd], [], [], 0)[0], what="the reply is there"
            )
            wait_until(lambda: time.monotonic() > sent_at + 2.05, what="the deadline is over")
            assert not future.done()

        assert "in time" == future.result(LIMIT_S)
        assert (0, 1) == (ex.stats().command_timeouts, ex.stats().completed)


def test_cancel_running_ends_that_worker_only(make_gate: Any, tmp_path: Path) -> None:
    """cancel(running=True) fails the future with CancelledError at once and ends its worker, no other."""
    gate, other_gate = make_gate(), make_gate()
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        doomed = ex.submit("hold", {"gate": gate.path})
        other = ex.submit("hold", {"gate": other_gate.path, "value": "other"})
        (arrival,), _ = gate.wait_started(), other_gate.wait_started()

        assert not doomed.cancel()
        assert doomed.cancel(running=True)

        with pytest.raises(CancelledError):
            doomed.result(0)
        wait_until(lambda: is_gone(arrival.pid))
        other_gate.open()
        assert "other" == other.result(LIMIT_S)
        assert doomed.cancel()
        assert not other.cancel(running=True)
        stats = ex.stats()
        assert (2, 1, 1, 2) == (stats.requests, stats.cancelled, stats.completed, balance(stats))


@pytest.mark.parametrize("method", ["terminate_workers", "kill_workers"])
def test_the_hard_ends_leave_nothing(gate: Gate, method: str) -> None:
    """Running requests fail with WorkerDied, queued ones are cancelled, submit raises, no process is left."""
    with handler_pool(2) as ex:
        running = [ex.submit("hold", {"gate": gate.path}) for _ in range(2)]
        pids = [arrival.pid for arrival in gate.wait_started(2)]
        queued = [ex.submit("run", {}) for _ in range(3)]

        getattr(ex, method)()

        assert [WorkerDied] * 2 == [type(future.exception(LIMIT_S)) for future in running]
        assert all(future.cancelled() for future in queued)
        with pytest.raises(RuntimeError, match="after shutdown"):
            ex.submit("run", {})
        wait_until(lambda: all(map(is_gone, pids)))
        stats = ex.stats()
        assert (5, 2, 3) == (stats.requests, stats.errors, stats.cancelled)


def test_shutdown_with_a_timeout_ends_what_still_runs(gate: Gate) -> None:
    """Accepted work has until the time-out; then it is ended and the rest is cancelled."""
    ex = handler_pool(1)
    running = ex.submit("hold", {"gate": gate.path})
    queued = ex.submit("run", {})
    (arrival,) = gate.wait_started()

    ex.shutdown(timeout=0.2)

    assert isinstance(running.exception(0), WorkerDied)
    assert queued.cancelled()
    assert is_gone(arrival.pid)


# The queue's clock ----------------------------------------------------------------------------------


def test_queue_timeout_never_runs(gate: Gate, tmp_path: Path) -> None:
    """A request that waits too long fails with QueueTimeout at its time and never runs."""
    log = tmp_path / "runs"
    with handler_pool(1) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        began = time.monotonic()
        waiting = ex.submit("run", {"value": "never", "log": str(log)}, queue_timeout=0.2)

        error = waiting.exception(LIMIT_S)
        took_s = time.monotonic() - began
        gate.open()
        running.result(LIMIT_S)
        ex.execute("run", {"value": "after", "log": str(log)})

        assert isinstance(error, QueueTimeout)
        assert 0.2 <= took_s < 1.5
        assert "waited" in str(error)
        assert ["after"] == lines(log)
        assert (1, 0) == (ex.stats().queue_timeouts, ex.stats().errors)


def test_queue_timeout_holds_for_a_pool_that_is_starting(gate: Gate) -> None:
    """The start-up of the workers counts as waiting."""
    with handler_pool(1, adapter=adapter(start_args={"gate": gate.path}), queue_timeout=0.2) as ex:
        gate.wait_started()

        error = ex.submit("run", {}).exception(LIMIT_S)
        gate.open()

        assert isinstance(error, QueueTimeout)
        assert 3 == ex.submit("run", {"value": 3}, queue_timeout=None).result(LIMIT_S)


def test_queue_timeout_ends_with_the_dispatch(gate: Gate) -> None:
    """Once it runs, a request has no queue time-out any more (T17)."""
    with handler_pool(1) as ex:
        ex.wait_ready()
        future = ex.submit("hold", {"gate": gate.path, "value": 1}, queue_timeout=1.0)
        gate.wait_started()

        with pytest.raises(TimeoutError):
            future.result(1.2)
        gate.open()

        assert 1 == future.result(LIMIT_S)
        assert 0 == ex.stats().queue_timeouts


def test_a_timed_out_worker_is_not_pulled_from_under_a_signal(gate: Gate) -> None:
    """A worker that dies by itself while its call times out is one failure, not two."""
    with handler_pool(1) as ex:
        ex.wait_ready()
        future = ex.submit("hold", {"gate": gate.path}, timeout=2.0)
        sent_at = time.monotonic()
        (arrival,) = gate.wait_started()
        with manager_held(ex):
            os.kill(arrival.pid, signal.SIGKILL)
            wait_until(lambda: time.monotonic() > sent_at + 2.05, what="the deadline is over")
            assert not future.done()

        assert isinstance(future.exception(LIMIT_S), (WorkerDied, CommandTimeout))
        assert 2 == ex.submit("run", {"value": 2}).result(LIMIT_S)
        stats = ex.stats()
        assert (2, 2) == (stats.requests, balance(stats))
