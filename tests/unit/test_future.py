"""The future: lean until somebody waits, and then the standard one."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import (
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from types import SimpleNamespace
from typing import Any

import pytest

from snakepit._core.model import Outcome, Request
from snakepit._inbox import Inbox
from snakepit._pool.future import SnakepitFuture
from snakepit._pool.ledger import Ledger

LIMIT_S = 20.0


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Return the ledger of no pool."""
    inbox = Inbox()
    yield Ledger(inbox, None, 1 << 20)
    inbox.close()


def accepted(ledger: Ledger) -> tuple[Request, SnakepitFuture]:
    """Return an accepted request and its future."""
    request = Request("content", "command", size_bytes=1)
    future = SnakepitFuture(ledger, request)
    request.future = future
    ledger.admit(request, block=False, deadline=None)
    return request, future


END = {
    "result": lambda future: future.set_result(5),
    "exception": lambda future: future.set_exception(ValueError("five")),
    "cancel": lambda future: future.cancel(),
}


def check_ended(future: SnakepitFuture, how: str) -> None:
    """Assert that a future shows its end in every way, without waiting."""
    assert future.done()
    assert not future.running()
    assert future.cancelled() == (how == "cancel")
    if how == "result":
        assert (5, None) == (future.result(), future.exception())
        assert (5, None) == (future.result(0), future.exception(0))
    elif how == "exception":
        with pytest.raises(ValueError, match="five"):
            future.result()
        assert isinstance(future.exception(), ValueError)
    else:
        for ask in (future.result, future.exception):
            with pytest.raises(CancelledError):
                ask()


# States ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("how", END)
def test_the_end(ledger: Ledger, how: str, watched: bool) -> None:
    """A future ends the same way whether or not somebody has looked at its condition before."""
    request, future = accepted(ledger)
    assert "pending" in repr(future) if watched else not future.done()
    assert watched == future.is_watched

    END[how](future)

    check_ended(future, how)
    assert (how == "cancel") == request.settled


@pytest.mark.parametrize("how", ["result", "exception"])
def test_a_future_that_nobody_watches_stays_lean(ledger: Ledger, how: str) -> None:
    """Nothing is made for waiting where nobody waits."""
    _, future = accepted(ledger)
    assert future.claim()
    assert future.running()
    assert not future.done()
    END[how](future)
    assert future.done()
    if how == "result":
        assert 5 == future.result()
        assert future.exception() is None

    assert not future.is_watched
    for name in ("_condition", "_waiters", "_done_callbacks"):
        with pytest.raises(AttributeError):
            object.__getattribute__(future, name)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("first", END)
@pytest.mark.parametrize("second", ["result", "exception"])
def test_nothing_ends_twice(ledger: Ledger, first: str, second: str, watched: bool) -> None:
    """A second settlement is an error, and changes nothing."""
    _, future = accepted(ledger)
    if watched:
        assert future._condition
    END[first](future)

    with pytest.raises(InvalidStateError):
        END[second](future)

    check_ended(future, first)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("state", ["pending", "running", "done", "failed", "cancelled"])
def test_cancel(ledger: Ledger, state: str, running: bool) -> None:
    """What waits is cancelled, what runs only if asked for, what has ended never."""
    request, future = accepted(ledger)
    if state == "running":
        assert future.claim()
    elif state in ("done", "failed", "cancelled"):
        END[{"done": "result", "failed": "exception", "cancelled": "cancel"}[state]](future)

    cancelled = future.cancel(running=running)

    assert cancelled == (state in ("pending", "cancelled") or (state == "running" and running))
    assert cancelled == future.cancelled()
    if cancelled:
        check_ended(future, "cancel")
        assert future.cancel()
        assert not future.claim()
        assert 1 == ledger.stats().cancelled
    elif state == "running":
        assert future.running()
        assert not request.settled


def test_cancel_of_what_the_pool_has_ended(ledger: Ledger) -> None:
    """Who comes after the ledger's decision has not cancelled, though the future does not show the end yet."""
    request, future = accepted(ledger)
    ledger.settle(request, Outcome.COMPLETED)

    assert not future.cancel(running=True)
    future.set_result(5)

    check_ended(future, "result")
    assert (1, 0) == (ledger.stats().completed, ledger.stats().cancelled)


