"""Sessions live in one worker: order, state, loss, set-up, modes, ends, limits."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, config, handler_pool, lines, recorded

from snakepit import (
    CommandError,
    CommandTimeout,
    SessionBusy,
    SessionLost,
    SessionQuotaExceeded,
    UnknownCommand,
    WorkerDied,
)

from gates import Gate
from leaks import wait_until

MakeGate = Callable[[], Gate]


def test_forty_concurrent_calls_in_one_worker_in_order() -> None:
    """Strict calls of one session from several threads share a pid, one thread's in its order (T26)."""
    results: dict[int, list[Any]] = {}
    with handler_pool(4) as ex:
        ex.wait_ready(workers=4)

        def call(number: int) -> None:
            futures = [ex.submit("append", [[number, n]], session="one") for n in range(10)]
            results[number] = [future.result(LIMIT_S) for future in futures]

        threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)

    answers = [answer for answers in results.values() for answer in answers]
    assert 40 == len(answers)
    assert 1 == len({pid for pid, _ in answers})
    longest = max((values for _, values in answers), key=len)
    assert 40 == len(longest)
    for number in range(4):
        assert [[number, n] for n in range(10)] == [value for value in longest if value[0] == number]


def test_state_lives_with_the_session() -> None:
    """State is the session's own, and gone for calls without a session and for other sessions."""
    with handler_pool(1) as ex:
        ex.execute("put", {"key": "name", "value": "Ada"}, session="a")

        assert "Ada" == ex.execute("fetch", {"key": "name"}, session="a")
        assert ex.execute("fetch", {"key": "name"}, session="b") is None
        assert ex.execute("fetch", {"key": "name"}) is None


def test_the_end_of_a_session_clears_its_state() -> None:
    """After end_session or the view's end the id starts with an empty state (F42)."""
    with handler_pool(1) as ex:
        with ex.session("a") as view:
            view.execute("put", {"key": "k", "value": 1})
            late = view.submit("fetch", {"key": "k"})
        after_view = ex.execute("fetch", {"key": "k"}, session="a")
        ex.execute("put", {"key": "k", "value": 2}, session="a")
        ex.end_session("a")
        ex.end_session("never seen")

        assert (1, None) == (late.result(LIMIT_S), after_view)
        assert ex.execute("fetch", {"key": "k"}, session="a") is None


def test_tries_behind_a_session_that_is_at_work(gate: Gate) -> None:
    """However many have their session's turn in vain: the pool serves on, and the next one gets it."""
    tries = 1200
    with handler_pool(2) as ex:
        with ex.session("user") as view:
            held = view.submit("hold", {"gate": gate.path})
        gate.wait_started()
        for _ in range(tries):
            with ex.session("user") as view:
                waiting = view.submit("pid")
            assert waiting.cancel()
        with ex.session("user") as view:
            last = view.submit("pid")
        assert ex.execute("pid")
        assert not last.done()
        gate.open()

        held.result(LIMIT_S)
        assert last.result(LIMIT_S)
        assert ex.execute("pid")
        assert tries == ex.stats().cancelled


def test_two_pools_share_no_session() -> None:
    """The same id in two pools means two sessions (F41)."""
    with handler_pool(1) as one, handler_pool(1) as other:
        one.execute("put", {"key": "k", "value": "one"}, session="s")

        assert other.execute("fetch", {"key": "k"}, session="s") is None
        other.end_session("s")
        assert "one" == one.execute("fetch", {"key": "k"}, session="s")


def test_a_new_id_for_each_view() -> None:
    """A view without an id makes one of its own."""
    with handler_pool(1) as ex:
        first, second = ex.session(), ex.session()

        assert first.session_id != second.session_id
        first.execute("put", {"key": "k", "value": 1})
        assert second.execute("fetch", {"key": "k"}) is None


# Modes ----------------------------------------------------------------------------------------------


def test_strict_waits_while_another_worker_idles(gate: Gate) -> None:
    """A strict call waits for its own worker although another one is free (T25)."""
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        held = ex.submit("hold", {"gate": gate.path}, session="s")
        (arrival,) = gate.wait_started()
        waiting = ex.submit("pid", {}, session="s")

        assert arrival.pid != ex.execute("pid")
        assert not waiting.done()
        assert (1, 1) == (ex.stats().available, ex.stats().queued)
        gate.open()

        assert arrival.pid == waiting.result(LIMIT_S)
        held.result(LIMIT_S)


def test_fail_fast_does_not_wait(gate: Gate) -> None:
    """A fail_fast call whose worker has work fails with SessionBusy (T25)."""
    with handler_pool(2) as ex:
        view = ex.session("s", affinity="fail_fast")
        held = view.submit("hold", {"gate": gate.path, "value": 1})
        gate.wait_started()

        error = view.submit("pid").exception(LIMIT_S)
        gate.open()

        assert isinstance(error, SessionBusy)
        assert "'s'" in str(error)
        assert 1 == held.result(LIMIT_S)
        wait_until(lambda: ex.stats().busy == 0)
        assert held.pid == view.execute("pid")


