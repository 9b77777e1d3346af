"""Workers that cannot start: attempts with pauses, a budget, the truth in every place, and healing by hand."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from integration.workers.pools import (
    LIMIT_S,
    balance,
    config,
    handler_pool,
    lines,
    recorded,
    saboteur_pool,
)

from snakepit import PoolBroken, PythonAdapter, SnakepitExecutor, WorkerStartError

from leaks import wait_until


def cpu_s(pool: str) -> float:
    """Return the CPU time that the threads of a pool have used."""
    clocks = [
        time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.name.startswith(f"snakepit-{pool}-") and thread.ident is not None
    ]
    assert 2 == len(clocks)
    return sum(map(time.clock_gettime, clocks))


def latencies(ex: SnakepitExecutor, count: int) -> list[float]:
    found = []
    for n in range(count):
        began = time.perf_counter()
        assert n == ex.execute("give", {"value": n})
        found.append(time.perf_counter() - began)
    return found


def test_pauses_between_failed_starts_and_then_the_end(tmp_path: Path) -> None:
    """As many processes as the budget allows, seen from outside, each after its pause; then none any more."""
    log = tmp_path / "starts"
    slow = config(restart_backoff_s=0.1, restart_backoff_jitter=0.2)
    env = {"SABOTEUR_START": "exit", "SABOTEUR_LOG": str(log)}
    with (
        recorded("snakepit.worker.spawned", "snakepit.worker.exited") as seen,
        saboteur_pool(env=env, config=slow) as ex,
    ):
        began = time.monotonic()

        assert isinstance(ex.submit("do", {}).exception(LIMIT_S), PoolBroken)

        took_s = time.monotonic() - began
        assert took_s >= 0.8 * (0.1 + 0.2 + 0.4 + 0.8)
        assert 5 == len(set(lines(log)))
        assert 10 == len(seen)
        assert ["start_failed"] * 5 == [m["reason"] for event, _, m in seen if event.endswith("exited")]
        before = cpu_s("pool")
        for _ in range(100):
            with pytest.raises(PoolBroken):
                ex.submit("do", {})
        assert cpu_s("pool") - before < 0.01
    assert 5 == len(lines(log))


def test_a_broken_pool_tells_the_same_everywhere() -> None:
    """Queued and later requests, waiters, stats() and workers() agree, with the last cause."""
    env = {"SABOTEUR_START": "exit"}
    with recorded("snakepit.pool.broken") as seen, saboteur_pool(3, env=env) as ex:
        queued = [ex.submit("do", {}) for _ in range(4)] + [ex.submit("do", {}, session="s")]
        errors = [future.exception(LIMIT_S) for future in queued]

        with pytest.raises(PoolBroken) as later:
            ex.submit("do", {})
        with pytest.raises(WorkerStartError) as not_ready:
            ex.wait_ready(timeout=LIMIT_S)
        wait_until(lambda: not ex.workers(), LIMIT_S, "no worker is left")
        stats = ex.stats()

    assert 1 == len(seen)
    causes = [error.__cause__ for error in errors if isinstance(error, PoolBroken)] + [later.value.__cause__]
    assert {str(not_ready.value)} == {str(cause) for cause in causes}
    assert 6 == len(causes)
    assert (7, "no model file") == (not_ready.value.exit_code, not_ready.value.stderr_tail.strip())
    assert (5, 5, 0) == (stats.requests, stats.errors, stats.workers + stats.starting + stats.busy + stats.available)
    assert stats.requests == balance(stats)


def test_healing_again_and_again(tmp_path: Path) -> None:
    """Each recycle() of a broken pool gives a full budget; once the cause is gone the pool serves."""
    good, log = tmp_path / "good", tmp_path / "starts"
    env = {"SABOTEUR_START": "exit", "SABOTEUR_GOOD": str(good), "SABOTEUR_LOG": str(log)}
    with saboteur_pool(env=env, config=config(restart_budget=3)) as ex:
        for n in range(3):
            assert isinstance(ex.submit("do", {}).exception(LIMIT_S), PoolBroken)
            assert 3 * (n + 1) == len(lines(log))
            with pytest.raises(PoolBroken):
                ex.submit("do", {})
            ex.recycle()

        good.touch()
        wait_until(lambda: ex.stats().available == 1 or _broken(ex), LIMIT_S, "it serves, or the last round was bad")
        ex.recycle()

        assert "healed" == ex.submit("do", {"value": "healed"}).result(LIMIT_S)
        assert ex.stats().requests == balance(ex.stats())


def _broken(ex: SnakepitExecutor) -> bool:
    try:
        ex._ledger.check_open()
    except PoolBroken:
        return True
    return False


def test_requests_that_arrive_while_a_pool_is_healed(tmp_path: Path) -> None:
    """Whatever is submitted before, between and after ends: with PoolBroken, or with its result once it is healed."""
    good = tmp_path / "good"
    env = {"SABOTEUR_START": "exit", "SABOTEUR_GOOD": str(good)}
    ends: list[str] = []
    last_ends: list[str] = []
    healed = threading.Event()

    def call(ex: SnakepitExecutor) -> None:
        while True:
            last = healed.is_set()
            try:
                end = ex.submit("do", {"value": "served"}).result(LIMIT_S)
            except PoolBroken:
                end = "broken"
            ends.append(end)
            if last:
                last_ends.append(end)
                return

    with saboteur_pool(2, env=env, config=config(restart_budget=2)) as ex:
        callers = [threading.Thread(target=call, args=(ex,)) for _ in range(4)]
        for caller in callers:
            caller.start()
        for _ in range(5):
            wait_until(lambda: _broken(ex), LIMIT_S, "broken")
            ex.recycle()
        good.touch()
        wait_until(lambda: _broken(ex) or "served" in ends, LIMIT_S, "broken for the last time, or healed")
        ex.recycle()
        healed.set()
        for caller in callers:
            caller.join(LIMIT_S)
        stats = ex.stats()

    assert not any(caller.is_alive() for caller in callers)
    assert {"served", "broken"} == set(ends)
    assert ["served"] * 4 == last_ends
    assert (stats.requests, stats.completed) == (balance(stats), ends.count("served"))


def test_a_pool_that_cannot_start_disturbs_no_other(tmp_path: Path) -> None:
    """Beside endless failed starts another pool keeps its workers and its pace, and the host its CPU."""
    log = tmp_path / "starts"
    env = {"SABOTEUR_START": "exit", "SABOTEUR_LOG": str(log)}
    endless = config(restart_budget=10_000, restart_backoff_s=0.05, restart_backoff_cap_s=0.05)
    with handler_pool(2, name="healthy") as healthy:
        healthy.wait_ready(timeout=LIMIT_S, workers=2)
        before = {info.pid for info in healthy.workers()}
        alone = statistics.median(latencies(healthy, 300))

        with saboteur_pool(2, env=env, config=endless, name="failing"):
            wait_until(lambda: len(lines(log)) >= 4, LIMIT_S, "starts fail")
            beside = statistics.median(latencies(healthy, 300))
            wait_until(lambda: len(lines(log)) >= 20, LIMIT_S, "starts fail on")
            used_s = cpu_s("failing")
            starts = len(lines(log))

        assert before == {info.pid for info in healthy.workers()}
        assert (0, 600, 0) == (healthy.stats().restarts, healthy.stats().completed, healthy.stats().errors)

    assert used_s / starts < 0.1, f"{used_s:.3f} s of CPU for {starts} starts"
    assert beside < 10 * alone + 0.01, f"{alone * 1e6:.0f} us alone, {beside * 1e6:.0f} us beside"


# What the user is told, and when --------------------------------------------------------------------


def _syntax_error(tmp_path: Path) -> tuple[PythonAdapter, str]:
    path = tmp_path / "broken_handlers.py"
    path.write_text("def oops(:\n")
    return PythonAdapter(str(path)), "SyntaxError"


def _raising_start(tmp_path: Path) -> tuple[PythonAdapter, str]:
    path = tmp_path / "raising_handlers.py"
    path.write_text(
        "from snakepit_bridge import on_start\n\n@on_start\ndef start():\n    raise OSError('no licence server')\n"
    )
    return PythonAdapter(str(path)), "no licence server"


def _wrong_interpreter(tmp_path: Path) -> tuple[PythonAdapter, str]:
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\necho no such option >&2\nexit 2\n")
    path.chmod(0o755)
    return PythonAdapter(python=str(path)), "no such option"


@pytest.mark.parametrize("make", [_syntax_error, _raising_start, _wrong_interpreter])
def test_the_first_failure_is_told_at_once(
    make: Callable[[Path], tuple[PythonAdapter, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log and wait_ready's error have the cause of the first attempt while the next ones are still to come."""
    adapter, text = make(tmp_path)
    patient = config(restart_backoff_s=LIMIT_S, restart_backoff_cap_s=LIMIT_S)
    with SnakepitExecutor(adapter, 1, config=patient) as ex, caplog.at_level(logging.WARNING, "snakepit.pool"):
        pending = ex.submit("ping")
        wait_until(lambda: "(failed start 1 of 5 in a row)" in caplog.text, LIMIT_S, "the log tells")

        with pytest.raises(TimeoutError, match=text) as late:
            ex.wait_ready(timeout=0.01)

        assert not pending.done()
        assert text in caplog.text
        assert "ended with signal" not in caplog.text
        assert isinstance(late.value.__cause__, WorkerStartError)
        pending.cancel()


def test_a_worker_that_says_nothing_is_not_blamed_for_the_pools_signal(tmp_path: Path) -> None:
    """The error says that the handshake was not answered; the signal that ended the worker was the pool's."""
    mute = config(worker_init_timeout_s=0.2, restart_budget=1)
    with saboteur_pool(env={"SABOTEUR_START": "silent"}, config=mute) as ex, pytest.raises(WorkerStartError) as raised:
        ex.wait_ready(timeout=LIMIT_S)

    assert "failed to start: it did not answer the handshake within 0.2 s (ended by the pool)" in str(raised.value)
    assert "signal" not in str(raised.value)
    assert (None, None) == (raised.value.exit_code, raised.value.signal)
    assert isinstance(raised.value.__cause__, TimeoutError)
