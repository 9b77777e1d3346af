"""What callers saw: every accepted request of a pool, how often its future was settled, and by whom.

The seam is the future: ``WatchedFuture`` stands in the place of the pool's own class while a run goes on, so that
the futures inside of ``map`` are seen too.  Nothing here asks the pool's own counters.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import _base
from contextlib import contextmanager
from itertools import count
from typing import Any

from snakepit import QueueFull
from snakepit._core.model import Request
from snakepit._pool import intake
from snakepit._pool.contents import CallContent
from snakepit._pool.future import SnakepitFuture
from snakepit._pool.ledger import Ledger

__all__ = ("Book", "Record", "WatchedFuture", "new_rid", "watched_futures")

_RID = re.compile(rb"rid-[0-9a-f]{12}")
_numbers = count()


def new_rid() -> str:
    """Return a request id that no other request of this process has."""
    return f"rid-{next(_numbers):012x}"


class Record:
    """One accepted request (a chunk of callables is one, with an id for each item).

    Attributes:
        ends: How it ended, once for each time its future was settled: "completed", "cancelled", or the name of
            the exception's class.
        refused: What came after the end and would have settled it again.
        by: Who cancelled it: "caller" (not while it ran), "caller, running" or "pool".
        value: Its result without large parts, or the exception's text.
        pid: Of the worker it was sent to last, as the future says.
    """

    __slots__ = ("by", "ends", "pid", "refused", "rids", "session", "value", "weight")

    def __init__(self) -> None:
        self.rids: tuple[str, ...] = ()
        self.weight = 1
        self.session: str | None = None
        self.ends: list[str] = []
        self.refused: list[str] = []
        self.by: str | None = None
        self.value: Any = None
        self.pid: int | None = None

    @property
    def end(self) -> str | None:
        """How it ended first, or None."""
        return self.ends[0] if self.ends else None

    def __repr__(self) -> str:
        return f"<{','.join(self.rids)} {self.ends} {self.refused} by {self.by} pid {self.pid}: {self.value!r:.300}>"


class WatchedFuture(SnakepitFuture):
    """A pool's future that notes each settlement; one that comes too late is noted before it is refused."""

    def __init__(self, ledger: Ledger, request: Request | None = None) -> None:
        super().__init__(ledger, request)
        self.record = Record()
        self._cancelling: dict[int, bool] = {}

    def cancel(self, running: bool = False) -> bool:
        me = threading.get_ident()
        self._cancelling[me] = running
        try:
            return super().cancel(running)
        finally:
            del self._cancelling[me]

    def cancel_for_pool(self) -> None:
        self._expect_pending("cancelled")
        super().cancel_for_pool()

    def set_result(self, result: Any) -> None:
        self._expect_pending("completed")
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        self._expect_pending(type(exception).__name__)
        super().set_exception(exception)

    def _expect_pending(self, what: str) -> None:
        if self.done():
            self.record.refused.append(what)

    def end_unwatched_locked(self, result: Any, exception: BaseException | None) -> None:
        super().end_unwatched_locked(result, exception)
        self._note_end()

    def _invoke_callbacks(self) -> None:
        self._note_end()
        super()._invoke_callbacks()  # type: ignore[misc]

    def _note_end(self) -> None:
        # Every way to settle a future comes here, once, on the thread that settled it.
        record = self.record
        if self._state == _base.CANCELLED_AND_NOTIFIED:
            running = self._cancelling.get(threading.get_ident())
            record.by = "pool" if running is None else "caller, running" if running else "caller"
            end = "cancelled"
        elif self._exception is not None:  # type: ignore[attr-defined]  # missing in typeshed
            end = type(self._exception).__name__  # type: ignore[attr-defined]
            record.value = str(self._exception)  # type: ignore[attr-defined]
        else:
            end = "completed"
            record.value = _small(self._result)  # type: ignore[attr-defined]
        record.pid = self.pid
        record.ends.append(end)


def _small(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_small(item) for item in value[:64]]
    return f"{len(value)} bytes" if isinstance(value, bytes) else value


class Book:
    """The callers' own account of one pool."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.saturated: list[str] = []
        self.failed_at_once = 0
        self.refused: list[str] = []

    def follow(self, ledger: Ledger) -> None:
        """Write down what this pool accepts from now on."""
        admit, admit_failed, admit_direct = ledger.admit, ledger.admit_failed, ledger.admit_direct
        admit_all = ledger.admit_all

        def watched_admit_all(requests: list[Request]) -> int:
            for request in requests:
                record = request.future.record
                record.rids = _rids(request.content)
                record.weight, record.session = request.weight, request.session_id
            try:
                count = admit_all(requests)
            except BaseException:
                for request in requests:
                    self.refused.extend(request.future.record.rids)
                raise
            # The others are let in one by one.
            self.records.extend(request.future.record for request in requests[:count])
            return count

        def watched_admit_direct(request: Request, take: Callable[[], bool]) -> bool:
            record = request.future.record
            record.rids = _rids(request.content)
            record.weight, record.session = request.weight, request.session_id
            admitted = admit_direct(request, take)
            if admitted:
                self.records.append(record)
            return admitted

        def watched_admit(request: Request, **options: Any) -> None:
            record = request.future.record
            record.rids = _rids(request.content)
            record.weight, record.session = request.weight, request.session_id
            try:
                admit(request, **options)
            except BaseException as error:
                if isinstance(error, QueueFull):
                    self.saturated.append(request.command)
                self.refused.extend(record.rids)
                raise
            self.records.append(record)

        def watched_admit_failed(request: Request) -> None:
            admit_failed(request)
            self.failed_at_once += request.weight

        ledger.admit, ledger.admit_failed = watched_admit, watched_admit_failed  # type: ignore[method-assign]
        ledger.admit_direct = watched_admit_direct  # type: ignore[method-assign]
        ledger.admit_all = watched_admit_all  # type: ignore[method-assign]

    def counts(self) -> dict[str, int]:
        """Return what the pool's counters have to be once every request has ended."""
        found = dict.fromkeys(("requests", "completed", "errors", "cancelled", "queue_timeouts", "command_timeouts"), 0)
        names = {
            "completed": "completed",
            "cancelled": "cancelled",
            "QueueTimeout": "queue_timeouts",
            "CommandTimeout": "command_timeouts",
        }
        for record in self.records:
            found["requests"] += record.weight
            if record.end is not None:
                found[names.get(record.end, "errors")] += record.weight
        found["requests"] += self.failed_at_once
        found["errors"] += self.failed_at_once
        return {**found, "pool_saturated": len(self.saturated), "queued": 0, "running": 0}


def _rids(content: Any) -> tuple[str, ...]:
    if isinstance(content, CallContent):
        # One that is pickled late is pickled here once more: the same bytes.
        try:
            body = content.body if content.body is not None else content.encode()
        except Exception:
            return ()
        data = body if isinstance(body, bytes) else b"".join((*body.parts, *body.buffers))
    else:
        data = content.body + content.text
    return tuple(dict.fromkeys(match.decode() for match in _RID.findall(data)))


@contextmanager
def watched_futures() -> Iterator[None]:
    """Let every pool make watched futures."""
    plain = intake.SnakepitFuture
    intake.SnakepitFuture = WatchedFuture  # type: ignore[misc]
    try:
        yield
    finally:
        intake.SnakepitFuture = plain  # type: ignore[misc]
