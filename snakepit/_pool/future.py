"""The future that callers hold: the standard one, plus ``pid`` and ``cancel(running=True)``.

Lives on callers' threads; settled by the manager's thread.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import (
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    LOGGER,
    PENDING,
    RUNNING,
)
from operator import attrgetter
from typing import Any

from .._core.model import Request
from .._threads import is_owned
from .direct import resume
from .interrupts import Deferred
from .ledger import Ledger
from .loans import Loan

__all__ = ("SnakepitFuture",)

_ENDED = frozenset((CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED))


class SafeCondition(threading.Condition):
    """A condition that is entered and left as its lock is: each in one step of the interpreter.

    The standard ``__enter__`` is a function in Python.  Ctrl-C may raise in it when it has the lock, and nobody would
    let that go: the pool's thread would wait for it for ever, to end the future.
    """

    _lock: threading.RLock

    # RACE: 1. the main thread waits for a future, or cancels it, 2. Ctrl-C
    # (tests/integration/test_cancel_interrupts.py::test_ctrl_c_between_any_two_steps).
    # `with` looks on the type, and takes what a property gives; nothing here is run by the interpreter's loop.
    __enter__ = property(attrgetter("_lock.__enter__"))
    __exit__ = property(attrgetter("_lock.__exit__"))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait, and have the lock again whatever ends that."""
        began = is_owned(self._lock)
        try:
            return super().wait(timeout)
        except BaseException:
            # RACE: 1. the standard wait lets go of the lock, 2. Ctrl-C raises one step before it would care: `with`
            # would find that nobody has the lock, and raise a RuntimeError in the place of the interrupt
            # (tests/integration/test_cancel_interrupts.py::test_ctrl_c_between_any_two_steps).
            if began and not is_owned(self._lock):
                self.acquire()
            raise


