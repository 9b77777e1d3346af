"""Planned replacement under load: one worker at a time, between requests, sessions waited for, nobody held up."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, config, handler_pool, lines, recorded

from snakepit import PythonAdapter, SessionLost, SnakepitExecutor, telemetry

from gates import Gate
from leaks import is_gone, wait_until

HOARDER = str(Path(__file__).parent / "workers" / "supervised.py")


def reasons(seen: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> list[str]:
    return [metadata["reason"] for event, _, metadata in list(seen) if event == "snakepit.worker.exited"]


@contextmanager
def capacity(ex: SnakepitExecutor) -> Iterator[list[int]]:
    """Collect, at each event, how many workers were there to serve."""
    found: list[int] = []

    def sample(*_: object) -> None:
        stats = ex.stats()
        found.append(stats.available + stats.busy)

    telemetry.attach_many("capacity", tuple(telemetry.EVENTS), sample)
    try:
        yield found
    finally:
        telemetry.detach("capacity")


@contextmanager
def load(ex: SnakepitExecutor, log: Path, callers: int = 4) -> Iterator[Callable[[], list[str]]]:
    """Call without a pause from several threads; yields a function that ends it and returns what was asked for."""
    done = threading.Event()
    asked: list[list[str]] = [[] for _ in range(callers)]
    failures: list[BaseException] = []

    def call(number: int) -> None:
        while not done.is_set():
            value = f"{number}-{len(asked[number])}"
            asked[number].append(value)
            try:
                assert value == ex.submit("run", {"value": value, "log": str(log)}).result(LIMIT_S)
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()

    def end() -> list[str]:
        done.set()
        for thread in threads:
            thread.join(LIMIT_S)
        assert [] == failures
        return [value for values in asked for value in values]

    try:
        yield end
    finally:
        end()


def by_hand(ex: SnakepitExecutor) -> None:
    ex.recycle()


def by_itself(ex: SnakepitExecutor) -> None:
    """The setting does it."""


@pytest.mark.parametrize(
    ("reason", "changes", "ask"),
    [
        ("recycled", {}, by_hand),
        ("max_age", {"max_worker_age_s": 1.0}, by_itself),
        ("max_rss", {"max_worker_rss_bytes": 1 << 20}, by_itself),
    ],
)
def test_capacity_falls_by_one_at_most(
    reason: str,
    changes: dict[str, Any],
    ask: Callable[[SnakepitExecutor], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Under load every worker is replaced, one after another; each call runs once, and the log is quiet."""
    size, log = 3, tmp_path / "runs"
    caplog.set_level(logging.WARNING, "snakepit")
    events = ("snakepit.worker.exited", "snakepit.worker.recycled", "snakepit.worker.restarted")
    # A busy machine holds up callbacks too, of which the log may speak.
    quiet = config(callback_slow_s=LIMIT_S, **changes)
    with recorded(*events) as seen, handler_pool(size, config=quiet) as ex:
        ex.wait_ready(timeout=LIMIT_S, workers=size)
        first = {info.pid for info in ex.workers()}

        with capacity(ex) as sampled, load(ex, log) as end:
            ask(ex)
            wait_until(lambda: len(reasons(seen)) >= size, LIMIT_S, "each was replaced")
            wait_until(lambda: not first & {info.pid for info in ex.workers()}, LIMIT_S, "none is of the first ones")
            ex.wait_ready(timeout=LIMIT_S, workers=size)
            asked = end()
        stats = ex.stats()

        assert {reason} == set(reasons(seen))
        assert len([event for event, _, _ in seen if event.endswith("restarted")]) == 0 == stats.restarts
        assert stats.recycled >= size
        assert (len(asked), 0) == (stats.completed, stats.errors)
    # How many events there are while all are there is up to chance: the next one may leave at once.
    assert (size - 1, True) == (min(sampled), max(sampled) <= size)
    if ask is by_hand:
        assert size == sampled[-1]
    assert sorted(asked) == sorted(lines(log))
    assert [] == caplog.records


def test_work_in_flight_is_untouched(gate: Gate) -> None:
    """A call that runs when recycle() comes is finished by the worker that began it."""
    with handler_pool(2) as ex:
        running = [ex.submit("hold", {"gate": gate.path, "value": n}) for n in range(2)]
        pids = {arrival.pid for arrival in gate.wait_started(2)}

        ex.recycle()
        waiting = ex.submit("pid")
        assert pids == {info.pid for info in ex.workers()}
        assert not waiting.done()
        gate.open()

        assert [0, 1] == [future.result(LIMIT_S) for future in running]
        assert pids == {future.pid for future in running}
        wait_until(lambda: ex.stats().recycled == 2, LIMIT_S, "both were replaced")
        ex.wait_ready(timeout=LIMIT_S, workers=2)
        assert not pids & {info.pid for info in ex.workers()}
        assert waiting.result(LIMIT_S)


