"""Where do the microseconds of one call go?

python benchmarks/budget.py [--calls 20000]

Every step of a sequential ``execute`` is timed inside the host, host and worker on different processors.  The
clock's own cost is measured and taken off.  Prints the table of docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

from support import peers, placement

from snakepit._pool.calls import Encoder
from snakepit._pool.future import SnakepitFuture
from snakepit._pool.intake import Intake
from snakepit._pool.interrupts import Deferred
from snakepit._pool.link import Link
from snakepit._pool.loans import Lender, Loan

STEPS = (
    (Encoder, "command", "check and encode the arguments", "`_pool/calls`, `_wire`"),
    (Intake, "request", "make the request", "`_pool/intake`"),
    (SnakepitFuture, "__init__", "make the future", "`_pool/future`"),
    (Deferred, "__enter__", "put Ctrl-C off", "`_pool/interrupts`"),
    (Lender, "take", "take a lent worker, look that it is silent", "`_pool/loans`"),
    (Lender, "admit", "admit, number, count", "`_pool/ledger`"),
    (Link, "send", "frame and write", "`_pool/link`, `_pool/channel`"),
    (Loan, "has_arrivals", "wait: worker and kernel", "worker"),
    (Link, "receive", "read and decode", "`_pool/link`, `_wire/messages`"),
    (Lender, "finish", "decide and count the end, settle", "`_pool/loans`, `_pool/ledger`"),
    (Deferred, "__exit__", "let Ctrl-C in again", "`_pool/interrupts`"),
)


def timed(owner: type, name: str, times: list[float]) -> None:
    """Let a method note how long it takes."""
    method: Callable[..., Any] = getattr(owner, name)
    clock = time.perf_counter

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        begin = clock()
        try:
            return method(*args, **kwargs)
        finally:
            times.append(clock() - begin)

    setattr(owner, name, wrapper)


def median_us(times: list[float]) -> float:
    """Return the median in microseconds."""
    return statistics.median(times) * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000)
    calls = parser.parse_args().calls
    args = {"operation": "add", "a": 1, "b": 2}
    with peers.snakepit_commands(2) as pool:
        pool.wait_ready(workers=2)
        placement.pin_host()
        placement.pin_workers()

        def run() -> list[float]:
            took = []
            for _ in range(calls):
                begin = time.perf_counter()
                assert pool.execute("compute", args)["result"] == 3
                took.append(time.perf_counter() - begin)
            return took

        run()
        whole_us = median_us(run())
        steps: list[list[float]] = [[] for _ in STEPS]
        for (owner, name, _, _), times in zip(STEPS, steps, strict=True):
            timed(owner, name, times)
        run()
    empty: list[float] = []
    timed(Clock, "nothing", empty)
    for _ in range(calls):
        Clock().nothing()
    clock_us = median_us(empty)

    print("| step | module | us |\n|---|---|---|")
    rest_us = whole_us
    for (_, name, what, where), times in zip(STEPS, steps, strict=True):
        # `take` looks at the pipe as `wait` does: of the two times of that method the longer one is the wait.
        waits = sorted(times)[len(times) // 2 :] if name == "has_arrivals" and len(times) > 1.5 * calls else times
        step_us = max(0.0, median_us(waits) - clock_us)
        rest_us -= step_us
        print(f"| {what} | {where} | {step_us:.1f} |")
    print(f"| what is between them | | {rest_us:.1f} |\n| **together**, without the clocks | | **{whole_us:.1f}** |")


class Clock:
    """What is timed to know the clock's own cost."""

    def nothing(self) -> None:
        """Do nothing."""


if __name__ == "__main__":
    main()
