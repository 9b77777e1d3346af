"""Loans: who has a lent worker in hands, and who hears of what came of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from snakepit import telemetry
from snakepit._core.model import Outcome, Request, RequestState
from snakepit._inbox import Inbox
from snakepit._pool import direct
from snakepit._pool.arrivals import Reply
from snakepit._pool.channel import Channel
from snakepit._pool.future import SnakepitFuture
from snakepit._pool.ledger import Ledger
from snakepit._pool.loans import REST_S, Lender, Loan, Returned

LIMIT_S = 20.0


class Line:
    """A link whose worker is the test: requests are counted, replies are what the test has put there."""

    def __init__(self) -> None:
        request_read, request_write = os.pipe()
        reply_read, self.reply_fd = os.pipe()
        os.set_blocking(reply_read, False)
        os.set_blocking(request_write, False)
        self._request_fd = request_read
        self.channel = Channel(request_write, reply_read)
        self.pid = 77
        self.sent: list[Request] = []
        self.answers: list[Any] = []
        self.error: BaseException | None = None

    def send(self, requests: list[Request]) -> None:
        if self.error is not None:
            raise self.error
        self.sent += requests

    def answer(self, value: Any, error: BaseException | None = None) -> None:
        self.answers.append(Reply(self.sent[-1], error, value))
        os.write(self.reply_fd, b"x")

    def receive(self) -> list[Any]:
        self.channel.receive()
        answers, self.answers = self.answers, []
        return answers

    def close(self) -> None:
        self.channel.close()
        os.close(self._request_fd)
        if self.reply_fd >= 0:
            os.close(self.reply_fd)


class Office:
    """A lender with one link, and what it does."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.ledger = Ledger(self.inbox, None, 1 << 20)
        self.paused: list[bool] = []
        self.lender = Lender(self.ledger, self.inbox, lambda link, paused: self.paused.append(paused))
        self.line = Line()
        self.ledger.publish((1, 1, 0, 0, 0, 0))

    def lend(self) -> Loan:
        self.lender.lend([self.line])  # type: ignore[list-item]  # what is used of it
        (loan,) = self.lender._lent
        return loan

    def request(self, **options: Any) -> Request:
        request = Request("content", "command", accepted_at=5.0, size_bytes=10, **options)
        request.future = SnakepitFuture(self.ledger, request)
        return request

    def posted(self) -> list[Any]:
        return list(self.inbox.drain())

    def close(self) -> None:
        self.line.close()
        self.inbox.close()


@pytest.fixture
def office() -> Iterator[Office]:
    """Return a lender with one worker that the test plays."""
    office = Office()
    yield office
    office.close()


def numbers(office: Office) -> tuple[int, ...]:
    stats = office.ledger.stats()
    assert stats.requests == stats.completed + stats.errors + stats.cancelled + stats.queued + stats.running
    return stats.available, stats.busy, stats.running, stats.completed, stats.errors


def test_nothing_is_lent(office: Office) -> None:
    """Where nothing rests a request has to be posted, and is untouched."""
    request = office.request()
    assert not office.lender
    assert not office.lender.has_resting
    assert not direct.call(office.lender, request)
    assert not direct.send(office.lender, request)
    assert (RequestState.QUEUED, 0, 10) == (request.state, request.seq, request.size_bytes)
    assert (1, 0, 0, 0, 0) == numbers(office)


@pytest.mark.parametrize("fails", [False, True])
def test_a_call(office: Office, fails: bool) -> None:
    """It is admitted, sent, answered and counted, and the worker rests again."""
    loan = office.lend()
    seen: list[Any] = []

    def answer(requests: list[Request]) -> None:
        office.line.sent += requests
        seen.append((numbers(office), loan.is_held(requests[0]), office.lender.has_resting))
        office.line.answer(*((None, ValueError("bad")) if fails else (5, None)))

    office.line.send = answer  # type: ignore[method-assign]
    request = office.request()

    assert direct.call(office.lender, request)

    assert [((0, 1, 1, 0, 0), True, False)] == seen
    assert (1, 0, 0, int(not fails), int(fails)) == numbers(office)
    assert (RequestState.DONE, None, True) == (request.state, request.content, request.settled)
    assert (1, None, None) == (loan.served, loan.request, loan.holder)
    assert office.lender.has_resting
    assert not office.lender.readers
    assert [] == office.posted()
    assert request.future.done()
    assert 77 == request.future.pid
    assert not request.future.is_watched
    if fails:
        assert isinstance(request.future.exception(), ValueError)
    else:
        assert 5 == request.future.result()


