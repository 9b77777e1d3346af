"""``snakepit bench``: the cost of one call, beside other pools, in this interpreter.

Runs on the main thread; owns all pools while they live.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version

import attrs
from rich.console import Console

from ..adapters import PythonAdapter
from ..errors import InternalError
from ..executor import SnakepitExecutor
from .terminal import Meter, make_table

__all__ = ("run_bench",)

SEQUENTIAL = 500
"""Calls in one round, each after the answer to the one before."""
FLOOD = 3000
"""Calls in one round, all submitted at once; with the above five rounds take some 20 s on two processors."""
REFERENCE = "ProcessPoolExecutor"
_TIMES = ">x faster", ">least", ">most"


@attrs.define
class _Contender:
    name: str
    call: Callable[[], object]
    flood: Callable[[], Iterable[object]]
    latencies_s: list[float] = attrs.Factory(list)
    # One a round.
    medians_s: list[float] = attrs.Factory(list)
    floods_s: list[float] = attrs.Factory(list)

    def measure(self) -> None:
        """Do one round."""
        latencies_s = []
        for _ in range(SEQUENTIAL):
            began_at = time.perf_counter()
            self.call()
            latencies_s.append(time.perf_counter() - began_at)
        self.latencies_s += latencies_s
        self.medians_s.append(statistics.median(latencies_s))
        began_at = time.perf_counter()
        count = sum(1 for _ in self.flood())
        self.floods_s.append((time.perf_counter() - began_at) / FLOOD)
        if count != FLOOD:
            raise InternalError(f"{self.name}: {count} answers to {FLOOD} calls")


def run_bench(console: Console, workers: int, rounds: int) -> int:
    """Measure and print the table.

    Args:
        console: Where it goes.
        workers: Size of each pool, >= 1.
        rounds: How often each pool has its turn, >= 1.

    Returns:
        0.
    """
    with ExitStack() as stack:
        contenders = _contenders(stack, workers)
        for contender in contenders:
            list(contender.flood())  # starts the workers
        with Meter(console, "rounds", rounds * len(contenders)) as meter:
            for _ in range(rounds):
                # In turn, so that a busy moment of the machine does not hurt one of them alone.
                for contender in contenders:
                    contender.measure()
                    meter.advance()
    _show(console, contenders, workers, rounds)
    return 0


def _contenders(stack: ExitStack, workers: int) -> list[_Contender]:
    import loky

    commands = stack.enter_context(SnakepitExecutor(PythonAdapter(), workers, name="bench-commands"))
    callables = stack.enter_context(SnakepitExecutor(max_workers=workers, name="bench-callables"))
    peers: dict[str, Executor] = {
        "ThreadPoolExecutor": ThreadPoolExecutor(workers),
        # By spawn: the pools above have threads, with which a fork is not safe.
        REFERENCE: ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")),
        f"loky {version('loky')}": loky.ProcessPoolExecutor(workers),
    }
    found = [
        _Contender(
            "snakepit, command",
            lambda: commands.execute("echo", 7),
            lambda: commands.map("echo", range(FLOOD), chunksize=1),
        ),
        _Contender("snakepit, callable", lambda: callables.execute(abs, 7), lambda: callables.map(abs, range(FLOOD))),
    ]
    for name, executor in peers.items():
        stack.enter_context(executor)
        found.append(_peer(name, executor))
    return found


def _peer(name: str, executor: Executor) -> _Contender:
    return _Contender(name, lambda: executor.submit(abs, 7).result(), lambda: executor.map(abs, range(FLOOD)))


def _show(console: Console, contenders: list[_Contender], workers: int, rounds: int) -> None:
    [reference] = [contender for contender in contenders if contender.name == REFERENCE]
    calls = make_table(console, "pool", ">median", ">p99", *_TIMES, title="One call after another")
    floods = make_table(console, "pool", ">calls/s", *_TIMES, title=f"{FLOOD:,} calls at once")
    for contender in contenders:
        p99_s = sorted(contender.latencies_s)[-(-99 * len(contender.latencies_s) // 100) - 1]
        calls.add_row(
            contender.name,
            f"{1e6 * statistics.median(contender.medians_s):.0f} us",
            f"{1e6 * p99_s:.0f} us",
            *_times(reference.medians_s, contender.medians_s),
        )
        floods.add_row(
            contender.name,
            f"{1 / statistics.median(contender.floods_s):,.0f}",
            *_times(reference.floods_s, contender.floods_s),
        )
    console.print(calls)
    console.print(floods)
    console.print(
        f"{workers} workers each; medians of {rounds} rounds, the pools in turn.  A round: {SEQUENTIAL} calls one by"
        f" one, then {FLOOD} at once by map() with chunks of 1.  Faster: than {REFERENCE} in the same round."
        f"  Python {'.'.join(map(str, sys.version_info[:3]))}.",
        soft_wrap=True,
    )


def _times(reference: list[float], own: list[float]) -> tuple[str, str, str]:
    """Return how often the one contains the other in the same round: the median, the least and the largest."""
    ratios = [theirs / ours for theirs, ours in zip(reference, own, strict=True)]
    return f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}"
