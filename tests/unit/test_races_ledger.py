"""Who is first under the ledger's lock decides; a lock that lies makes each of them the first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from races import LyingLock

from snakepit._core.model import Outcome, Request
from snakepit._inbox import Inbox
from snakepit._pool.future import SnakepitFuture
from snakepit._pool.ledger import Ledger

from leaks import wait_until

BOUND_S = 10.0


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """Return an inbox; closed after the test."""
    box = Inbox()
    yield box
    box.close()


class Task(threading.Thread):
    """A named thread that keeps what its function returned or raised."""

    def __init__(self, name: str, function: Any) -> None:
        super().__init__(name=name, daemon=True)
        self._function = function
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self._function()
        except BaseException as error:
            self.outcome = error

    def end(self) -> Any:
        """Return the outcome, waiting for it."""
        self.join(BOUND_S)
        assert not self.is_alive()
        return self.outcome


@pytest.mark.parametrize("order", [["reply", "cancel"], ["cancel", "reply"]])
def test_reply_and_cancel_in_either_order(inbox: Inbox, order: list[str]) -> None:
    """Both have seen the request running; the first at the lock settles and is counted, the other is told so."""
    ledger, request = Ledger(inbox, None, 1000), Request(None, "run")
    future = SnakepitFuture(ledger)
    request.future, future._request = future, request
    ledger.admit(request, block=False, deadline=None)
    future.claim()
    request.started_at = 0.0
    ledger.sent((request,), (1, 0, 1, 0, 0, 0))
    ledger.lock = LyingLock(ledger.lock, order)  # type: ignore[assignment]  # stands in for it

    # Settled only after both have ended, so that cancel() finds the future running in either order.
    tasks = [
        Task("reply", lambda: ledger.finish([(request, Outcome.COMPLETED)], None)[0]),
        Task("cancel", lambda: future.cancel(running=True)),
    ]
    won = {task.name: task.end() for task in tasks}

    assert {order[0]: True, order[1]: False} == won
    stats = ledger.stats()
    assert (1, 0, 0) == (stats.requests, stats.running, stats.queued)
    assert (order[0] == "reply", order[0] == "cancel") == (stats.completed == 1, stats.cancelled == 1)
    assert future.cancelled() == (order[0] == "cancel")


@pytest.mark.parametrize("order", [["submit", "shutdown"], ["shutdown", "submit"]])
def test_submit_and_shutdown_in_either_order(inbox: Inbox, order: list[str]) -> None:
    """A request is let in before the door is shut, and stands before what follows, or not at all (T8 e)."""
    ledger, request = Ledger(inbox, None, 1000), Request(None, "run")
    ledger.check_open()
    ledger.lock = LyingLock(ledger.lock, order)  # type: ignore[assignment]  # stands in for it

    def shut() -> None:
        ledger.refuse(lambda: RuntimeError("shut down"), final=True)
        inbox.post("shutdown")

    tasks = [Task("submit", lambda: ledger.admit(request, block=False, deadline=None)), Task("shutdown", shut)]
    refused, _ = [task.end() for task in tasks]

    posted = list(inbox.drain())
    if order[0] == "submit":
        assert refused is None
        assert [Request, str] == [type(item) for item in posted]
        assert [request] == ledger.pending()
    else:
        assert isinstance(refused, RuntimeError)
        assert ["shutdown"] == posted
        assert [] == ledger.pending()
    assert (order[0] == "submit") == (ledger.stats().requests == 1)


@pytest.mark.parametrize("order", [["heal", "shutdown"], ["shutdown", "heal"]])
def test_heal_and_shutdown_in_either_order(inbox: Inbox, order: list[str]) -> None:
    """Whether the manager heals the pool before or after its shutdown: the door is shut in the end."""
    ledger = Ledger(inbox, None, 1000)
    ledger.refuse(lambda: RuntimeError("broken"))
    ledger.lock = LyingLock(ledger.lock, order)  # type: ignore[assignment]  # stands in for it

    tasks = [
        Task("heal", lambda: ledger.refuse(None)),
        Task("shutdown", lambda: ledger.refuse(lambda: RuntimeError("shut down"), final=True)),
    ]
    assert [None, None] == [task.end() for task in tasks]

    with pytest.raises(RuntimeError, match="shut down"):
        ledger.check_open()


class InterruptedRoom(threading.Condition):
    """Ends the first wait that was told of room by an interrupt, as Ctrl-C may."""

    interrupts = 1

    def wait(self, timeout: float | None = None) -> bool:
        told = super().wait(timeout)
        if told and self.interrupts:
            self.interrupts = 0
            raise KeyboardInterrupt
        return told


def test_an_interrupted_waiter_passes_room_on(inbox: Inbox) -> None:
    """Room for one is told to one of two blocked callers; the other gets it when the first gives up."""
    ledger = Ledger(inbox, 1, 1000)
    room = ledger._room = InterruptedRoom(ledger.lock)
    first, *others = (Request(None, "run") for _ in range(3))
    ledger.admit(first, block=False, deadline=None)
    tasks = [
        Task(f"caller {number}", lambda request=request: ledger.admit(request, block=True, deadline=None))
        for number, request in enumerate(others)
    ]
    wait_until(lambda: len(room._waiters) == 2)  # type: ignore[attr-defined]

    ledger.settle(first, Outcome.COMPLETED)

    outcomes = []
    for task in tasks:
        task.join(BOUND_S)
        outcomes.append(task.outcome)
        assert not task.is_alive()
    assert 1 == sum(isinstance(outcome, KeyboardInterrupt) for outcome in outcomes)
    assert 2 == ledger.stats().requests
