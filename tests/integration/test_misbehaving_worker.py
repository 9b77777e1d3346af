"""A worker that breaks the protocol, its pipes or itself costs one call and is replaced."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, balance, config, lines, recorded, saboteur_pool

from snakepit import PoolBroken, ProtocolError, WorkerDied, WorkerStartError

from leaks import is_gone, wait_until


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(
    ("args", "kind", "text"),
    [
        ({"how": "print"}, ProtocolError, "debug: here I am"),
        ({"how": "bad_json"}, ProtocolError, "oops"),
        ({"how": "nan"}, ProtocolError, "NaN"),
        ({"how": "array"}, ProtocolError, "no JSON object"),
        ({"how": "header"}, ProtocolError, "4294967295 bytes"),
        ({"how": "zero"}, ProtocolError, "0 bytes"),
        ({"how": "large"}, ProtocolError, "68157440 bytes"),
        ({"how": "deep"}, ProtocolError, "strict JSON"),
        ({"how": "no_success"}, ProtocolError, "without 'success'"),
        ({"how": "half_exit"}, WorkerDied, "exit code 0"),
        ({"how": "unknown_id"}, ProtocolError, "never issued"),
        ({"how": "text_id"}, ProtocolError, "reply to id '"),
        ({"how": "close_out"}, ProtocolError, "closed its reply pipe"),
        ({"how": "exit", "code": 0}, WorkerDied, "exit code 0"),
        ({"how": "exit", "code": 9, "text": "no disk"}, WorkerDied, "no disk"),
        ({"how": "signal", "number": int(signal.SIGSEGV)}, WorkerDied, "SIGSEGV"),
    ],
    ids=lambda value: value["how"] if isinstance(value, dict) else None,
)
def test_sabotage_fails_its_call_only(
    level: int, args: dict[str, Any], kind: type[Exception], text: str
) -> None:
    """The call fails at once with the cause, the worker is replaced, and the next call succeeds."""
    with saboteur_pool(level=level) as ex:
        before = ex.execute("do", {"value": 1})

        error = ex.submit("do", args).exception(LIMIT_S)
        after = ex.submit("do", {"value": 2}).result(LIMIT_S)

        stats = ex.stats()

    assert (1, 2) == (before, after)
    assert kind is type(error)
    assert text in str(error)
    assert (3, 2, 1, 1) == (stats.requests, stats.completed, stats.errors, stats.restarts)


@pytest.mark.parametrize("level", [0, 1])
def test_half_a_frame_then_silence_ends_with_the_timeout(level: int) -> None:
    """A worker that stops in the middle of a frame costs the call its time-out, not for ever."""
    with saboteur_pool(level=level) as ex:
        future = ex.submit("do", {"how": "half_hang"}, timeout=0.3)

        error = future.exception(LIMIT_S)

        assert "exceeded its time-out of 0.3 s" in str(error)
        assert 1 == ex.submit("do", {"value": 1}).result(LIMIT_S)
        assert 1 == ex.stats().command_timeouts


def test_a_reply_before_garbage_counts_and_nobody_else_is_hurt() -> None:
    """A good reply and stray text in one read: the reply is delivered, the next call has a new worker."""
    with saboteur_pool(level=0) as ex:
        first, second = ex.submit("do", {"how": "reply_print"}), ex.submit("do", {"value": "next"})

        results = [first.result(LIMIT_S), second.result(LIMIT_S)]

        assert ["good", "next"] == results
        assert first.pid != second.pid


@pytest.mark.parametrize("how", ["twice", "late"])
def test_replies_to_settled_ids_are_dropped(how: str) -> None:
    """A second or a late reply changes no result, and the worker stays."""
    with saboteur_pool() as ex:
        ex.execute("do", {"value": 0})
        first = ex.submit("do", {"how": how})
        rest = [ex.submit("do", {"value": n}) for n in range(5)]

        results = [future.result(LIMIT_S) for future in (first, *rest)]

        assert ["first" if how == "twice" else "own", 0, 1, 2, 3, 4] == results
        assert 1 == len({future.pid for future in (first, *rest)})
        assert 0 == ex.stats().restarts


@pytest.mark.parametrize("level", [0, 1])
def test_a_flood_on_stderr_passes(level: int) -> None:
    """20 MB on stderr do not block the worker."""
    with saboteur_pool(level=level) as ex:
        result = ex.submit("do", {"how": "stderr", "bytes": 20_000_000}).result(60)

        assert "quiet" == result


def test_a_worker_that_ignores_eof_and_term_is_killed() -> None:
    """Shutdown ends a worker that ignores both, after the graces."""
    with saboteur_pool() as ex:
        pid = ex.execute("do", {"how": "stubborn"})

        assert not is_gone(pid)

    assert is_gone(pid)


@pytest.mark.parametrize("own_session", [False, True])
@pytest.mark.parametrize("level", [0, 1])
def test_a_grandchild_with_the_pipe_delays_nobody(level: int, own_session: bool, tmp_path: Path) -> None:
    """The worker's death is seen although a grandchild holds its pipes; the grandchild goes as well."""
    path = tmp_path / "pid"
    with saboteur_pool(level=level) as ex:
        args = {"how": "grandchild", "path": str(path), "own_session": own_session, "code": 3}

        error = ex.submit("do", args).exception(LIMIT_S)
        after = ex.submit("do", {"value": 1}).result(LIMIT_S)

        assert (WorkerDied, 3) == (type(error), error.exit_code)
        assert 1 == after
    wait_until(lambda: is_gone(int(path.read_text())), what="the grandchild is gone")


