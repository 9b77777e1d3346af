"""Admission to the pool and the counters that callers see, under the inbox's lock.

Called from callers' threads (admit, cancel, stats) and from the manager's (begin, settle, publish).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import attrs

from .._clock import monotonic_s
from .._core.board import fresh
from .._core.model import Cancelled, Outcome, Request, RequestKind
from .._core.numbers import PoolStats
from .._inbox import Inbox
from .._threads import is_owned
from ..errors import QueueFull

__all__ = ("Errand", "Ledger")

_COUNTERS = {
    Outcome.COMPLETED: "completed",
    Outcome.ERROR: "errors",
    Outcome.DIED: "errors",
    Outcome.CANCELLED: "cancelled",
    Outcome.QUEUE_TIMEOUT: "queue_timeouts",
    Outcome.COMMAND_TIMEOUT: "command_timeouts",
}


@attrs.frozen(eq=False)
class Errand:
    """Something that the pool's thread does in a thread's place that cannot wait for a lock."""

    do: Callable[[], object]


class Ledger:
    """Who was let in and how it ended; the one place where a request's end is decided and counted.

    Args:
        inbox: Where accepted requests are posted.
        limit: Most unsettled requests, or None.
        limit_bytes: Encoded bytes that may wait.
    """

    # INVARIANT: requests == completed + ... + queued + running, since `queued` is what is left over.
    # INVARIANT: `unsettled` holds exactly the accepted requests whose `settled` is False (I1).
    def __init__(self, inbox: Inbox, limit: int | None, limit_bytes: int) -> None:
        self._inbox = inbox
        self._limit = limit
        self._limit_bytes = limit_bytes
        # LOCK: the inbox's, and of the futures that nobody watches (`_pool/future`); `_room` lets blocked submits
        # wait for a settled request.
        self.lock = inbox.lock
        self._room = threading.Condition(inbox.lock)
        self._blocked = 0
        self._refusal: Callable[[], BaseException] | None = None
        self._final = False
        self.unsettled: dict[Request, None] = {}
        self.seq = 0
        self.queued_bytes = 0
        self._counts: dict[str, int] = dict.fromkeys((*_COUNTERS.values(), "requests", "running", "pool_saturated"), 0)
        self._workers = (0, 0, 0, 0, 0, 0)
        self.threads: frozenset[int | None] = frozenset()
        # Callers' threads that read a reply, and may run users' code with the pool's worker in their hands.
        self.readers: set[int | None] = set()
        # Workers that run a request of which the numbers about workers do not know; called with the lock held, as is
        # what is told when they do.
        self.direct_calls: Callable[[], int] = int
        self.told_locked: Callable[[], object] = int

    # Callers ----------------------------------------------------------------------------------------

    def refuse(self, refusal: Callable[[], BaseException] | None, *, final: bool = False) -> None:
        """Refuse every later request with what ``refusal`` makes; None opens the door again.

        Args:
            refusal: Makes the exception, or None.
            final: For ever: the pool is shut down.
        """
        with self.lock:
            # RACE: 1. recycle() is posted to a broken pool, 2. another thread shuts it down, 3. the manager
            # heals the pool.  A shut door stays shut, or a request would come after the last one.
            # (tests/unit/test_races_ledger.py::test_heal_and_shutdown_in_either_order)
            if self._final and not final:
                return
            self._final = self._final or final
            self._refusal = refusal
            self._room.notify_all()

    def refuse_with(self, error: BaseException) -> None:
        """Refuse every later request with a copy of an error."""
        self.refuse(lambda: fresh(error))

    @property
    def on_own_thread(self) -> bool:
        """True on a thread of the pool, where waiting for the pool would deadlock."""
        ident = threading.get_ident()
        return ident in self.threads or ident in self.readers

    def pending(self) -> list[Request]:
        """Return the accepted requests that have not ended."""
        with self.lock:
            return list(self.unsettled)

    def cancel_locked_future(self, request: Request) -> bool:
        """Decide and count a caller's cancellation; False when the request has ended already."""
        return self.settle(request, Outcome.CANCELLED)

    def after_cancel(self, request: Request) -> None:
        """Tell the pool, with no lock held, that a caller cancelled."""
        self._inbox.post(Cancelled(request))

    def cancel_anywhere(self, cancel: Callable[[], object]) -> None:
        """Cancel now, or on the pool's thread where this one has the lock."""
        # RACE: 1. a thread has this lock, and makes an object, 2. the garbage collector closes the iterator of a map
        # there, 3. a third one, in shutdown(), has the condition of its future and wants this lock
        # (tests/integration/test_cancel_interrupts.py::test_an_iterator_closed_under_the_ledgers_lock).
        if is_owned(self.lock):
            self._inbox.post(Errand(cancel))
        else:
            cancel()

    def refusal(self) -> BaseException | None:
        """Return what a request would be refused with now, or None; does not look at the room left."""
        refusal = self._refusal
        return None if refusal is None else refusal()

    def check_open(self) -> None:
        """Raise what a request would be refused with now; does not look at the room left."""
        refusal = self.refusal()
        if refusal is not None:
            raise refusal

    @property
    def is_bounded(self) -> bool:
        """True when only so many requests may be unsettled."""
        return self._limit is not None

    def overfull(self) -> bool:
        """Return True when the encoded requests that wait use up their bytes."""
        return self.queued_bytes >= self._limit_bytes

    def admit(self, request: Request, *, block: bool, deadline: float | None, lazy_bytes: bool = False) -> None:
        """Accept a request and post it, or raise.

        Args:
            request: Encoded; gets its ``seq``.
            block: Wait for room instead of raising ``QueueFull``.
            deadline: Monotonic seconds until which a blocked call waits, or None.
            lazy_bytes: The request may exceed the byte limit (a callable, of which a reference is kept).

        Raises:
            QueueFull: No room; raised here.
            RuntimeError, PoolBroken: The pool is shut down or broken; raised here.
        """
        with self.lock:
            while True:
                if self._refusal is not None:
                    raise self._refusal()
                full = self._full(request, lazy_bytes)
                if full is None:
                    break
                remaining = None if deadline is None else deadline - monotonic_s()
                if not block or (remaining is not None and remaining <= 0):
                    self._counts["pool_saturated"] += 1
                    raise QueueFull(full)
                self._blocked += 1
                try:
                    self._room.wait(remaining)
                except BaseException:
                    # RACE: 1. room is told to this waiter, 2. Ctrl-C ends its wait: the next one has to hear of it
                    # (tests/unit/test_races_ledger.py::test_an_interrupted_waiter_passes_room_on).
                    self._room.notify()
                    raise
                finally:
                    self._blocked -= 1
            wake = self._accept_locked(request)
        if wake:
            self._inbox.wake()

    def _accept_locked(self, request: Request) -> bool:
        self.seq += 1
        request.seq = self.seq
        self.unsettled[request] = None
        self.queued_bytes += request.size_bytes
        self._counts["requests"] += request.weight
        return self._inbox.post_locked(request)

    def admit_all(self, requests: list[Request]) -> int:
        """Accept requests in order for as long as there is room, at one instant; return how many.

        Raises:
            RuntimeError, PoolBroken: As in ``admit``; raised here.
        """
        wakes = accepted = 0
        with self.lock:
            if self._refusal is not None:
                raise self._refusal()
            for request in requests:
                if self._limit is not None or self._full(request, False):
                    break
                wakes += self._accept_locked(request)
                accepted += 1
        for _ in range(wakes):
            self._inbox.wake()
        return accepted

    def admit_direct(self, request: Request, take: Callable[[], bool]) -> bool:
        """Accept a request that its caller sends itself, and count it as running; False: it has to be posted.

        Args:
            request: Encoded; gets its ``seq``.
            take: Called with the lock held; False: there is no worker for it.
        """
        with self.lock:
            # What was posted before comes first.
            if self._refusal is not None or self._inbox.has_posts or self._full(request, True) or not take():
                return False
            self.seq += 1
            request.seq = self.seq
            request.size_bytes = 0
            self.unsettled[request] = None
            self._counts["requests"] += request.weight
            self._begin_locked(request)
        return True

    def admit_failed(self, request: Request) -> None:
        """Count a request that was accepted and has failed already: its call could not be pickled.

        Raises:
            RuntimeError, PoolBroken: As in ``admit``; raised here.
        """
        with self.lock:
            if self._refusal is not None:
                raise self._refusal()
            request.settled = True
            self._counts["requests"] += request.weight
            self._counts["errors"] += request.weight

    def _full(self, request: Request, lazy_bytes: bool) -> str | None:
        pending = len(self.unsettled)
        if self._limit is not None and pending >= self._limit:
            return f"the pool is saturated: {pending} unsettled requests, {self._limit} allowed ({self._numbers()})"
        waiting = self.queued_bytes
        if not lazy_bytes and waiting and waiting + request.size_bytes > self._limit_bytes:
            return (
                f"the queue holds {waiting} bytes and {request.size_bytes} more are above max_queued_bytes"
                f" ({self._limit_bytes}) ({self._numbers()})"
            )
        return None

    def _numbers(self) -> str:
        stats = self._stats_locked()
        return f"workers {stats.workers}, busy {stats.busy}, starting {stats.starting}, queued {stats.queued}"

    def stats(self) -> PoolStats:
        """Return all numbers of one instant."""
        with self.lock:
            return self._stats_locked()

    def _stats_locked(self) -> PoolStats:
        counts = self._counts
        ended = sum(counts[name] for name in set(_COUNTERS.values()))
        queued = counts["requests"] - ended - counts["running"]
        workers, available, busy, starting, restarts, recycled = self._workers
        direct = self.direct_calls()
        return PoolStats(
            workers=workers,
            available=available - direct,
            busy=busy + direct,
            starting=starting,
            queued=queued,
            restarts=restarts,
            recycled=recycled,
            **counts,
        )

    # The end of a request ---------------------------------------------------------------------------

    def settle(self, request: Request, outcome: Outcome) -> bool:
        """Decide how a request ended; False when that was decided before."""
        with self.lock:
            return self.settle_locked(request, outcome)

    def settle_locked(self, request: Request, outcome: Outcome) -> bool:
        """The same, with the lock held."""
        # RACE: 1. the reply arrives (manager), 2. the caller cancels with running=True (its thread).
        # Whoever is first here settles the future and is counted; the other finds `settled`.
        # (tests/unit/test_races_ledger.py::test_reply_and_cancel_in_either_order)
        if request.settled:
            return False
        request.settled = True
        self.unsettled.pop(request, None)
        counts = self._counts
        if request.answers:
            # What was answered before counts as it was answered.
            failed = sum(isinstance(answer, BaseException) for answer in request.answers)
            counts["errors"] += failed
            counts["completed"] += len(request.answers) - failed
            counts[_COUNTERS[outcome]] += request.weight - len(request.answers)
        else:
            counts[_COUNTERS[outcome]] += request.weight
        if request.counted_running:
            request.counted_running = False
            counts["running"] -= request.weight
        self.queued_bytes -= request.size_bytes
        request.size_bytes = 0
        if self._blocked:
            self._room.notify()
        return True

    # The manager ------------------------------------------------------------------------------------

    def split_locked(self, bulk: Request, part: Request) -> None:
        """LOCK: held.  Count items of a bulk as those of a part; a bulk of which none is left has ended."""
        self.unsettled[part] = None
        bulk.weight -= part.weight
        bulk.size_bytes -= part.size_bytes
        if not bulk.weight:
            bulk.settled = True
            self.unsettled.pop(bulk, None)

    def begin(self, request: Request) -> None:
        """Count a request as running: it is the oldest of its worker."""
        with self.lock:
            self._begin_locked(request)

    def _begin_locked(self, request: Request) -> None:
        # The pool's own requests (health checks, set-ups) were never accepted, so they are not counted.
        if not request.settled and not request.counted_running and request.kind is RequestKind.USER:
            request.counted_running = True
            self._counts["running"] += request.weight

    def finish(self, ended: Iterable[tuple[Request, Outcome]], following: Request | None) -> list[bool]:
        """Settle requests and begin the next of the same worker, at one instant."""
        with self.lock:
            won = [self.settle_locked(request, outcome) for request, outcome in ended]
            if following is not None:
                self._begin_locked(following)
            return won

    def recount(self, request: Request, counted: Outcome, outcome: Outcome) -> None:
        """Correct how a request was counted: its result turned out not to load."""
        with self.lock:
            self._counts[_COUNTERS[counted]] -= request.weight
            self._counts[_COUNTERS[outcome]] += request.weight

    def put_back(self, requests: list[Request]) -> None:
        """Count requests that were taken back as queued, also one that had become the oldest."""
        with self.lock:
            for request in requests:
                if request.counted_running:
                    request.counted_running = False
                    self._counts["running"] -= request.weight

    def sent(self, requests: tuple[Request, ...], workers: tuple[int, int, int, int, int, int]) -> None:
        """Release the bytes of requests that no longer wait, count the oldest as running, and a worker as busy."""
        with self.lock:
            self._set_workers_locked(workers)
            for request in requests:
                self.queued_bytes -= request.size_bytes
                request.size_bytes = 0
                if request.started_at is not None:
                    self._begin_locked(request)
            if self._blocked:
                self._room.notify_all()

    def abandon(self, refusal: Callable[[], BaseException]) -> list[Request]:
        """THREAD: the only one of a forked child.  Refuse everything and return what was pending."""
        self.lock = self._inbox.lock
        self._room = threading.Condition(self.lock)
        self._refusal = refusal
        self.threads = frozenset()
        pending = list(self.unsettled)
        for request in pending:
            self.settle(request, Outcome.ERROR)
        return pending

    def publish(self, workers: tuple[int, int, int, int, int, int], *, anew: bool = True) -> None:
        """Set the numbers about workers: all, available, busy, starting, restarts, recycled.

        Args:
            workers: Those.
            anew: Also when they are the same as before.
        """
        if anew or workers != self._workers:
            with self.lock:
                self._set_workers_locked(workers)

    def _set_workers_locked(self, workers: tuple[int, int, int, int, int, int]) -> None:
        self._workers = workers
        self.told_locked()
