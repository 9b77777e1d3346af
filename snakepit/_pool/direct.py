"""A call on its caller's own thread: a lent worker's pipes are written and read here, for a moment.

Runs on callers' threads; owns a loan from its taking to its return.  Whatever is not the sunny path (a long
answer, a dead worker, garbage, a watched future) is left to the manager, which goes on as if it had sent the
request itself.
"""

from __future__ import annotations

from .._clock import monotonic_s
from .._core.model import Request, RequestState
from .arrivals import Arrival, Reply
from .loans import Lender, Loan, Returned

__all__ = ("LIMIT_MS", "MOST_BYTES", "begin", "collect")

LIMIT_MS = 2.0
"""How long a caller waits by itself; then the manager does.  Arbitrary: some changes of threads."""

MOST_BYTES = 60000
"""Largest request that a caller sends itself: an empty pipe (64 KiB) takes it at once."""


def begin(lender: Lender, request: Request) -> Loan | None:
    """Admit and send a request on this thread; None: nothing was done, and it has to be posted.

    The caller must not be interrupted before ``collect`` or ``lay_down`` (`_pool/interrupts`).
    """
    if request.size_bytes > MOST_BYTES:
        return None
    loan = lender.take()
    if loan is None or not lender.admit(loan, request):
        return None
    request.state = RequestState.SENT
    request.sent_at = request.started_at = request.accepted_at
    future = request.future
    future.begin_direct(loan, loan.link.pid)
    try:
        loan.link.send([request])
    except BaseException as error:
        lender.give_back(Returned(loan, [], error))
        raise
    return loan


def lay_down(loan: Loan) -> None:
    """Leave the answer to whoever wants it first: this future's ``result``, or the manager."""
    if not loan.lender.lay_down(loan):
        loan.lender.give_back(Returned(loan, []))


def collect(loan: Loan, request: Request, limit_ms: float = LIMIT_MS) -> None:
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
    try:
        arrivals = _receive(loan, limit_ms)
        if len(arrivals) == 1:
            (reply,) = arrivals
            if type(reply) is Reply and reply.request is request and lender.finish(loan, reply):
                return
    except BaseException as error:
        if loan.request is request:
            lender.give_back(Returned(loan, arrivals or [], error if arrivals is None else None))
        raise
    lender.give_back(Returned(loan, arrivals))


def _receive(loan: Loan, limit_ms: float) -> list[Arrival]:
    """Read until something is complete, the stream ends or the time is over."""
    channel = loan.link.channel
    if channel.request_fd is None or channel.wants_write or not loan.has_arrivals(limit_ms):
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