def test_grandchildren_end_with_the_pool(tmp_path: Path) -> None:
    """Shutdown leaves no grandchild of a healthy worker, whether or not it has left the session."""
    paths = [tmp_path / "plain", tmp_path / "setsid"]
    with saboteur_pool() as ex:
        for path, own in zip(paths, [False, True], strict=True):
            ex.execute("do", {"how": "grandchild", "path": str(path), "own_session": own, "reply": True})

    for path in paths:
        wait_until(lambda pid=path: is_gone(int(pid.read_text())), what="the grandchild is gone")


def test_a_worker_that_closes_its_input_is_replaced() -> None:
    """A request that finds the request pipe without a reader fails soon, and the next is served."""
    with saboteur_pool() as ex:
        ex.execute("do", {"how": "close_in"})

        error = ex.submit("do", {"value": 1}).exception(LIMIT_S)

        assert "closed" in str(error)
        assert 2 == ex.submit("do", {"value": 2}).result(LIMIT_S)


def test_a_stopped_idle_worker_is_found_by_the_health_check() -> None:
    """A worker stopped while idle is replaced within the interval and the time-out of the check."""
    quick = config(health_check_interval_s=0.2, health_check_timeout_s=0.2)
    with recorded("snakepit.worker.exited") as seen, saboteur_pool(config=quick) as ex:
        pid = ex.execute("do", {"how": "reply_stop"})

        wait_until(lambda: seen, 5.0, "the stopped worker has ended")
        after = ex.submit("do", {"value": 1}).result(LIMIT_S)

        assert is_gone(pid)
        assert 1 == after
        assert "health" == seen[0][2]["reason"]


def test_a_busy_worker_is_not_pinged() -> None:
    """A call that takes longer than interval and time-out of the health check is left alone."""
    quick = config(health_check_interval_s=0.05, health_check_timeout_s=0.5)
    with saboteur_pool(2, config=quick) as ex:
        busy = ex.submit("do", {"how": "hang"})
        wait_until(lambda: ex.stats().running == 1)

        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            assert 1 == ex.execute("do", {"value": 1})

        assert busy.running()
        assert (0, 1) == (ex.stats().restarts, ex.stats().busy)
        busy.cancel(running=True)


