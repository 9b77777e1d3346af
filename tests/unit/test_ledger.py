"""The ledger: who is let in, how each request ended, and numbers that always add up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from snakepit._clock import monotonic_s
from snakepit._core.model import Outcome, Request, RequestKind
from snakepit._inbox import Inbox
from snakepit._pool.future import SnakepitFuture
from snakepit._pool.ledger import Ledger
from snakepit.errors import QueueFull


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    """Return an inbox; closed after the test."""
    box = Inbox()
    yield box
    box.close()


def request(size_bytes: int = 0, weight: int = 1, kind: RequestKind = RequestKind.USER) -> Request:
    """Return a request that waits."""
    return Request(None, "run", kind=kind, size_bytes=size_bytes, weight=weight)


def admit(ledger: Ledger, *requests: Request, **options: Any) -> None:
    """Admit requests without waiting for room."""
    for one in requests:
        ledger.admit(one, **{"block": False, "deadline": None, **options})


def begin(ledger: Ledger, one: Request) -> None:
    """Send a request as its worker's oldest."""
    one.started_at = monotonic_s()
    ledger.sent((one,), (1, 0, 1, 0, 0, 0))


def numbers(ledger: Ledger) -> dict[str, int]:
    """Return the counters that are not 0."""
    stats = ledger.stats()
    names = (
        "requests",
        "completed",
        "errors",
        "cancelled",
        "queue_timeouts",
        "command_timeouts",
        "queued",
        "running",
    )
    return {name: getattr(stats, name) for name in names if getattr(stats, name)}


def test_what_is_put_back_waits_again(inbox: Inbox) -> None:
    """A request that was its worker's oldest, and had not begun, is queued again and begins once more."""
    ledger = Ledger(inbox, None, 1000)
    oldest, behind = request(weight=3), request()
    admit(ledger, oldest, behind)
    begin(ledger, oldest)
    assert {"requests": 4, "queued": 1, "running": 3} == numbers(ledger)

    ledger.put_back([oldest, behind])

    assert {"requests": 4, "queued": 4} == numbers(ledger)
    begin(ledger, oldest)
    assert {"requests": 4, "queued": 1, "running": 3} == numbers(ledger)


def test_admission_posts_in_order(inbox: Inbox) -> None:
    """Accepted requests have rising numbers and are posted in that order."""
    ledger = Ledger(inbox, None, 1000)
    requests = [request() for _ in range(3)]

    admit(ledger, *requests)

    assert [1, 2, 3] == [one.seq for one in requests]
    items = list(inbox.drain())
    assert requests == [item for item in items if isinstance(item, Request)]
    assert {"requests": 3, "queued": 3} == numbers(ledger)


@pytest.mark.parametrize(
    ("outcome", "counter"),
    [
        (Outcome.COMPLETED, "completed"),
        (Outcome.ERROR, "errors"),
        (Outcome.DIED, "errors"),
        (Outcome.CANCELLED, "cancelled"),
        (Outcome.QUEUE_TIMEOUT, "queue_timeouts"),
        (Outcome.COMMAND_TIMEOUT, "command_timeouts"),
    ],
)
@pytest.mark.parametrize("running", [False, True])
def test_each_end_has_its_counter(inbox: Inbox, outcome: Outcome, counter: str, running: bool) -> None:
    """A request moves from queued or running to exactly one counter, with its weight, once."""
    ledger = Ledger(inbox, None, 1000)
    one = request(weight=3)
    admit(ledger, one)
    if running:
        begin(ledger, one)
        assert {"requests": 3, "running": 3} == numbers(ledger)

    assert [True, False, False] == [ledger.settle(one, outcome) for _ in range(3)]

    assert {"requests": 3, counter: 3} == numbers(ledger)
    assert {} == ledger.unsettled


def test_reply_and_cancel_settle_once(inbox: Inbox) -> None:
    """The manager's reply and the caller's cancel, at once: one of them decides, the counters agree."""
    for _ in range(100):
        ledger = Ledger(inbox, None, 1000)
        one = request()
        future = SnakepitFuture(ledger)
        one.future, future._request = future, one
        admit(ledger, one)
        future.claim()
        begin(ledger, one)
        start = threading.Barrier(2)
        won: dict[str, bool] = {}

        def reply(
            ledger: Ledger = ledger, one: Request = one, start: threading.Barrier = start, won: Any = won
        ) -> None:
            start.wait()
            won["reply"] = ledger.finish([(one, Outcome.COMPLETED)], None)[0]
            if won["reply"]:
                one.future.set_result(1)

        thread = threading.Thread(target=reply)
        thread.start()
        start.wait()
        won["cancel"] = future.cancel(running=True)
        thread.join(10)

        assert 1 == sum(won.values())
        assert won["cancel"] == future.cancelled()
        assert {"requests": 1, "cancelled" if won["cancel"] else "completed": 1} == numbers(ledger)


def test_the_pools_own_requests_are_not_counted(inbox: Inbox) -> None:
    """Health checks and set-up commands were never accepted, so they never run for the counters."""
    ledger = Ledger(inbox, None, 1000)

    for kind in (RequestKind.PING, RequestKind.SETUP):
        begin(ledger, request(kind=kind))

    assert {} == numbers(ledger)


def test_the_next_begins_when_the_oldest_ends(inbox: Inbox) -> None:
    """finish() moves both at one instant: there is no reading between them."""
    ledger = Ledger(inbox, None, 1000)
    first, second = request(), request()
    admit(ledger, first, second)
    begin(ledger, first)

    assert [True] == ledger.finish([(first, Outcome.COMPLETED)], second)

    assert {"requests": 2, "completed": 1, "running": 1} == numbers(ledger)


