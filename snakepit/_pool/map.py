"""The iterators behind ``map`` and ``map_unordered``.

Run on the caller's thread; each owns its futures and cancels what has not begun when it is closed.
"""

from __future__ import annotations

import itertools
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Any, Protocol

from .._clock import check_timeout, monotonic_s
from .future import SnakepitFuture

__all__ = ("Results", "check_chunksize", "deadline_of", "results_as_completed", "results_in_order")

Submit = Callable[[list[tuple[Any, ...]]], list[tuple[SnakepitFuture, bool]]]
"""Submits a chunk of items; returns (future, True when its result is a list of results)."""


def check_chunksize(chunksize: object) -> None:
    """Raise for anything but None or an int >= 1."""
    _check("chunksize", chunksize)


def _check(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int >= 1 or None, not {value!r} ({type(value).__name__})")
    if value < 1:
        raise ValueError(f"{name} must be >= 1, not {value!r}")


def _chunks(iterables: tuple[Iterable[Any], ...], size: int) -> Iterator[list[tuple[Any, ...]]]:
    items = zip(*iterables, strict=False)
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _outcome(future: SnakepitFuture, timeout_s: float | None, return_exceptions: bool) -> Any:
    try:
        return future.result(timeout_s)
    except TimeoutError:
        # A future's own TimeoutError (a command that ran too long) is a result; only the map's is not.
        # RACE: 1. the map's time is over, 2. the item ends well: then its result counts
        # (tests/integration/test_map.py::test_an_item_that_ends_as_the_time_is_over).
        if not return_exceptions or not future.done():
            raise
        error = future.exception()
        return future.result() if error is None else error
    except (Exception, CancelledError) as error:
        if not return_exceptions:
            raise
        return error


class Cancellable(Protocol):
    """Something that may not have begun."""

    def drop(self) -> None:
        """Cancel what has not begun, from wherever an iterator is closed."""
        ...


class Results(Iterator[Any]):
    """An iterator that can be closed before its first item as well: what has not begun is cancelled.

    Dropped before the first item, it cancels nothing, as in the standard library.

    Args:
        generator: Gives the results.
        pending: Its futures, cancelled by ``close``.
    """

    def __init__(self, generator: Generator[Any, None, None], pending: Callable[[], Iterable[Cancellable]]) -> None:
        self._generator = generator
        self._pending = pending

    def __next__(self) -> Any:
        return next(self._generator)

    def close(self) -> None:
        """End the iteration and cancel what has not begun."""
        self._generator.close()
        _cancel(self._pending())


def deadline_of(timeout: object) -> float | None:
    """Return the monotonic seconds at which a time-out that begins now passes, or None."""
    timeout_s = check_timeout("timeout", timeout)
    return None if timeout_s is None else monotonic_s() + timeout_s


def results_in_order(
    submit: Submit,
    iterables: tuple[Iterable[Any], ...],
    chunksize: int,
    buffersize: int | None,
    timeout: float | None,
    return_exceptions: bool,
) -> Results:
    """Submit everything, or ``buffersize`` items, now; return an iterator over the results in order."""
    _check("buffersize", buffersize)
    deadline = deadline_of(timeout)
    chunks = _chunks(iterables, chunksize if buffersize is None else min(chunksize, buffersize))
    pending: deque[tuple[SnakepitFuture, bool]] = deque()
    ahead = None if buffersize is None else max(1, buffersize // chunksize)
    try:
        for chunk in itertools.islice(chunks, ahead):
            pending.extend(submit(chunk))
    except BaseException:
        _cancel(future for future, _ in pending)
        raise
    generator = _in_order(submit, chunks, pending, buffersize is not None, deadline, return_exceptions)
    return Results(generator, lambda: (future for future, _ in pending))


def _in_order(
    submit: Submit,
    chunks: Iterator[list[tuple[Any, ...]]],
    pending: deque[tuple[SnakepitFuture, bool]],
    refill: bool,
    deadline: float | None,
    return_exceptions: bool,
) -> Generator[Any, None, None]:
    try:
        while pending:
            future, is_list = pending.popleft()
            try:
                timeout_s = None if deadline is None or future.done() else deadline - monotonic_s()
                value = _outcome(future, timeout_s, return_exceptions)
            finally:
                future.cancel()
                # The frame of a suspended generator must not keep the future of the item it has yielded.
                del future
            if refill and (chunk := next(chunks, None)) is not None:
                pending.extend(submit(chunk))
            values = value[::-1] if is_list and not isinstance(value, BaseException) else [value]
            del value
            while values:
                # Popped: the frame of a suspended generator must not keep what it has yielded.
                yield values.pop()
    finally:
        _cancel(future for future, _ in pending)


def results_as_completed(
    submit: Submit,
    iterables: tuple[Iterable[Any], ...],
    chunksize: int,
    buffersize: int | None,
    timeout: float | None,
    return_exceptions: bool,
    guard: Callable[[], None],
) -> Results:
    """Submit everything, or ``buffersize`` items, now; return an iterator over the results as they complete.

    Args:
        guard: Raises on a thread that must not wait.
    """
    _check("buffersize", buffersize)
    deadline = deadline_of(timeout)
    chunks = _chunks(iterables, chunksize if buffersize is None else min(chunksize, buffersize))
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    pending: dict[SnakepitFuture, bool] = {}

    def send(chunk: list[tuple[Any, ...]]) -> None:
        for future, is_list in submit(chunk):
            pending[future] = is_list
            future.add_done_callback(done.put)

    ahead = None if buffersize is None else max(1, buffersize // chunksize)
    try:
        for chunk in itertools.islice(chunks, ahead):
            send(chunk)
    except BaseException:
        _cancel(pending)
        raise
    refill = buffersize is not None
    generator = _as_completed(send, chunks, pending, done, refill, deadline, return_exceptions, guard)
    return Results(generator, lambda: pending)


def _as_completed(
    send: Callable[[list[tuple[Any, ...]]], None],
    chunks: Iterator[list[tuple[Any, ...]]],
    pending: dict[SnakepitFuture, bool],
    done: queue.SimpleQueue[Any],
    refill: bool,
    deadline: float | None,
    return_exceptions: bool,
    guard: Callable[[], None],
) -> Generator[Any, None, None]:
    try:
        while pending:
            timeout_s = None if deadline is None else max(0.0, deadline - monotonic_s())
            if done.empty():
                guard()
            try:
                future = done.get(timeout=timeout_s)
            except queue.Empty:
                raise TimeoutError from None
            is_list = pending.pop(future)
            value = _outcome(future, 0, return_exceptions)
            del future
            if refill and (chunk := next(chunks, None)) is not None:
                send(chunk)
            values = value[::-1] if is_list and not isinstance(value, BaseException) else [value]
            del value
            while values:
                # Popped: the frame of a suspended generator must not keep what it has yielded.
                yield values.pop()
    finally:
        _cancel(pending)


def _cancel(futures: Iterable[Cancellable]) -> None:
    for future in list(futures):
        future.drop()