# The start ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("exit", "no model file"),
        ("print", "welcome to my worker"),
        ("text", "hello"),
        ("status", "no status 'ok'"),
        ("refuse", "no licence"),
        ("silent", "did not answer the handshake within 0.3 s (ended by the pool)"),
        ("half", "did not answer the handshake within 0.3 s (ended by the pool)"),
    ],
)
def test_a_worker_that_cannot_start_breaks_the_pool(level: int, how: str, text: str, tmp_path: Path) -> None:
    """Pending and later requests fail with PoolBroken, caused by the WorkerStartError; nothing runs on."""
    # Only who says nothing is waited for in vain; the others may take their time on a busy machine.
    patience_s = 0.3 if "within 0.3 s" in text else LIMIT_S
    quick = config(worker_init_timeout_s=patience_s, restart_budget=3)
    log = tmp_path / "starts"
    env = {"SABOTEUR_START": how, "SABOTEUR_LOG": str(log)}
    with (
        recorded("snakepit.worker.spawned", "snakepit.worker.exited") as seen,
        saboteur_pool(2, level=level, env=env, config=quick) as ex,
    ):
        pending = ex.submit("do", {})

        error = pending.exception(LIMIT_S)
        with pytest.raises(PoolBroken) as later:
            ex.submit("do", {})
        with pytest.raises(WorkerStartError) as not_ready:
            ex.wait_ready(timeout=LIMIT_S)
        wait_until(lambda: not ex.workers(), what="no worker is left")
        stats = ex.stats()

    alive = most = 0
    for event, _, _ in seen:
        alive += 1 if event.endswith("spawned") else -1
        most = max(most, alive)
    assert isinstance(error, PoolBroken)
    for cause in (error.__cause__, later.value.__cause__, not_ready.value):
        assert isinstance(cause, WorkerStartError)
        assert text in str(cause)
        assert cause.argv[-1].endswith("saboteur.py")
    if how == "exit":
        assert (7, "no model file") == (error.__cause__.exit_code, error.__cause__.stderr_tail.strip())
    assert (0, 2) == (alive, most)
    assert all(is_gone(int(pid)) for pid in lines(log))
    assert (1, 1, 0) == (stats.requests, stats.errors, stats.workers)
    assert stats.requests == balance(stats)


def test_wait_ready_says_why_no_worker_starts() -> None:
    """A waiter that was there before the pool broke gets the WorkerStartError as well."""
    env = {"SABOTEUR_START": "exit"}
    with (
        saboteur_pool(env=env, config=config(restart_budget=2)) as ex,
        pytest.raises(WorkerStartError, match="no model file") as raised,
    ):
        ex.wait_ready(timeout=LIMIT_S)

    assert 7 == raised.value.exit_code


def test_recycle_heals_a_pool_whose_worker_was_repaired(tmp_path: Path) -> None:
    """After the cause is gone, recycle() opens the pool again."""
    good = tmp_path / "good"
    env = {"SABOTEUR_START": "exit", "SABOTEUR_GOOD": str(good)}
    with saboteur_pool(2, env=env, config=config(restart_budget=2)) as ex:
        assert isinstance(ex.submit("do", {}).exception(LIMIT_S), PoolBroken)

        good.touch()
        ex.recycle()
        result = ex.submit("do", {"value": "healed"}).result(LIMIT_S)

        assert "healed" == result
        ex.wait_ready(timeout=LIMIT_S, workers=2)
        stats = ex.stats()
        assert (2, 2) == (stats.requests, balance(stats))


def test_a_crash_after_the_first_reply_costs_no_budget() -> None:
    """More crashes than the budget has starts leave a pool that serves."""
    with saboteur_pool(config=config(restart_budget=2)) as ex:
        for n in range(5):
            assert n == ex.submit("do", {"value": n}).result(LIMIT_S)
            assert isinstance(ex.submit("do", {"how": "exit", "code": 1}).exception(LIMIT_S), WorkerDied)

        assert 5 == ex.submit("do", {"value": 5}).result(LIMIT_S)


def test_a_program_that_cannot_be_executed_fails_with_its_reason(tmp_path: Path) -> None:
    """A file that vanishes or turns bad after the constructor is a failed start with the system's reason."""
    from snakepit import CommandAdapter, SnakepitExecutor

    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF not really")
    program.chmod(0o755)
    with SnakepitExecutor(CommandAdapter([str(program)]), 1, config=config(restart_budget=2)) as ex:
        error = ex.submit("do", {}).exception(LIMIT_S)

    assert isinstance(error, PoolBroken)
    assert isinstance(error.__cause__, WorkerStartError)
    assert str(program) in str(error.__cause__)