class SnakepitFuture(Future[Any]):
    """A ``concurrent.futures.Future`` whose running work can be ended.

    A stock future makes a condition and two lists, of which most need none: they are 1.4 of its 1.6 kB, and
    most of the time it takes to make one.  Here they are made when somebody first waits, asks to be called
    back, or hands the future to ``wait``, ``as_completed`` or ``asyncio.wrap_future``.

    Args:
        ledger: Of the pool; decides who settles the request.
    """

    # INVARIANT: `_request` and `_loan` are None once the future is settled: both refer to the future, and
    # without the cycle all are freed as soon as their holders let go.
    # LOCK: until `is_watched` the ledger's lock protects the state, from then on the condition does; `is_watched` is
    # set under the ledger's lock, once, with the condition.
    # RACE: 1. a caller looks for the condition to wait for the end, 2. the manager ends the future, which nobody
    # watches yet.  The condition is made under the lock under which the end is written, so whoever waits either
    # is notified or finds the end (tests/unit/test_future.py::test_a_condition_made_at_the_moment_of_the_end).
    __slots__ = (
        "_condition",
        "_done_callbacks",
        "_exception",
        "_ledger",
        "_loan",
        "_pid",
        "_request",
        "_result",
        "_state",
        "_waiters",
        "is_watched",
    )

    def __init__(self, ledger: Ledger, request: Request | None = None) -> None:
        # Not Future.__init__: it makes what is made on demand here.
        self._ledger = ledger
        self._request = request
        self._state = PENDING
        self._result = None
        self._exception = None
        self._pid: int | None = None
        # Who asks for the result first may read it off this worker's pipe; None: the manager does.
        self._loan: Loan | None = None
        self.is_watched = False

    def __getattr__(self, name: str) -> Any:
        """Make what the base class expects to be there when somebody first asks for it."""
        if name == "_condition":
            with self._ledger.lock:
                self.is_watched = True
                try:
                    return object.__getattribute__(self, name)
                except AttributeError:
                    condition = self._condition = SafeCondition()
                    return condition
        if name in ("_waiters", "_done_callbacks"):
            # Asked for with the condition held.
            made: list[Any] = []
            setattr(self, name, made)
            return made
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def pid(self) -> int | None:
        """Process id of the worker that runs or ran the request; None before it was sent to one."""
        return self._pid

    def done(self) -> bool:
        """Return True when the future has a result or an exception, or was cancelled."""
        return self._state in _ENDED

    def running(self) -> bool:
        """Return True while the request is with a worker."""
        return self._state == RUNNING

    def cancelled(self) -> bool:
        """Return True when the future was cancelled."""
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def cancel(self, running: bool = False) -> bool:
        """Cancel the request.

        Args:
            running: Also end the worker of a request that runs already.

        Returns:
            True when the future is cancelled; then a request that was queued never runs.
        """
        if self._state in _ENDED:
            return self._state != FINISHED
        won = False
        try:
            # Once the end is counted, the future has to get it, and the pool to hear of it.
            with Deferred():
                won = self._cancel(running)
        finally:
            if won:
                try:
                    self._invoke_callbacks()
                except BaseException:
                    self._invoke_callbacks()
                    raise
        return self._state in (CANCELLED, CANCELLED_AND_NOTIFIED)

    def _cancel(self, running: bool) -> bool:
        """Cancel; True when that was done now."""
        request = self._request
        with self._condition:
            if self._state in _ENDED or (self._state == RUNNING and not running):
                return False
            # LOCK: the future's condition, then the ledger's lock; nobody takes them the other way round.
            if request is not None and not self._ledger.cancel_locked_future(request):
                return False
            self._end_cancelled()
        if request is not None:
            self._ledger.after_cancel(request)
        return True

    def _invoke_callbacks(self) -> None:
        # As the base class does, but each once, however often it is interrupted.
        callbacks = self._done_callbacks
        while callbacks:
            # Not pop(): between a call and the use of its result comes a step for signals.
            callback = callbacks[0]
            del callbacks[0]
            try:
                callback(self)
            except Exception:
                LOGGER.exception("exception calling callback for %r", self)

    def drop(self) -> None:
        """Cancel for an iterator that is closed, perhaps by the garbage collector."""
        self._ledger.cancel_anywhere(self.cancel)

    def begin_direct(self, pid: int | None) -> None:
        """Note, before anybody else knows the future, that its caller sends the request itself."""
        self._state = RUNNING
        self._pid = pid

    def is_laid_down(self, loan: Loan) -> None:
        """Note that the caller has sent the request and waits for nothing yet."""
        self._loan = loan

    def claim(self) -> bool:
        """THREAD: manager.  Move from pending to running; False when it was cancelled first."""
        with self._ledger.lock:
            if not self.is_watched:
                return self._claim()
        with self._condition:
            return self._claim()

    def _claim(self) -> bool:
        if self._state == PENDING:
            self._state = RUNNING
            return True
        return self._state == RUNNING

    def cancel_for_pool(self) -> None:
        """THREAD: manager.  Cancel on the pool's behalf, after the ledger has counted it."""
        with self._condition:
            self._end_cancelled()
        self._invoke_callbacks()

    def _end_cancelled(self) -> None:
        self._state = CANCELLED_AND_NOTIFIED
        for waiter in self._waiters:
            waiter.add_cancelled(self)
        self._let_go()
        self._condition.notify_all()

    def set_result(self, result: Any) -> None:
        """THREAD: manager.  Settle with a result."""
        with self._ledger.lock:
            if not self.is_watched:
                self.end_unwatched_locked(result, None)
                return
        self._let_go()
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        """THREAD: manager.  Settle with an exception."""
        with self._ledger.lock:
            if not self.is_watched:
                self.end_unwatched_locked(None, exception)
                return
        self._let_go()
        super().set_exception(exception)

    def end_unwatched_locked(self, result: Any, exception: BaseException | None) -> None:
        """LOCK: the ledger's is held, and `is_watched` False.  End a future that nobody waits for."""
        if self._state in _ENDED:
            raise InvalidStateError(f"{self._state}: {self!r}")
        self._let_go()
        self._result = result
        self._exception = exception
        # Last: who reads FINISHED without a lock finds the rest written.
        self._state = FINISHED

    def _let_go(self) -> None:
        self._request = self._loan = None

    def fail_after_fork(self, error: BaseException) -> None:
        """THREAD: the only one of a forked child.  End the future; its lock may be held by a thread that is gone."""
        self._condition = SafeCondition()
        self.is_watched = True
        if not self.done():
            self._state = RUNNING
            self.set_exception(error)

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, as in the standard library.

        Raises:
            RuntimeError: Called on the pool's own thread before the end: would deadlock; raised here.
        """
        if self._state == FINISHED and self._exception is None:
            return self._result
        self._refuse_deadlock(timeout)
        try:
            if self._loan is not None:
                self._collect(timeout)
            return super().result(timeout)
        finally:
            # The traceback of the exception refers to this frame, and the future to the exception.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception, as in the standard library; RuntimeError as in ``result``."""
        if self._state == FINISHED:
            return self._exception
        self._refuse_deadlock(timeout)
        try:
            if self._loan is not None:
                self._collect(timeout)
            return super().exception(timeout)
        finally:
            del self

    def _collect(self, timeout: float | None) -> None:
        """Read the answer on this thread if it comes soon and nobody else reads it."""
        loan, self._loan = self._loan, None
        request = self._request
        if loan is None or request is None or timeout is not None:
            # Who gives a time may have none to spare for the signals' sake.
            return
        with Deferred() as safe:
            if safe:
                resume(loan, request)

    def _refuse_deadlock(self, timeout: float | None) -> None:
        if timeout != 0 and self._ledger.on_own_thread and not self.done():
            raise RuntimeError(
                "would deadlock: a callback on the pool's own thread cannot wait for a future of that pool"
            )
