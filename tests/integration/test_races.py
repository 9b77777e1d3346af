"""Interleavings of callers, the manager and a worker, each forced: one outcome, whoever comes first."""

from __future__ import annotations

import select
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, config, handler_pool, lines, manager_held
from races import LyingLock

from snakepit import SnakepitExecutor
from snakepit._pool.future import SnakepitFuture

from gates import Gate
from leaks import wait_until


def reply_is_there(ex: SnakepitExecutor) -> None:
    """Wait until the one worker's reply lies in its pipe, unread."""
    (link,) = ex._manager._links
    wait_until(lambda: select.select([link.channel.reply_fd], [], [], 0)[0], LIMIT_S, "the reply is there")


def test_what_was_accepted_comes_before_a_reply(gate: Gate, tmp_path: Path) -> None:
    """A request accepted in the turn of a reply competes for the freed worker, and the more urgent one wins."""
    log = str(tmp_path / "runs")
    with handler_pool(1) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        waiting = ex.submit("run", {"value": "waiting", "log": log})

        # The hold is taken up in one turn: both the urgent request and the reply belong to the next.
        with manager_held(ex):
            gate.open()
            reply_is_there(ex)
            urgent = ex.submit("run", {"value": "urgent", "log": log}, priority=5)
        for future in (running, waiting, urgent):
            future.result(LIMIT_S)

    assert ["urgent", "waiting"] == lines(log)


def test_cancel_between_the_choice_and_the_claim(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager has chosen a request when its caller cancels: it is not sent, and the next one is (T8 b)."""
    log = str(tmp_path / "runs")
    chosen, cancelled = threading.Event(), threading.Event()
    claim = SnakepitFuture.claim
    contested: list[SnakepitFuture] = []

    def claim_late(self: SnakepitFuture) -> bool:
        if contested and self is contested[0] and not chosen.is_set():
            chosen.set()
            assert cancelled.wait(LIMIT_S)
        return claim(self)

    monkeypatch.setattr(SnakepitFuture, "claim", claim_late)
    with handler_pool(1) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        contested.append(ex.submit("run", {"value": "contested", "log": log}))
        kept = ex.submit("run", {"value": "kept", "log": log})
        gate.open()
        assert chosen.wait(LIMIT_S)

        won = contested[0].cancel()
        cancelled.set()
        kept.result(LIMIT_S)
        running.result(LIMIT_S)
        stats = ex.stats()

    assert won and contested[0].cancelled()
    assert running.pid == kept.pid
    assert 0 == stats.restarts
    assert ["kept"] == lines(log)
    assert (3, 2, 1) == (stats.requests, stats.completed, stats.cancelled)


@pytest.mark.parametrize("order", [["submit", "shutdown"], ["shutdown", "submit"]])
def test_submit_against_shutdown(order: list[str]) -> None:
    """Both are past their first checks: the request is accepted and served, or refused; nothing hangs (T8 e)."""
    ex = handler_pool(1)
    ex.wait_ready()
    outcome: list[Any] = []

    def submit() -> None:
        try:
            outcome.append(ex.submit("run", {"value": 7}).result(LIMIT_S))
        except BaseException as error:
            outcome.append(error)

    ledger = ex._ledger
    ledger.lock = LyingLock(ledger.lock, order)  # type: ignore[assignment]  # stands in for it
    threads = [
        threading.Thread(target=submit, name="submit"),
        threading.Thread(target=ex.shutdown, name="shutdown"),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)

    assert not any(thread.is_alive() for thread in threads)
    if order[0] == "submit":
        assert [7] == outcome
    else:
        assert [RuntimeError] == [type(error) for error in outcome]
    assert (order[0] == "submit") == ex.stats().requests == ex.stats().completed


def test_a_done_callback_finds_the_slot_free() -> None:
    """With room for one request only, a done-callback of that one may submit the next (T8 g)."""
    outcomes: list[Any] = []
    done = threading.Event()
    with handler_pool(1, max_queue_size=0) as ex:
        ex.wait_ready()

        def follow(future: Any) -> None:
            try:
                outcomes.append(ex.submit("run", {"value": future.result() + 1}))
            finally:
                done.set()

        with manager_held(ex):
            first = ex.submit("run", {"value": 1})
            first.add_done_callback(follow)
        assert done.wait(LIMIT_S)

        assert [2] == [future.result(LIMIT_S) for future in outcomes]
        assert 0 == ex.stats().pool_saturated


def test_an_answer_to_a_health_check_beats_its_deadline() -> None:
    """The answer lies in the pipe when its deadline is handled: the worker is well, and stays (T8 h)."""
    settings = config(health_check_interval_s=0.1, health_check_timeout_s=1.0)
    with handler_pool(1, config=settings) as ex:
        ex.wait_ready()
        (before,) = ex.workers()

        def checking() -> bool:
            return [worker.state for worker in ex.workers()] == ["checking"]

        # The manager is held right after the check was sent, until both its answer and its end are there.
        held, let_go = threading.Event(), threading.Event()

        def hold(scheduler: Any) -> None:
            if not held.is_set() and any(w.state.value == "checking" for w in scheduler.board.workers.by_id.values()):
                held.set()
                assert let_go.wait(LIMIT_S)

        wait_until(lambda: ex._manager.ask(hold, 0.05) or held.is_set(), LIMIT_S, "a check is under way")
        held_at = time.monotonic()
        reply_is_there(ex)
        wait_until(lambda: time.monotonic() > held_at + 1.05, what="the deadline is over")
        let_go.set()

        wait_until(lambda: not checking(), LIMIT_S)
        assert 7 == ex.execute("run", {"value": 7})
        (after,) = ex.workers()

    assert (before.pid, before.incarnation) == (after.pid, after.incarnation)
    assert 0 == ex.stats().restarts
