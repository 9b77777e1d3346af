"""A call on its caller's own thread: a lent worker's pipes are written and read here, for a moment.

Runs on callers' threads; owns a loan from its taking to its return.  Whatever is not the sunny path (a long
answer, a dead worker, garbage, a watched future) is left to the manager, which goes on as if it had sent the
request itself.

A caller must not be interrupted in here (`_pool/interrupts`).  Where it is all the same, by an exception that another
thread has set, the loan goes back to the manager: at worst the worker is replaced.
"""

from __future__ import annotations

from collections.abc import Callable

from .._clock import monotonic_s
from .._core.model import Request
from .arrivals import Arrival, Reply
from .loans import REST_S, Lender, Loan, Returned

__all__ = ("LIMIT_MS", "MOST_BYTES", "call", "resume", "send")

LIMIT_MS = 2.0
"""How long a caller waits by itself; then the manager does.  Arbitrary: some changes of threads."""

MOST_BYTES = 60000
"""Largest request that a caller sends itself: an empty pipe (64 KiB) takes it at once."""


def call(lender: Lender, request: Request) -> bool:
    """Send a request and read its answer on this thread; False: nothing was done, and it has to be posted."""
    return _begin(lender, request, _collect)


def send(lender: Lender, request: Request) -> bool:
    """Send a request on this thread; False: nothing was done, and it has to be posted.

    The answer is read by whoever wants it first: ``resume``, or the manager.
    """
    # The manager hears of it no later than when the loan has rested for too long: its time-out must not pass before.
    if request.timeout_s is not None and request.timeout_s <= REST_S:
        return False
    return _begin(lender, request, _lay_down)


def resume(loan: Loan, request: Request) -> None:
    """Read the answer to what was sent, if it comes soon and nobody else reads it."""
    try:
        if loan.lender.pick_up(loan, request):
            _collect(loan, request)
    except BaseException as error:
        loan.lender.rescue(loan, request, error)
        raise


def _begin(lender: Lender, request: Request, go_on: Callable[[Loan, Request], None]) -> bool:
    # Of unknown size is what is still to be pickled, by its users' code.
    if not 0 < request.size_bytes <= MOST_BYTES:
        return False
    loan = lender.take()
    if loan is None:
        return False
    try:
        if not lender.admit(loan, request):
            return False
        loan.link.send([request])
        go_on(loan, request)
    except BaseException as error:
        lender.rescue(loan, request, error)
        raise
    return True


def _lay_down(loan: Loan, request: Request) -> None:
    # A pipe that has not taken all, or is closed, is the manager's to watch.
    request.future.is_laid_down(loan)
    if loan.can_wait and loan.lender.lay_down(loan):
        return
    loan.lender.give_back(Returned(loan, []))


def _collect(loan: Loan, request: Request, limit_ms: float = LIMIT_MS) -> None:
    """Wait a moment for the answer to a request that this thread has sent or picked up, and end it with that.

    Args:
        loan: In this thread's hands; it is not any more afterwards.
        request: Its request.
        limit_ms: Most time to wait.
    """
    lender = loan.lender
    if request.timeout_s is not None:
        limit_ms = min(limit_ms, request.timeout_s * 1000)
    arrivals: list[Arrival] | None = None
    ident = loan.holder
    try:
        lender.readers.add(ident)
        arrivals = _receive(loan, limit_ms)
        if len(arrivals) == 1:
            (reply,) = arrivals
            if type(reply) is Reply and reply.request is request and lender.finish(loan, reply):
                return
    except BaseException:
        if arrivals is not None and loan.is_held(request):
            lender.give_back(Returned(loan, arrivals))
        raise
    finally:
        lender.readers.discard(ident)
    lender.give_back(Returned(loan, arrivals))


def _receive(loan: Loan, limit_ms: float) -> list[Arrival]:
    """Read until something is complete, the stream ends or the time is over."""
    channel = loan.link.channel
    if not loan.can_wait or not loan.has_arrivals(limit_ms):
        return []
    arrivals = loan.link.receive()
    if not arrivals:
        until = monotonic_s() + limit_ms / 1000
        while not arrivals and not channel.closed_by_worker:
            left_ms = (until - monotonic_s()) * 1000
            if left_ms <= 0 or not loan.has_arrivals(left_ms):
                break
            arrivals = loan.link.receive()
    return arrivals
