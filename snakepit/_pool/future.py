"""The future that callers hold: the standard one, plus ``pid`` and ``cancel(running=True)``.

Lives on callers' threads; settled by the manager's thread.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures._base import (
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    PENDING,
    RUNNING,
)
from typing import Any

from .._core.model import Request
from .ledger import Ledger

__all__ = ("SnakepitFuture",)


class SnakepitFuture(Future[Any]):
    """A ``concurrent.futures.Future`` whose running work can be ended.

    Args:
        ledger: Of the pool; decides who settles the request.
    """

    # INVARIANT: `_request` is None once the future is settled: the request refers to the future, and
    # without the cycle both are freed as soon as their holders let go.
    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self._request: Request | None = None
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the worker that runs or ran the request; None before it was sent to one."""
        return self._pid

    def cancel(self, running: bool = False) -> bool:
        """Cancel the request.

        Args:
            running: Also end the worker of a request that runs already.

        Returns:
            True when the future is cancelled; then a request that was queued never runs.
        """
        request = self._request
        with self._condition:
            if self._state in (CANCELLED, CANCELLED_AND_NOTIFIED):
                return True
            if self._state == FINISHED or (self._state == RUNNING and not running):
                return False
            # LOCK: the future's condition, then the ledger's lock; nobody takes them the other way round.
            if request is not None and not self._ledger.cancel_locked_future(request):
                return False
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._request = None
            self._condition.notify_all()
        if request is not None:
            self._ledger.after_cancel(request)
        self._invoke_callbacks()  # type: ignore[attr-defined]  # missing in typeshed
        return True

    def claim(self) -> bool:
        """THREAD: manager.  Move from pending to running; False when it was cancelled first."""
        with self._condition:
            if self._state == PENDING:
                self._state = RUNNING
                return True
            return self._state == RUNNING

    def cancel_for_pool(self) -> None:
        """THREAD: manager.  Cancel on the pool's behalf, after the ledger has counted it."""
        with self._condition:
            self._state = CANCELLED_AND_NOTIFIED
            for waiter in self._waiters:
                waiter.add_cancelled(self)
            self._request = None
            self._condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]  # missing in typeshed

    def set_result(self, result: Any) -> None:
        """THREAD: manager.  Settle with a result."""
        self._request = None
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        """THREAD: manager.  Settle with an exception."""
        self._request = None
        super().set_exception(exception)

    def fail_after_fork(self, error: BaseException) -> None:
        """THREAD: the only one of a forked child.  End the future; its lock may be held by a thread that is gone."""
        self._condition = threading.Condition()
        if not self.done():
            self._state = RUNNING
            self.set_exception(error)

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, as in the standard library.

        Raises:
            RuntimeError: Called on the pool's own thread before the end: would deadlock; raised here.
        """
        self._refuse_deadlock(timeout)
        try:
            return super().result(timeout)
        finally:
            # The traceback of the exception refers to this frame, and the future to the exception.
            del self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception, as in the standard library; RuntimeError as in ``result``."""
        self._refuse_deadlock(timeout)
        try:
            return super().exception(timeout)
        finally:
            del self

    def _refuse_deadlock(self, timeout: float | None) -> None:
        if timeout != 0 and self._ledger.on_own_thread and not self.done():
            raise RuntimeError(
                "would deadlock: a callback on the pool's own thread cannot wait for a future of that pool"
            )