def test_what_is_admitted_runs_already(office: Office) -> None:
    """Who finds a request among the pending ones finds it sent: it cannot be cancelled as if it waited."""
    office.lend()
    seen: list[Any] = []
    occupy = Lender._occupy

    class Pending(dict[Request, None]):
        def __setitem__(self, request: Request, value: None) -> None:
            seen.append((request.state, request.sent_at, request.started_at, request.future.running()))
            assert not request.future.cancel()
            super().__setitem__(request, value)

    office.ledger.unsettled = Pending()
    loan = office.lender.take()
    assert loan is not None
    request = office.request()

    assert office.lender.admit(loan, request)

    assert [(RequestState.SENT, 5.0, 5.0, True)] == seen
    assert occupy is Lender._occupy


@pytest.mark.parametrize("reason", ["recalled", "posted", "refused", "full", "large", "unknown size"])
def test_what_has_to_be_posted(office: Office, reason: str) -> None:
    """A request is sent by its caller only where nothing speaks against it; a loan that was taken rests again."""
    loan = office.lend()
    request = office.request()
    take = office.lender.take

    def recalled() -> Loan | None:
        taken = take()
        office.lender.recall()
        return taken

    if reason == "recalled":
        office.lender.take = recalled  # type: ignore[method-assign]
    elif reason == "posted":
        office.inbox.post("something")
    elif reason == "refused":
        office.ledger.refuse(lambda: RuntimeError("shut"))
    elif reason == "full":
        office.ledger._limit = 0
    else:
        request.size_bytes = 0 if reason == "unknown size" else direct.MOST_BYTES + 1

    assert not direct.call(office.lender, request)

    assert [] == office.line.sent
    assert (RequestState.QUEUED, False) == (request.state, request.future.running())
    assert (1, 0, 0, 0, 0) == numbers(office)
    assert loan.request is None
    assert office.lender.has_resting == (reason != "recalled")


def test_what_is_written_uncalled_for(office: Office) -> None:
    """A worker that has written something while it rested is left to the manager."""
    office.lend()
    os.write(office.line.reply_fd, b"x")

    assert not direct.call(office.lender, office.request())
    assert not office.lender.has_resting
    assert 1 == len(office.lender.recall())


@pytest.mark.parametrize("moment", ["sent", "answered"])
def test_recalled_in_the_middle(office: Office, moment: str) -> None:
    """What a caller has in its hands at the recall comes back, with what it has read."""
    loan = office.lend()
    recalled: list[Loan] = []
    request = office.request()

    def send(requests: list[Request]) -> None:
        office.line.sent += requests
        recalled.extend(office.lender.recall())
        office.line.answer(5)

    office.line.send = send  # type: ignore[method-assign]
    assert direct.call(office.lender, request)

    assert [loan] == recalled
    (returned,) = office.posted()
    assert (loan, None) == (returned.loan, returned.torn)
    assert [5] == [reply.value for reply in returned.arrivals]
    # The manager has not told of it: its worker is busy.
    assert (0, 1, 1, 0, 0) == numbers(office)
    office.ledger.publish((1, 0, 1, 0, 0, 0))
    assert (0, 1, 1, 0, 0) == numbers(office)
    assert not request.future.done()
    # In hands, so the manager reads nothing.
    assert [True] == office.paused
    assert not office.lender.has_untold


def test_an_answer_that_does_not_come(office: Office) -> None:
    """A caller waits for so long, and gives its worker back with nothing."""
    loan = office.lend()
    request = office.request(timeout_s=0.001)

    assert direct.call(office.lender, request)

    (returned,) = office.posted()
    assert (loan, [], None) == (returned.loan, returned.arrivals, returned.torn)
    assert loan.is_held(request)


@pytest.mark.parametrize("reason", ["watched", "listened to"])
def test_an_end_that_others_watch(office: Office, reason: str) -> None:
    """Where users' code may run at the end of a call, that is left to the manager."""
    office.lend()
    request = office.request()

    def send(requests: list[Request]) -> None:
        office.line.sent += requests
        if reason == "watched":
            request.future.add_done_callback(lambda _: None)
        else:
            telemetry.attach("loans", "snakepit.worker.request", lambda *_: None)
        office.line.answer(5)

    office.line.send = send  # type: ignore[method-assign]
    try:
        assert direct.call(office.lender, request)
    finally:
        telemetry.detach("loans")

    (returned,) = office.posted()
    assert [5] == [reply.value for reply in returned.arrivals]
    assert not request.settled