@pytest.mark.parametrize("watched", [False, True])
def test_claim(ledger: Ledger, watched: bool) -> None:
    """A pending future begins to run, a running one goes on."""
    _, future = accepted(ledger)
    if watched:
        assert future._condition
    assert [True, True] == [future.claim(), future.claim()]
    assert future.running()
    future.set_result(5)
    assert not future.claim()


def test_unknown_attributes_are_none_of_its_business(ledger: Ledger) -> None:
    """What is made on demand are three attributes of the standard library's."""
    future = SnakepitFuture(ledger)
    with pytest.raises(AttributeError, match="'SnakepitFuture' object has no attribute '_other'"):
        _ = future._other  # type: ignore[attr-defined]
    assert not hasattr(future, "other")
    assert not future.is_watched
    # As when a copy is made, or a subclass fails early.
    with pytest.raises(AttributeError):
        _ = SnakepitFuture.__new__(SnakepitFuture)._condition


# Waiting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", END)
def test_callbacks(ledger: Ledger, how: str) -> None:
    """Each callback is called once, in order, whether it was added before the end or after it."""
    _, future = accepted(ledger)
    called: list[Any] = []
    future.add_done_callback(lambda done: called.append((1, done)))
    future.add_done_callback(lambda done: called.append((2, done)))
    assert [] == called
    END[how](future)
    future.add_done_callback(lambda done: called.append((3, done)))

    assert [(1, future), (2, future), (3, future)] == called

    _, lean = accepted(ledger)
    END[how](lean)
    lean.add_done_callback(called.append)
    assert lean is called[-1]


@pytest.mark.parametrize("how", END)
@pytest.mark.parametrize("when", [FIRST_COMPLETED, FIRST_EXCEPTION, "ALL_COMPLETED"])
def test_wait(ledger: Ledger, how: str, when: str) -> None:
    """``wait`` finds what has ended, and is told of what ends."""
    futures = [accepted(ledger)[1] for _ in range(3)]
    END[how](futures[0])
    assert {futures[0]} == wait(futures, 0).done
    with ThreadPoolExecutor(1) as threads:
        waiter = threads.submit(wait, futures[1:], LIMIT_S, return_when=when)
        while not all("_waiters" in dir(future) and future._waiters for future in futures[1:]):
            threading.Event().wait(0.001)
        for future in futures[1:]:
            END[how](future)
        assert waiter.result(LIMIT_S).done <= set(futures[1:])
    assert set(futures) == wait(futures, LIMIT_S).done
    assert set(futures) == set(as_completed(futures, LIMIT_S))


def test_as_completed_in_order_of_the_ends(ledger: Ledger) -> None:
    """Those that have ended come first, the others as they end."""
    futures = [accepted(ledger)[1] for _ in range(4)]
    END["result"](futures[2])
    coming = as_completed(futures, LIMIT_S)
    seen = [next(coming)]
    for place in (3, 0, 1):
        END["exception"](futures[place])
        seen.append(next(coming))

    assert [futures[place] for place in (2, 3, 0, 1)] == seen


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("how", END)
def test_asyncio(ledger: Ledger, how: str, early: bool) -> None:
    """An event loop can await it."""
    _, future = accepted(ledger)

    async def main() -> Any:
        if early:
            END[how](future)
        wrapped = asyncio.wrap_future(future)
        if not early:
            await asyncio.get_running_loop().run_in_executor(None, END[how], future)
        return await asyncio.wait_for(wrapped, LIMIT_S)

    if how == "result":
        assert 5 == asyncio.run(main())
    else:
        with pytest.raises(ValueError if how == "exception" else asyncio.CancelledError):
            asyncio.run(main())


@pytest.mark.parametrize("how", END)
def test_many_threads_wait(ledger: Ledger, how: str) -> None:
    """All of those that wait for one future are told."""
    _, future = accepted(ledger)
    begun = threading.Barrier(5)

    def ask(number: int) -> Any:
        begun.wait(LIMIT_S)
        try:
            return future.result(LIMIT_S) if number % 2 else future.exception(LIMIT_S)
        except (ValueError, CancelledError) as error:
            return type(error)

    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, number) for number in range(4)]
        begun.wait(LIMIT_S)
        END[how](future)
        seen = [one.result(LIMIT_S) for one in asked]

    if how == "result":
        assert [None, 5, None, 5] == seen
    elif how == "exception":
        assert isinstance(seen[0], ValueError)
        assert ValueError is seen[1] is seen[3]
    else:
        assert [CancelledError] * 4 == seen


