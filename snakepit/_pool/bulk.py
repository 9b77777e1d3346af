"""The items of a map that may travel together: what is left of them, and where their outcomes go.

A bulk is one request from its acceptance on; the manager splits off parts of it, each for one worker at hand.
Made on the caller's thread; split and settled on the manager's.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

from .._core.board import fresh
from .._core.model import Request
from .._wire.outgoing import BATCH_ENVELOPE_BYTES, BatchContent, CommandContent
from .interrupts import Deferred
from .ledger import Ledger

__all__ = ("Bulk", "Outcomes")

Outcomes = queue.SimpleQueue[tuple[int, list[Any]]]
"""(place of the first, values and exceptions of neighbouring items), in the order in which they come."""

_Put = Callable[[tuple[int, list[Any]]], object]


class Part:
    """What a part's request has in the place of a future: it hands the outcomes on.

    Args:
        place: Of its first item in the map.
        request: That request.
        put: Takes the outcomes.
    """

    __slots__ = ("_pid", "_place", "_put", "_request")

    def __init__(self, place: int, request: Request, put: _Put) -> None:
        self._place = place
        self._request: Request | None = request
        self._put = put
        self._pid: int | None = None

    def claim(self) -> bool:
        """Say that it may be sent: it was claimed when it was split off."""
        return True

    def cancel(self) -> bool:
        """Say that it runs: it is with a worker from its birth."""
        return False

    def done(self) -> bool:
        """Return True when the outcomes were handed on."""
        return self._request is None

    def set_result(self, result: Any) -> None:
        """Hand on the outcomes: a list of them, or the one result."""
        self._end(lambda request: [result] if request.answers is None else result)

    def set_exception(self, error: BaseException) -> None:
        """Hand on what was answered before; the others have failed."""
        self._end(lambda request: _failed(request.answers or [], request.weight, error))

    def cancel_for_pool(self) -> None:
        """Hand on what was answered before; the others are cancelled."""
        self.set_exception(CancelledError())

    fail_after_fork = set_exception

    def _end(self, outcomes: Callable[[Request], list[Any]]) -> None:
        request, self._request = self._request, None
        if request is not None:
            self._put((self._place, outcomes(request)))


def _failed(answers: list[Any], count: int, error: BaseException) -> list[Any]:
    return [*answers, *(fresh(error) for _ in range(count - len(answers)))]


class Bulk:
    """What a bulk's request has in the place of a future: the items that no worker has been given yet.

    Args:
        ledger: Of the pool; its lock decides who has an item.
        request: The bulk's, of these items.
        head: The JSON member of the command, with its trailing comma.
        place: Of the first item in the map.
        items: Encoded: the text of the args, or a command that has to travel alone.
        put: Takes the outcomes.
        frame_bytes: Longest frame of items that travel together; what alone is longer travels alone.
    """

    # LOCK: the ledger's, for `_next` and the request's weight.
    # INVARIANT: the request's weight is the number of items from `_next` on, until it is settled.
    __slots__ = ("_head", "_items", "_ledger", "_next", "_pid", "_place", "_put", "_request", "_room_bytes")

    def __init__(
        self,
        ledger: Ledger,
        request: Request,
        head: bytes,
        place: int,
        items: list[bytes | CommandContent],
        put: _Put,
        frame_bytes: int,
    ) -> None:
        self._ledger = ledger
        self._request = request
        self._head = head
        self._place = place
        self._items = items
        self._room_bytes = frame_bytes - len(head) - BATCH_ENVELOPE_BYTES
        self._next = 0
        self._put = put
        self._pid: int | None = None

    def split(self, most: int) -> Request | None:
        """THREAD: manager.  Take the first items out as a claimed request; None when all were cancelled first."""
        bulk = self._request
        with self._ledger.lock:
            # RACE: 1. the caller cancels what is left (its thread), 2. the manager takes a part for an idle worker.
            # The lock decides: an item is either cancelled or in a part, and counted as that
            # (tests/integration/test_bulk_maps.py::test_a_cancel_between_the_choice_and_the_split).
            if bulk.settled:
                return None
            start = self._next
            first, size_bytes = self._items[start], 0
            texts: list[bytes] = []
            while len(texts) < min(most, bulk.weight):
                text = self._items[start + len(texts)]
                # With a comma for each.
                if not isinstance(text, bytes) or (texts and size_bytes + len(texts) + len(text) > self._room_bytes):
                    break
                texts.append(text)
                size_bytes += len(text)
            content: Any
            if len(texts) > 1:
                content = BatchContent(self._head, texts)
            elif isinstance(first, bytes):
                content = CommandContent(b'%b"args":%b' % (self._head, first))
            else:
                content, size_bytes = first, first.size_bytes
            part = Request(content, bulk.command, accepted_at=bulk.accepted_at, size_bytes=size_bytes)
            part.weight = max(1, len(texts))
            part.answers = [] if len(texts) > 1 else None
            part.seq = bulk.seq
            part.future = Part(self._place + start, part, self._put)
            self._next += part.weight
            # Nothing sent is kept: an exhausted bulk may be held by its iterator for long.
            self._items[start : self._next] = [b""] * part.weight
            self._ledger.split_locked(bulk, part)
        return part

    def cancel(self) -> bool:
        """Cancel the items that no worker has been given; False when there are none."""
        with Deferred():
            if not self._ledger.cancel_locked_future(self._request):
                return False
            self._ledger.after_cancel(self._request)
            self.cancel_for_pool()
        return True

    def drop(self) -> None:
        """Cancel for an iterator that is closed, perhaps by the garbage collector."""
        self._ledger.cancel_anywhere(self.cancel)

    def done(self) -> bool:
        """Return True when all items were given to workers, or have ended."""
        return self._request.settled and self._next == len(self._items)

    def cancel_for_pool(self) -> None:
        """Hand the rest on as cancelled, after the ledger has counted it."""
        self.set_exception(CancelledError())

    def set_exception(self, error: BaseException) -> None:
        """Hand the rest on as failed, after the ledger has counted it."""
        # Settled, so nobody splits it any more.
        start, self._next = self._next, len(self._items)
        if start < self._next:
            self._items[start:] = [b""] * (self._next - start)
            self._put((self._place + start, _failed([], self._next - start, error)))

    fail_after_fork = set_exception