def test_hint_goes_elsewhere_and_comes_back(gate: Gate) -> None:
    """A hint call takes any idle worker while its own is busy; the binding stays (T25)."""
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        view = ex.session("s", affinity="hint")
        held = view.submit("hold", {"gate": gate.path})
        (arrival,) = gate.wait_started()

        elsewhere = view.execute("pid")
        gate.open()
        held.result(LIMIT_S)
        wait_until(lambda: ex.stats().busy == 0)

        assert arrival.pid != elsewhere
        assert arrival.pid == view.execute("pid")


def test_the_pools_default_mode(gate: Gate) -> None:
    """affinity= of the executor holds for sessions that say nothing."""
    with handler_pool(2, affinity="fail_fast") as ex:
        held = ex.submit("hold", {"gate": gate.path}, session="s")
        gate.wait_started()

        assert isinstance(ex.submit("pid", {}, session="s").exception(LIMIT_S), SessionBusy)
        gate.open()
        held.result(LIMIT_S)


# Loss -----------------------------------------------------------------------------------------------


def test_a_lost_session_is_told_once_to_all_that_waited(gate: Gate) -> None:
    """The running call gets WorkerDied, the waiting ones SessionLost, the next one begins anew (T27)."""
    with recorded("snakepit.session.lost") as seen, handler_pool(2) as ex:
        ex.execute("put", {"key": "k", "value": 1}, session="s")
        running = ex.submit("hold", {"gate": gate.path}, session="s")
        (arrival,) = gate.wait_started()
        waiting = [ex.submit("fetch", {"key": "k"}, session="s") for _ in range(3)]

        os.kill(arrival.pid, signal.SIGKILL)

        assert isinstance(running.exception(LIMIT_S), WorkerDied)
        assert [SessionLost] * 3 == [type(future.exception(LIMIT_S)) for future in waiting]
        assert ex.submit("fetch", {"key": "k"}, session="s").result(LIMIT_S) is None
    assert ["s"] == [metadata["session"] for _, _, metadata in seen]


def test_a_session_lost_in_idleness_is_told_to_the_next_call() -> None:
    """When nothing waited, the next call is the one that fails with SessionLost (T27)."""
    with handler_pool(1) as ex:
        pid = ex.execute("put", {"key": "k", "value": 1}, session="s")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ex.stats().restarts == 1)

        error = ex.submit("fetch", {"key": "k"}, session="s").exception(LIMIT_S)

        assert isinstance(error, SessionLost)
        assert ex.submit("fetch", {"key": "k"}, session="s").result(LIMIT_S) is None
        assert 1 == ex.submit("run", {"value": 1}).result(LIMIT_S)


def test_a_timeout_loses_the_session(gate: Gate) -> None:
    """The call that ran too long gets its own error, and what waited SessionLost."""
    with handler_pool(1) as ex:
        running = ex.submit("hold", {"gate": gate.path}, session="s", timeout=0.2)
        waiting = ex.submit("pid", {}, session="s")

        assert isinstance(running.exception(LIMIT_S), CommandTimeout)
        assert isinstance(waiting.exception(LIMIT_S), SessionLost)
        assert isinstance(ex.submit("pid", {}, session="s").result(LIMIT_S), int)


def test_hint_is_moved_and_says_so() -> None:
    """A lost worker only means a new binding for a hint session (T27)."""
    with recorded("snakepit.session.moved") as seen, handler_pool(1) as ex:
        view = ex.session("s", affinity="hint")
        pid = view.execute("pid")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ex.stats().restarts == 1)

        assert pid != view.execute("pid")

    assert [("s", "hint")] == [(metadata["session"], metadata["affinity"]) for _, _, metadata in seen]


# Set-up ---------------------------------------------------------------------------------------------


def test_setup_runs_before_the_first_request_and_after_a_loss(tmp_path: Path) -> None:
    """The set-up runs once on each incarnation, before anything else; nothing is lost (T27)."""
    log = str(tmp_path / "runs")
    setup = [("put", {"key": "a", "value": 1, "log": log}), ("put", {"key": "b", "value": 2, "log": log})]
    with handler_pool(1) as ex:
        view = ex.session("s", setup=setup)

        assert [1, 2] == [view.execute("fetch", {"key": key}) for key in "ab"]
        assert ["a=1", "b=2"] == lines(log)
        pid = view.execute("pid")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ex.stats().restarts == 1)

        assert [1, 2] == [view.submit("fetch", {"key": key}).result(LIMIT_S) for key in "ab"]
        assert ["a=1", "b=2"] * 2 == lines(log)
        assert 5 == ex.stats().requests