def test_recount(inbox: Inbox) -> None:
    """A result that does not load is an error after all."""
    ledger = Ledger(inbox, None, 1000)
    one = request(weight=2)
    admit(ledger, one)
    ledger.settle(one, Outcome.COMPLETED)

    ledger.recount(one, Outcome.COMPLETED, Outcome.ERROR)

    assert {"requests": 2, "errors": 2} == numbers(ledger)


def test_the_limit_counts_unsettled_requests(inbox: Inbox) -> None:
    """Beyond the limit admission raises with the pool's numbers; a settled request makes room."""
    ledger = Ledger(inbox, 2, 1000)
    first, second = request(), request()
    admit(ledger, first, second)

    with pytest.raises(
        QueueFull, match=r"2 unsettled requests, 2 allowed \(workers 0, busy 0, starting 0, queued 2\)"
    ):
        admit(ledger, request())
    ledger.settle(first, Outcome.CANCELLED)
    admit(ledger, request())

    assert (1, 3) == (ledger.stats().pool_saturated, ledger.stats().requests)


def test_the_byte_limit(inbox: Inbox) -> None:
    """Waiting bytes are bounded; sent, settled and lazy requests hold none of them back."""
    ledger = Ledger(inbox, None, 100)
    first, second = request(60), request(40)
    admit(ledger, first, second)

    assert ledger.overfull()
    with pytest.raises(QueueFull, match=r"100 bytes and 1 more are above max_queued_bytes \(100\)"):
        admit(ledger, request(1))
    admit(ledger, request(0))
    admit(ledger, request(500), lazy_bytes=True)
    begin(ledger, first)
    ledger.settle(second, Outcome.CANCELLED)

    assert 500 == ledger.queued_bytes


def test_one_larger_than_the_byte_limit_enters_an_empty_queue(inbox: Inbox) -> None:
    """A single request above the limit is not refused for ever."""
    ledger = Ledger(inbox, None, 100)

    admit(ledger, request(5000))

    assert 5000 == ledger.queued_bytes


def test_blocked_callers_are_woken_one_by_one(inbox: Inbox) -> None:
    """Each settled request lets one of the waiting callers in, until all are."""
    ledger = Ledger(inbox, 1, 1000)
    first = request()
    admit(ledger, first)
    waiting = [request() for _ in range(5)]
    threads = [
        threading.Thread(target=ledger.admit, args=(one,), kwargs={"block": True, "deadline": None})
        for one in waiting
    ]
    for thread in threads:
        thread.start()

    ledger.settle(first, Outcome.COMPLETED)
    left = list(waiting)
    for _ in range(5):
        deadline = monotonic_s() + 10
        while not (inside := [one for one in left if one in ledger.unsettled]):
            assert monotonic_s() < deadline
        assert 1 == len(inside)
        left.remove(inside[0])
        ledger.settle(inside[0], Outcome.COMPLETED)
    for thread in threads:
        thread.join(10)

    assert {"requests": 6, "completed": 6} == numbers(ledger)


def test_a_blocked_caller_gives_up_at_its_deadline(inbox: Inbox) -> None:
    """After the deadline it is QueueFull, and nothing was accepted."""
    ledger = Ledger(inbox, 1, 1000)
    admit(ledger, request())

    with pytest.raises(QueueFull):
        ledger.admit(request(), block=True, deadline=monotonic_s() + 0.05)

    assert (1, 1) == (ledger.stats().requests, ledger.stats().pool_saturated)


def test_refusal_and_opening(inbox: Inbox) -> None:
    """A shut door raises what it was given, for everybody, until it is opened."""
    ledger = Ledger(inbox, None, 1000)

    ledger.refuse(lambda: RuntimeError("broken"))
    for call in (ledger.check_open, lambda: admit(ledger, request()), lambda: ledger.admit_failed(request())):
        with pytest.raises(RuntimeError, match="broken"):
            call()
    ledger.refuse(None)
    admit(ledger, request())

    assert {"requests": 1, "queued": 1} == numbers(ledger)


def test_a_door_shut_for_good_stays_shut(inbox: Inbox) -> None:
    """A pool that heals after its shutdown accepts nothing: its last request has come."""
    ledger = Ledger(inbox, None, 1000)
    ledger.refuse(lambda: RuntimeError("shut down"), final=True)

    ledger.refuse(None)
    ledger.refuse(lambda: RuntimeError("broken"))

    with pytest.raises(RuntimeError, match="shut down"):
        admit(ledger, request())


def test_a_request_that_failed_before_it_was_sent(inbox: Inbox) -> None:
    """A call that could not be pickled counts as accepted and failed, and is posted to nobody."""
    ledger = Ledger(inbox, None, 1000)

    ledger.admit_failed(request(weight=4))

    assert {"requests": 4, "errors": 4} == numbers(ledger)
    assert [] == list(inbox.drain())


def test_own_threads_are_known(inbox: Inbox) -> None:
    """on_own_thread is true exactly on the pool's threads."""
    ledger = Ledger(inbox, None, 1000)
    assert not ledger.on_own_thread

    ledger.threads = frozenset((threading.get_ident(),))

    assert ledger.on_own_thread


def test_abandon_after_a_fork(inbox: Inbox) -> None:
    """The child's copy refuses everything and gives back what was pending, settled."""
    ledger = Ledger(inbox, None, 1000)
    requests = [request() for _ in range(3)]
    admit(ledger, *requests)
    ledger.settle(requests[0], Outcome.COMPLETED)

    pending = ledger.abandon(lambda: RuntimeError("forked"))

    assert requests[1:] == pending
    assert all(one.settled for one in requests)
    with pytest.raises(RuntimeError, match="forked"):
        admit(ledger, request())