def test_a_request_limit_is_never_exceeded(tmp_path: Path) -> None:
    """Under load no worker answers more requests than it may, and none leaves before the last tenth of them."""
    counted: dict[int, int] = {}
    with recorded("snakepit.worker.exited") as seen, handler_pool(2, config=config(max_requests_per_worker=50)) as ex:
        futures = [ex.submit("pid") for _ in range(600)]
        for future in futures:
            pid = future.result(LIMIT_S)
            counted[pid] = counted.get(pid, 0) + 1
        wait_until(lambda: len(reasons(seen)) >= len(counted) - 2, LIMIT_S, "the last to reach its limit has gone")
        alive = {info.pid for info in ex.workers()}

        assert {"max_requests"} == set(reasons(seen))
        assert all(45 <= number <= 50 for pid, number in counted.items() if pid not in alive)
        assert max(counted.values()) <= 50


def test_a_childs_memory_counts_and_only_that_worker_goes() -> None:
    """A worker whose child process holds too much is replaced, with its child; the other one stays."""
    limited = config(max_worker_rss_bytes=150 << 20)
    adapter = PythonAdapter(HOARDER)
    with recorded("snakepit.worker.exited") as seen, handler_pool(2, adapter=adapter, config=limited) as ex:
        ex.wait_ready(timeout=LIMIT_S, workers=2)
        before = {info.pid for info in ex.workers()}

        worker, child = ex.submit("hoard", {"size": 200 << 20}).result(LIMIT_S)
        wait_until(lambda: reasons(seen), LIMIT_S, "it was replaced")
        ex.wait_ready(timeout=LIMIT_S, workers=2)

        assert ["max_rss"] == reasons(seen)
        assert is_gone(worker)
        assert is_gone(child)
        assert before - {worker} == before & {info.pid for info in ex.workers()}
        assert (1, 0) == (ex.stats().recycled, ex.stats().restarts)


# Sessions -------------------------------------------------------------------------------------------


def test_a_single_worker_serves_everybody_while_it_waits_for_a_session(caplog: pytest.LogCaptureFixture) -> None:
    """A strict session that nobody uses holds up no other call, and the worker goes when the session ends."""
    caplog.set_level(logging.WARNING, "snakepit")
    with recorded("snakepit.worker.exited") as seen, handler_pool(config=config(session_drain_s=600)) as ex:
        session = ex.session("kept")
        pid = session.submit("put", {"key": "k", "value": 1}).result(LIMIT_S)

        ex.recycle()
        others = [ex.submit("pid").result(LIMIT_S) for _ in range(50)]
        opened = ex.submit("put", {"key": "k", "value": 2}, session="new").result(LIMIT_S)
        assert {pid} == {opened, *others}
        assert 1 == session.submit("fetch", {"key": "k"}).result(LIMIT_S)
        assert [] == seen
        session.end()
        ex.end_session("new")
        wait_until(lambda: reasons(seen) == ["recycled"], LIMIT_S, "it was replaced")

        assert pid != ex.submit("pid").result(LIMIT_S)
    assert [] == caplog.records


def test_under_endless_work_the_worker_goes_when_its_session_ends(tmp_path: Path) -> None:
    """Callers that never pause do not keep a worker that is to be replaced."""
    log = tmp_path / "runs"
    with recorded("snakepit.worker.exited") as seen, handler_pool(config=config(session_drain_s=600)) as ex:
        session = ex.session("kept")
        session.submit("put", {"key": "k", "value": 1}).result(LIMIT_S)

        with load(ex, log) as end:
            ex.recycle()
            wait_until(lambda: len(lines(log)) > 50, LIMIT_S, "the others are served")
            assert [] == seen
            session.end()
            wait_until(lambda: reasons(seen) == ["recycled"], LIMIT_S, "it was replaced")
            asked = end()

        assert (len(asked) + 1, 0) == (ex.stats().completed, ex.stats().errors)
    assert sorted(asked) == sorted(lines(log))


@pytest.mark.parametrize("with_setup", [False, True])
def test_after_session_drain_s_the_worker_goes(with_setup: bool, tmp_path: Path) -> None:
    """Under endless work too; then a strict session is lost, and told once, or set up again where it can be."""
    log = tmp_path / "runs"
    setup = [("put", {"key": "k", "value": "set up"})] if with_setup else []
    with recorded("snakepit.worker.exited") as seen, handler_pool(config=config(session_drain_s=0.5)) as ex:
        session = ex.session("kept", setup=setup)
        session.submit("put", {"key": "k", "value": "mine"}).result(LIMIT_S)

        with load(ex, log) as end:
            ex.recycle()
            wait_until(lambda: reasons(seen) == ["recycled"], LIMIT_S, "it was replaced")
            end()
        after = session.submit("fetch", {"key": "k"})

        if with_setup:
            assert "set up" == after.result(LIMIT_S)
        else:
            assert isinstance(after.exception(LIMIT_S), SessionLost)
            assert session.submit("fetch", {"key": "k"}).result(LIMIT_S) is None
