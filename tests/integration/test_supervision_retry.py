"""No request is repeated by the pool, whatever ends its worker; users repeat what may run twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import stamina
from integration.workers.pools import FOLDER, LIMIT_S, balance, config, handler_pool, lines

from snakepit import CommandError, CommandTimeout, PoolBroken, PythonAdapter, QueueFull, SnakepitExecutor, WorkerDied

from gates import Gate
from leaks import wait_until

RETRIED = (WorkerDied, QueueFull)


def supervised(**options: object) -> SnakepitExecutor:
    return SnakepitExecutor(PythonAdapter(str(FOLDER / "supervised.py")), 1, config=config(), **options)  # type: ignore[arg-type]


def test_nothing_runs_twice_through_crashes_time_outs_and_recycling(tmp_path: Path, gate: Gate) -> None:
    """Each request is in the run log once at most, and exactly once when it has a result."""
    log = tmp_path / "runs"
    with handler_pool(3) as ex:
        ex.wait_ready(timeout=LIMIT_S, workers=3)
        held = {n: ex.submit("hold", {"gate": gate.path, "value": n, "log": str(log)}, timeout=None) for n in range(2)}
        slow = ex.submit("hold", {"gate": gate.path, "value": "slow", "log": str(log)}, timeout=1.0)
        arrivals = {arrival.label: arrival.pid for arrival in gate.wait_started(3)}
        many = {n: ex.submit("run", {"value": n, "log": str(log)}) for n in range(2, 300)}

        ex.recycle()
        os.kill(arrivals["0"], signal.SIGKILL)
        assert isinstance(slow.exception(LIMIT_S), CommandTimeout)
        wait_until(lambda: many[100].done(), LIMIT_S, "the others go on")
        for info in ex.workers():
            if info.pid not in arrivals.values() and info.pid is not None and info.state == "busy":
                os.kill(info.pid, signal.SIGKILL)
        gate.open()
        ends = {n: future.exception(LIMIT_S) for n, future in (held | many).items()}
        stats = ex.stats()

    ran = Counter(lines(log))
    assert {1} == set(ran.values())
    assert isinstance(ends[0], WorkerDied)
    assert {type(None), WorkerDied} == {type(error) for error in ends.values()}
    assert all(ran[str(n)] == 1 for n, error in ends.items() if error is None)
    assert {"0", "1", "slow"} <= set(ran)
    assert (301, 301) == (stats.requests, balance(stats))
    assert stats.errors == sum(isinstance(error, WorkerDied) for error in ends.values())


def test_the_recipe_repeats_what_died(tmp_path: Path) -> None:
    """A command that kills its worker the first time is answered by the second one, in the caller's own retry."""
    log = tmp_path / "runs"
    with supervised() as ex:

        @stamina.retry(on=RETRIED, attempts=3, wait_initial=0.01, wait_jitter=0)
        def execute(path: str) -> int:
            pid: int = ex.submit("die_once", {"path": path, "log": str(log)}).result(LIMIT_S)
            return pid

        pid = execute(str(tmp_path / "marker"))

        first, second = (int(line) for line in lines(log))
        assert first != second == pid
        assert (2, 1, 1) == (ex.stats().requests, ex.stats().errors, ex.stats().completed)


def test_without_the_recipe_the_death_is_the_end(tmp_path: Path) -> None:
    """The pool by itself asks once: the caller gets WorkerDied and the log has one line."""
    log = tmp_path / "runs"
    with supervised() as ex:
        error = ex.submit("die_once", {"path": str(tmp_path / "marker"), "log": str(log)}).exception(LIMIT_S)
        assert ex.submit("pid").result(LIMIT_S)

    assert isinstance(error, WorkerDied)
    assert 1 == len(lines(log))


def test_the_recipe_waits_for_room(gate: Gate) -> None:
    """QueueFull is repeated until the queue has room; the request that was refused never ran."""
    with handler_pool(1, max_queue_size=0) as ex:
        first = ex.submit("hold", {"gate": gate.path, "value": 1})
        gate.wait_started()
        refused = []

        for attempt in stamina.retry_context(on=RETRIED, attempts=9, wait_initial=0.001, wait_jitter=0):
            with attempt:
                if attempt.num == 3:
                    gate.open()
                    first.result(LIMIT_S)
                refused.append(attempt.num)
                assert 2 == ex.submit("give", {"value": 2}).result(LIMIT_S)

        assert [1, 2, 3] == refused
        assert (2, 2, 2) == (ex.stats().requests, ex.stats().completed, ex.stats().pool_saturated)


@pytest.mark.parametrize(
    ("command", "args", "options", "kind"),
    [
        ("fail", {}, {}, "CommandError"),
        ("hold", None, {"timeout": 0.2}, "CommandTimeout"),
        ("no such command", {}, {}, "UnknownCommand"),
    ],
)
def test_the_recipe_leaves_other_errors_alone(
    command: str, args: object, options: dict[str, float], kind: str, gate: Gate
) -> None:
    """What would fail again, or has run for too long, is asked for once."""
    with handler_pool(1) as ex:
        attempts = []

        @stamina.retry(on=RETRIED, attempts=3, wait_initial=0.01, wait_jitter=0)
        def execute() -> object:
            attempts.append(1)
            given = {"gate": gate.path} if args is None else args
            return ex.submit(command, given, **options).result(LIMIT_S)

        with pytest.raises((CommandError, CommandTimeout)) as raised:
            execute()

    assert kind == type(raised.value).__name__
    assert 1 == len(attempts)
    assert not issubclass(PoolBroken, RETRIED)