def test_what_waits_survives_the_loss_of_a_session_with_setup(gate: Gate, tmp_path: Path) -> None:
    """Only the running call fails; the waiting ones run on the next incarnation, after the set-up."""
    log = str(tmp_path / "runs")
    with handler_pool(2) as ex:
        view = ex.session("s", setup=[("put", {"key": "a", "value": 1, "log": log})])
        running = view.submit("hold", {"gate": gate.path})
        (arrival,) = gate.wait_started()
        waiting = [view.submit("fetch", {"key": "a"}) for _ in range(3)]

        os.kill(arrival.pid, signal.SIGKILL)

        assert isinstance(running.exception(LIMIT_S), WorkerDied)
        assert [1, 1, 1] == [future.result(LIMIT_S) for future in waiting]
    assert ["a=1", "a=1"] == lines(log)


@pytest.mark.parametrize(
    ("step", "kind"), [(("fail", {"text": "no user"}), CommandError), (("no_such", {}), UnknownCommand)]
)
def test_a_failing_setup_fails_the_request_that_needed_it(step: Any, kind: type[Exception]) -> None:
    """The error of a set-up command is that of the session's first request; others are not hurt."""
    with handler_pool(1) as ex:
        view = ex.session("s", setup=[step])

        error = view.submit("pid").exception(LIMIT_S)

        assert isinstance(error, kind)
        assert isinstance(view.submit("pid").exception(LIMIT_S), kind)
        assert 1 == ex.submit("run", {"value": 1}).result(LIMIT_S)


# Ends and limits ------------------------------------------------------------------------------------


def test_an_idle_session_expires() -> None:
    """After its idle time to live a binding ends, its state goes, and the event says so."""
    with recorded("snakepit.session.expired") as seen, handler_pool(1) as ex:
        view = ex.session("s", ttl_s=0.1)
        view.execute("put", {"key": "k", "value": 1})

        wait_until(lambda: seen)

        assert view.execute("fetch", {"key": "k"}) is None
        assert "s" == seen[0][2]["session"]
        assert seen[0][1]["idle_s"] >= 0.1


def test_quota() -> None:
    """Beyond max_sessions a strict session is refused; ending one makes room; a hint one is evicted."""
    with handler_pool(1, config=config(max_sessions=2)) as ex:
        ex.execute("pid", {}, session="a")
        ex.execute("pid", {}, session="b")

        error = ex.submit("pid", {}, session="c").exception(LIMIT_S)
        ex.end_session("a")
        ex.session("c", affinity="hint").execute("pid")
        ex.execute("pid", {}, session="d")

        assert isinstance(error, SessionQuotaExceeded)
        assert "max_sessions=2" in str(error)
        assert isinstance(ex.submit("pid", {}, session="e").exception(LIMIT_S), SessionQuotaExceeded)


def test_workers_tell_their_sessions() -> None:
    """workers() lists the sessions bound to each worker, spread over the least loaded."""
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        for name in "abcd":
            ex.execute("pid", {}, session=name)

        assert [2, 2] == [len(worker.sessions) for worker in ex.workers()]
        assert set("abcd") == {name for worker in ex.workers() for name in worker.sessions}


def test_planned_retirement_waits_for_strict_sessions() -> None:
    """restart_worker does not take a strict session's worker away before the session ends."""
    with handler_pool(1) as ex:
        pid = ex.execute("put", {"key": "k", "value": 1}, session="s")
        (worker,) = ex.workers()

        ex.restart_worker(worker.worker_id)
        assert 1 == ex.execute("fetch", {"key": "k"}, session="s")
        ex.end_session("s")
        wait_until(lambda: ex.stats().recycled == 1)

        assert pid != ex.execute("pid")


def test_a_session_view_maps_in_its_worker() -> None:
    """map of a session view runs in the session's worker, in order."""
    with handler_pool(3) as ex, ex.session() as view:
        results = list(view.map("append", ([n] for n in range(20))))

        assert 1 == len({pid for pid, _ in results})
        assert list(range(20)) == results[-1][1]


def test_a_cancelled_session_call_is_skipped(gate: Gate) -> None:
    """A cancelled call in the middle of a session never runs, and the ones around it keep their order."""
    with handler_pool(2) as ex:
        held = ex.submit("hold", {"gate": gate.path}, session="s")
        gate.wait_started()
        futures = [ex.submit("append", [n], session="s") for n in range(5)]

        assert futures[2].cancel()
        gate.open()
        wait([held, *futures], LIMIT_S)

        assert [0, 1, 3, 4] == futures[4].result(LIMIT_S)[1]


def test_a_set_up_that_runs_too_long_counts_as_a_timeout(gate: Gate) -> None:
    """The request that needed the set-up gets its time-out, is counted as one, and is told where it came from."""
    with handler_pool(1) as ex:
        view = ex.session("slow", setup=[("hold", {"gate": gate.path})])

        error = view.submit("pid", timeout=0.2).exception(LIMIT_S)

        stats = ex.stats()
        assert isinstance(error, CommandTimeout)
        assert ["raised by 'hold', a set-up step of session 'slow'"] == error.__notes__
        assert (1, 0) == (stats.command_timeouts, stats.errors)