def test_a_time_that_runs_out(ledger: Ledger) -> None:
    """Who waits for so long only is told so."""
    _, future = accepted(ledger)
    for ask in (future.result, future.exception):
        with pytest.raises(futures.TimeoutError):
            ask(0)
        with pytest.raises(futures.TimeoutError):
            ask(0.001)


class PausingLock:
    """Stands in for the ledger's lock: a thread of this name stops before it takes it, or before it gives it back."""

    def __init__(self, lock: Any, name: str, *, inside: bool) -> None:
        self._lock, self._name, self._inside = lock, name, inside
        self.reached, self.go = threading.Event(), threading.Event()

    def _stop(self) -> None:
        if threading.current_thread().name == self._name and not self.reached.is_set():
            self.reached.set()
            assert self.go.wait(LIMIT_S)

    def __enter__(self) -> Any:
        if not self._inside:
            self._stop()
        return self._lock.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._inside:
            self._stop()
        self._lock.__exit__(*error)


def _named(name: str, call: Callable[..., Any], *args: Any) -> tuple[threading.Thread, list[Any]]:
    values: list[Any] = []
    thread = threading.Thread(target=lambda: values.append(call(*args)), name=name)
    thread.start()
    return thread, values


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("how", ["result", "callback", "wait"])
@pytest.mark.parametrize("paused", ["waits", "ends"])
def test_a_condition_made_at_the_moment_of_the_end(ledger: Ledger, paused: str, how: str, inside: bool) -> None:
    """Whichever of the two is first: who waits is told, or finds the end."""
    _, future = accepted(ledger)
    called: list[Any] = []
    ask: Any = {
        "result": lambda: future.result(LIMIT_S),
        "callback": lambda: future.add_done_callback(called.append),
        "wait": lambda: len(wait([future], LIMIT_S).done),
    }[how]
    lock = PausingLock(ledger.lock, paused, inside=inside)
    ledger.lock = lock  # type: ignore[assignment]  # what is used of it

    jobs: dict[str, Callable[[], Any]] = {"waits": ask, "ends": lambda: future.set_result(5)}
    first, values = _named(paused, jobs.pop(paused))
    assert lock.reached.wait(LIMIT_S)
    (name, job), *_ = jobs.items()
    second, more = _named(name, job)
    if not inside:
        # The other one has the lock for itself, and is done but for what it waits for.
        _ = second.join(LIMIT_S) if name == "ends" else None
    lock.go.set()
    for thread in (first, second):
        thread.join(LIMIT_S)
        assert not thread.is_alive()

    answer = values + more
    if how == "callback":
        assert [future] == called
    else:
        assert (5 if how == "result" else 1) in answer
    assert 5 == future.result(0)


# Memory ---------------------------------------------------------------------------------------------


def test_memory(ledger: Ledger) -> None:
    """A future that nobody watches is a fraction of a standard one."""

    def size_of(make: Callable[[], Any]) -> float:
        make()
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            kept = [make() for _ in range(500)]
            return (tracemalloc.get_traced_memory()[0] - before) / len(kept)
        finally:
            tracemalloc.stop()

    def ended() -> SnakepitFuture:
        future = SnakepitFuture(ledger)
        future.set_result(None)
        return future

    assert sys.getsizeof(SnakepitFuture(ledger)) < 200
    assert size_of(ended) < 350
    assert size_of(ended) < size_of(Future) / 3


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("how", END)
def test_a_settled_future_holds_nothing(ledger: Ledger, how: str, watched: bool) -> None:
    """Neither the request nor the loan is kept, so that all are freed without the collector."""
    request, future = accepted(ledger)
    future._loan = SimpleNamespace(request=request)  # type: ignore[assignment]
    if watched:
        assert future._condition
    END[how](future)

    assert future._loan is None
    assert future._request is None
    gone = weakref.ref(future)
    gc.disable()
    try:
        ledger.settle(request, Outcome.COMPLETED)
        ledger._inbox.drain()
        del request, future
        assert gone() is None
    finally:
        gc.enable()
