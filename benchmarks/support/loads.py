"""How contenders are loaded, and in which order they have their turns."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any


def rounds(contenders: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Run every contender once per round, in turn; return all figures by name."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(count):
        # The order turns with the round, so that nobody always runs after the same neighbour.
        start = number % len(names)
        for name in names[start:] + names[:start]:
            gc.collect()  # nobody pays for what a neighbour has left
            figures[name].append(contenders[name]())
    return figures


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def sequential(call: Callable[[], Any], calls: int, expected: Any) -> list[float]:
    """Return the seconds of each of so many calls, every one after the answer to the one before.

    Ten more come first: caches and processors have served a neighbour.
    """
    clock = time.perf_counter
    times = []
    for _ in range(10):
        call()
    for _ in range(calls):
        begin = clock()
        result = call()
        times.append(clock() - begin)
        assert result == expected, result
    return times


def flood(submit: Callable[[], Any], tasks: int, expected: Any) -> float:
    """Return the seconds from the first of so many submits to the last result."""
    begin = time.perf_counter()
    futures = [submit() for _ in range(tasks)]
    results = [future.result() for future in futures]
    took_s = time.perf_counter() - begin
    assert results == [expected] * tasks
    return took_s


def closed_loop(calls: Sequence[Callable[[], Any]], each: int, expected: Any) -> tuple[float, list[float]]:
    """Have one thread for each of ``calls`` make it ``each`` times, every one after its answer.

    Returns:
        ``(calls a second, the seconds of each call)``.
    """
    clock = time.perf_counter
    together = threading.Barrier(len(calls) + 1)
    times: list[list[float]] = [[] for _ in calls]
    wrong: list[Any] = []

    def caller(call: Callable[[], Any], mine: list[float]) -> None:
        together.wait()
        for _ in range(each):
            begin = clock()
            try:
                result = call()
            except BaseException as error:
                result = error
            mine.append(clock() - begin)
            if result != expected:
                wrong.append(result)
                return

    threads = [threading.Thread(target=caller, args=pair) for pair in zip(calls, times, strict=True)]
    for thread in threads:
        thread.start()
    together.wait()
    begin = clock()
    for thread in threads:
        thread.join()
    took_s = clock() - begin
    assert not wrong, wrong[:3]
    return each * len(calls) / took_s, [seconds for mine in times for seconds in mine]