@pytest.mark.parametrize("who", ["caller", "another thread", "manager"])
def test_laid_down(office: Office, who: str) -> None:
    """Whoever wants the answer first reads it, and nobody else."""
    loan = office.lend()
    request = office.request()
    assert direct.send(office.lender, request)
    assert [True, False] == office.paused
    assert loan.holder is None
    assert (0, 1, 1, 0, 0) == numbers(office)
    office.line.answer(5)

    if who == "manager":
        assert [loan] == office.lender.recall()
        direct.resume(loan, request)
        assert (request, None) == (loan.request, loan.holder)
        assert not request.settled
        return
    if who == "caller":
        assert 5 == request.future.result()
    else:
        thread = threading.Thread(target=request.future.result)
        thread.start()
        thread.join(LIMIT_S)
    assert [True, False, True] == office.paused
    assert 5 == request.future.result()
    assert (1, 0, 0, 1, 0) == numbers(office)
    assert office.lender.has_resting


def test_only_one_picks_up(office: Office) -> None:
    """A second thread that asks for the result finds it in hands, an old future another's request."""
    loan = office.lend()
    request = office.request()
    assert direct.send(office.lender, request)

    assert office.lender.pick_up(loan, request)
    assert not office.lender.pick_up(loan, request)
    assert not office.lender.pick_up(loan, office.request())
    office.line.answer(5)
    assert office.lender.finish(loan, office.line.receive()[0])
    assert not office.lender.pick_up(loan, request)


@pytest.mark.parametrize("reason", ["recalled", "closed", "not written"])
def test_what_cannot_be_laid_down(office: Office, reason: str) -> None:
    """It is the manager's at once, since nobody else might look after it."""
    loan = office.lend()
    request = office.request()

    def send(requests: list[Request]) -> None:
        office.line.sent += requests
        if reason == "recalled":
            office.lender.recall()
        elif reason == "closed":
            office.line.channel.close_requests()
        else:
            office.line.channel.send([bytes(1 << 20)])

    office.line.send = send  # type: ignore[method-assign]
    assert direct.send(office.lender, request)

    (returned,) = office.posted()
    assert (loan, []) == (returned.loan, returned.arrivals)
    assert loan.is_held(request)


@pytest.mark.parametrize("timeout_s", [None, REST_S / 2, REST_S, 2 * REST_S])
def test_time_outs_of_what_is_laid_down(office: Office, timeout_s: float | None) -> None:
    """Nothing is laid down whose time may be over before the manager hears of it."""
    office.lend()
    assert direct.send(office.lender, office.request(timeout_s=timeout_s)) == (timeout_s is None or timeout_s > REST_S)


@pytest.mark.parametrize("moment", ["send", "read", "finish"])
def test_an_exception_from_outside(office: Office, moment: str) -> None:
    """The loan comes back, and only what may have been lost counts as torn."""
    loan = office.lend()
    request = office.request()
    error = KeyboardInterrupt()

    def fail(*_: Any) -> Any:
        raise error

    def send(requests: list[Request]) -> None:
        office.line.sent += requests
        office.line.answer(5)
        if moment == "send":
            fail()

    office.line.send = send  # type: ignore[method-assign]
    if moment == "read":
        office.line.receive = fail  # type: ignore[method-assign]
    elif moment == "finish":
        office.lender.finish = fail  # type: ignore[method-assign]

    with pytest.raises(KeyboardInterrupt):
        direct.call(office.lender, request)

    returned = office.posted()
    assert all(isinstance(item, Returned) and item.loan is loan for item in returned)
    # The manager takes the first.
    assert ((None, 1) if moment == "finish" else (error, 0)) == (returned[0].torn, len(returned[0].arrivals))
    assert not office.lender.readers


def test_the_pool_has_ended(office: Office) -> None:
    """Who comes back late closes what was left open."""
    loan = office.lend()
    request = office.request()

    def send(requests: list[Request]) -> None:
        office.line.sent += requests
        office.lender.recall()
        office.inbox.close()

    office.line.send = send  # type: ignore[method-assign]
    office.line.answers = []
    assert direct.send(office.lender, request)

    assert (None, -1) == (office.line.channel.request_fd, office.line.channel.reply_fd)
    assert loan.recalled


def test_a_call_that_was_settled_meanwhile(office: Office) -> None:
    """Whoever was first has ended it; the worker rests all the same."""
    office.lend()
    request = office.request()

    def send(requests: list[Request]) -> None:
        office.line.sent += requests
        office.ledger.settle(request, Outcome.CANCELLED)
        office.line.answer(5)

    office.line.send = send  # type: ignore[method-assign]
    assert direct.call(office.lender, request)

    assert not request.future.done()
    assert office.lender.has_resting
    assert (1, 0, 0, 0, 0) == numbers(office)
