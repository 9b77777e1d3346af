"""The iterators behind a map of items that travel together: items in, outcomes out.

Run on the caller's thread; they cancel what has not begun when they are closed.
"""

from __future__ import annotations

import itertools
import queue
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

from .._clock import monotonic_s
from .bulk import Bulk, Outcomes
from .map import Results, deadline_of

__all__ = ("bulk_results",)

Submit = Callable[[list[Any], int, Outcomes], list[Bulk]]
"""Submits items, of which the first has this place in the map."""

FIRST, MOST = 64, 16384
"""Items that are let in at one instant: few at first, so that the workers begin soon, and twice as many each time."""


def bulk_results(
    submit: Submit,
    items: Iterable[Any],
    timeout: float | None,
    return_exceptions: bool,
    guard: Callable[[], None],
    *,
    ordered: bool,
) -> Results:
    """Submit everything now; return an iterator over the results.

    Args:
        guard: Raises on a thread that must not wait.
        ordered: In the order of the items; else as they complete.
    """
    deadline = deadline_of(timeout)
    done: Outcomes = queue.SimpleQueue()
    bulks: list[Bulk] = []
    count, size, source = 0, FIRST, iter(items)
    try:
        while some := list(itertools.islice(source, size)):
            bulks += submit(some, count, done)
            count += len(some)
            size = min(2 * size, MOST)
    except BaseException:
        _cancel(bulks)
        raise
    come = _come(done, count, deadline, guard)
    generator = _outcomes(_in_order(come, count) if ordered else come, bulks, return_exceptions)
    return Results(generator, lambda: bulks)


def _come(
    done: Outcomes, count: int, deadline: float | None, guard: Callable[[], None]
) -> Iterator[tuple[int, list[Any]]]:
    """Wait for the outcomes of ``count`` items."""
    while count:
        if done.empty():
            guard()
        try:
            some = done.get(timeout=None if deadline is None else max(0.0, deadline - monotonic_s()))
        except queue.Empty:
            raise TimeoutError from None
        count -= len(some[1])
        yield some
        del some


def _in_order(come: Iterator[tuple[int, list[Any]]], count: int) -> Iterator[tuple[int, list[Any]]]:
    early: dict[int, list[Any]] = {}
    place = 0
    while place < count:
        while place not in early:
            start, outcomes = next(come)
            early[start] = outcomes
            del outcomes
        length = len(early[place])
        yield place, early.pop(place)
        place += length


def _outcomes(
    come: Iterator[tuple[int, list[Any]]], bulks: list[Bulk], return_exceptions: bool
) -> Generator[Any, None, None]:
    try:
        for _, outcomes in come:
            outcomes.reverse()
            while outcomes:
                if not return_exceptions and isinstance(outcomes[-1], BaseException):
                    raise outcomes.pop()
                # Popped: the frame of a suspended generator must not keep what it has yielded.
                yield outcomes.pop()
    finally:
        _cancel(bulks)


def _cancel(bulks: list[Bulk]) -> None:
    for bulk in bulks:
        bulk.drop()
