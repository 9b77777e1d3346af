"""Idle workers that callers' threads may use for a call of their own, without the pool's thread on the way.

A sequential caller would wait for two changes of threads a call: from its own to the manager's, and back.  So
the manager lends a worker that has just answered and has nothing more to do (`_pool/lending`).  A caller that
finds one sends its request and reads the answer itself (`_pool/direct`).  Before the manager handles anything it
recalls every loan: while the scheduler decides, it sees all workers as they are.

    resting -take, admit-> in hands (a caller writes, then reads) -finish-> resting
                             | lay_down ^ pick_up
                             v          |
                          laid down: nobody reads yet, the manager watches
    any of them -recall-> the manager's; what is in hands then comes back as ``Returned``

Shared by the manager's thread and callers'; owns what is lent.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Iterable
from typing import Any

import attrs

from .. import telemetry
from .._core.model import Outcome, Request, RequestState
from .._inbox import Inbox
from .arrivals import Arrival, Reply
from .ledger import Ledger
from .link import Link

__all__ = ("REST_S", "Lender", "Loan", "Returned")

REST_S = 1.0
"""Seconds after which a loan that nobody used is recalled: until then the manager sees of a lent worker its end
only, not what it writes uncalled-for.  Arbitrary: one wake-up a second while calls go on, none in an idle pool."""


class Loan:
    """One lent worker.

    Attributes:
        lender: Whose.
        link: Used by whoever has the loan in hands, and by nobody else.
        request: Sent, or about to be, and not answered; None while it rests.
        holder: The caller's thread that writes or reads, or None.
        recalled: The manager has it back, or will when it leaves the caller's hands.
        served: Calls that were answered since it was lent.
        is_answered: The answer to the request has been read, and is being loaded.
    """

    __slots__ = ("_poll", "holder", "is_answered", "lender", "link", "recalled", "request", "served")

    def __init__(self, lender: Lender, link: Link) -> None:
        self.lender = lender
        self.link = link
        self.request: Request | None = None
        self.holder: int | None = None
        self.recalled = False
        self.served = 0
        self.is_answered = False
        self._poll = select.poll()
        self._poll.register(link.channel.reply_fd, select.POLLIN)

    def is_held(self, request: Request) -> bool:
        """Say whether this thread has the loan in hands, for this request."""
        return self.request is request and self.holder == threading.get_ident()

    @property
    def can_wait(self) -> bool:
        """False when the request has not been written to its end, or cannot be."""
        channel = self.link.channel
        return channel.request_fd is not None and not channel.wants_write

    def has_arrivals(self, limit_ms: float) -> bool:
        """Wait at most so long for something to read, or for the end of the stream."""
        return bool(self._poll.poll(limit_ms))


@attrs.frozen(eq=False)
class Returned:
    """A caller gives a loan back, with what it has read and nobody has handled.

    Attributes:
        torn: What was raised while the caller read: bytes of the worker may be lost.  Or None.
    """

    loan: Loan
    arrivals: list[Arrival]
    torn: BaseException | None = None


class Lender:
    """The loans of one pool.

    Args:
        ledger: Its lock protects them.
        inbox: Where loans come back.
        pause: Called with a link, and whether the manager is to leave its replies unread; from any thread.

    Attributes:
        readers: Threads that read a reply: users' code that runs there must not wait for the pool.
    """

    # LOCK: the ledger's protects `_lent`, `_untold` and the attributes of loans.
    # INVARIANT: `_resting` holds loans of `_lent` without a request; popped without the lock, so that one may be in
    # nobody's list for a moment: then it is of no use to anybody until `admit`, which finds `recalled`.
    # INVARIANT: `_untold` holds the loans that were recalled since the pool's numbers were published last.
    def __init__(self, ledger: Ledger, inbox: Inbox, pause: Callable[[Link, bool], None]) -> None:
        self._ledger = ledger
        self.readers = ledger.readers
        self._inbox = inbox
        self._pause = pause
        self._lent: list[Loan] = []
        self._resting: list[Loan] = []
        self._untold: list[Loan] = []
        ledger.direct_calls, ledger.told_locked = self._calling, self._told_locked

    def _calling(self) -> int:
        return sum(loan.request is not None for loan in (*self._lent, *self._untold))

    # Callers ----------------------------------------------------------------------------------------

    @property
    def has_resting(self) -> bool:
        """True when it is worth while to ask for a loan."""
        return bool(self._resting)

    def take(self) -> Loan | None:
        """Return a loan that rests, or None."""
        try:
            loan = self._resting.pop()
        except IndexError:
            return None
        # What nobody asked for is the manager's to judge, which reads it before it handles the request that is posted.
        return None if loan.has_arrivals(0) else loan

    def admit(self, loan: Loan, request: Request) -> bool:
        """Let a request in that will be sent by its caller; False: it has to be posted."""
        if self._ledger.admit_direct(request, lambda: self._occupy(loan, request)):
            return True
        with self._ledger.lock:
            if not loan.recalled:
                self._resting.append(loan)
        return False

    @staticmethod
    def _occupy(loan: Loan, request: Request) -> bool:
        if loan.recalled:
            return False
        # RACE: 1. the request is admitted, 2. the pool is shut down (another thread): what is pending is cancelled, and
        # the loan recalled.  Both find it sent (tests/unit/test_loans.py::test_what_is_admitted_runs_already).
        request.state = RequestState.SENT
        request.sent_at = request.started_at = request.accepted_at
        request.future.begin_direct(loan.link.pid)
        loan.request, loan.holder, loan.is_answered = request, threading.get_ident(), False
        return True

    def lay_down(self, loan: Loan) -> bool:
        """Let the manager read the answer if nobody else does first; False when the loan was recalled."""
        self._pause(loan.link, False)
        with self._ledger.lock:
            if loan.recalled:
                return False
            loan.holder = None
        return True

    def pick_up(self, loan: Loan, request: Request) -> bool:
        """Take what was laid down into one's hands again; False when the answer is somebody else's to read."""
        with self._ledger.lock:
            if loan.request is not request or loan.holder is not None or loan.recalled:
                return False
            loan.holder = threading.get_ident()
        self._pause(loan.link, True)
        return True

    def finish(self, loan: Loan, reply: Reply) -> bool:
        """End a call with its answer; False when that is the manager's business."""
        request = reply.request
        future = request.future
        # RACE: 1. the answer is read in time, 2. users' code loads it, for long, 3. the manager recalls the loan, and
        # the time is over.  From here on it knows that the answer is there, or this thread that it has recalled: each
        # writes before it looks
        # (tests/integration/test_direct.py::test_an_answer_that_loads_for_long_beats_its_deadline).
        loan.is_answered = True
        if self._is_managers(loan, future):
            return False
        value, error = reply.load()
        with self._ledger.lock:
            if self._is_managers(loan, future):
                reply.value, reply.error, reply.pickled = value, error, None
                return False
            # The loan last: until then whoever is interrupted still has it in hands.
            request.state = RequestState.DONE
            request.content = None
            if not request.settled:
                future.end_unwatched_locked(value, error)
                self._ledger.settle_locked(request, Outcome.COMPLETED if error is None else Outcome.ERROR)
            loan.served += 1
            loan.request, loan.holder = None, None
            self._resting.append(loan)
        return True

    @staticmethod
    def _is_managers(loan: Loan, future: Any) -> bool:
        # Who ends a future that others watch may run their code: only the pool's own thread does.
        return loan.recalled or future.is_watched or telemetry.enabled("snakepit.worker.request")

    def give_back(self, returned: Returned) -> None:
        """Leave a loan and its request to the manager."""
        request = returned.loan.request
        # RACE: 1. a caller ends its future, 2. an exception that another thread has set comes before that is counted
        # (tests/integration/test_direct_interrupts.py::test_exceptions_set_by_other_threads).
        if request is not None and request.future.done() and not request.settled:
            failed = request.future.exception(0) is not None
            self._ledger.settle(request, Outcome.ERROR if failed else Outcome.COMPLETED)
        if not self._inbox.post(returned):
            # The pool has ended, and left the descriptors open for this thread.
            returned.loan.link.channel.close()

    def rescue(self, loan: Loan, request: Request, error: BaseException) -> None:
        """Leave to the manager what this thread has in hands: it was interrupted by an error."""
        if loan.is_held(request):
            # Given back already, perhaps: the manager takes it once.
            self.give_back(Returned(loan, [], error))

    # The manager ------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        """True while something is lent."""
        return bool(self._lent)

    def lend(self, links: Iterable[Link]) -> None:
        """THREAD: manager.  Lend these workers, which are idle."""
        for link in links:
            self._pause(link, True)
            loan = Loan(self, link)
            with self._ledger.lock:
                self._lent.append(loan)
                self._resting.append(loan)

    def recall(self) -> list[Loan]:
        """THREAD: manager.  Recall every loan; those that are not in anybody's hands are watched again."""
        with self._ledger.lock:
            loans, self._lent = self._lent, []
            self._resting.clear()
            self._untold += loans
            for loan in loans:
                loan.recalled = True
        for loan in loans:
            if loan.holder is None:
                self._pause(loan.link, False)
        return loans

    def _told_locked(self) -> None:
        # The scheduler's numbers know of all that was recalled.
        self._untold = []

    @property
    def has_untold(self) -> bool:
        """True when loans were recalled since the numbers were published last."""
        return bool(self._untold)
