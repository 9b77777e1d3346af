"""How many items a second does ``map`` get through, in chunks of 1, of 100, and when it chooses itself?

python benchmarks/maps.py [--quick] [--json FILE] [--single 6000] [--many 40000] [--rounds 5] [--workers 2]

``--single`` items travel one by one, ``--many`` where they travel together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack

from support import loads, peers, tasks
from support.results import Report, figure, median, options, ratios


def rate(run: Callable[[range], Iterable[int]], count: int) -> Callable[[], float]:
    """Return what measures items a second; the answers are checked after the clock has stopped."""

    def measure() -> float:
        answers: list[int] = []
        took_s = loads.timed(lambda: answers.extend(run(range(count))))
        assert answers == list(range(1, count + 1))
        return count / took_s

    return measure


def main() -> None:
    """Measure and report."""
    given = options(
        __doc__,
        {"single": 6000, "many": 40000, "rounds": 5, "workers": 2},
        {"single": 2000, "many": 20000, "rounds": 3},
    )
    sample = (
        f"{given.rounds} interleaved rounds of {given.single:,} items one by one and {given.many:,} in chunks,"
        f" {given.workers} workers"
    )
    report = Report("maps", sample, given)
    with ExitStack() as stack:
        commands = stack.enter_context(peers.snakepit_commands(given.workers))
        callables = stack.enter_context(peers.snakepit_callables(given.workers))
        process, loky = peers.process_pool(given.workers), peers.loky_pool(given.workers)
        mpire = peers.MpirePool(given.workers)
        for pool in (process, loky, mpire):
            stack.callback(pool.shutdown)

        def command_items(items: range) -> Iterable[dict[str, int]]:
            return ({"number": number} for number in items)

        contenders: dict[str, tuple[Callable[[range], Iterable[int]], int]] = {
            "commands, 1": (lambda n: commands.map("increment", command_items(n), chunksize=1), given.single),
            "commands, 100": (lambda n: commands.map("increment", command_items(n), chunksize=100), given.many),
            "commands, left out": (lambda n: commands.map("increment", command_items(n)), given.many),
            "callables, 1": (lambda n: callables.map(tasks.increment, n, chunksize=1), given.single),
            "callables, 100": (lambda n: callables.map(tasks.increment, n, chunksize=100), given.many),
            "callables, left out": (lambda n: callables.map(tasks.increment, n), given.single),
            "ProcessPoolExecutor, 1": (lambda n: process.map(tasks.increment, n, chunksize=1), given.single),
            "ProcessPoolExecutor, 100": (lambda n: process.map(tasks.increment, n, chunksize=100), given.many),
            "loky, 1": (lambda n: loky.map(tasks.increment, n, chunksize=1), given.single),
            "loky, 100": (lambda n: loky.map(tasks.increment, n, chunksize=100), given.many),
            "mpire, 1": (lambda n: mpire.map(tasks.increment, n, 1), given.single),
            "mpire, 100": (lambda n: mpire.map(tasks.increment, n, 100), given.many),
        }
        for run, _ in contenders.values():
            list(run(range(50 * given.workers)))
        figures: dict[str, list[float]] = loads.rounds(
            {name: rate(run, count) for name, (run, count) in contenders.items()}, given.rounds
        )

    for name, contender, goal, other in (
        ("callables_1", "callables, 1", 3, "ProcessPoolExecutor, 1"),
        ("callables_100", "callables, 100", 1.2, "ProcessPoolExecutor, 100"),
        ("callables_default", "callables, left out", 3, "ProcessPoolExecutor, 1"),
        ("commands_1", "commands, 1", 4, "ProcessPoolExecutor, 1"),
        ("commands_default", "commands, left out", 15, "ProcessPoolExecutor, 1"),
    ):
        kind, size = contender.split(", ")
        pool, other_size = other.split(", ")
        report.row(
            name,
            f"`map` of trivial {kind}, chunksize {size}, items/s",
            ratios(figures[contender], figures[other]),
            ">=",
            goal,
            f"{pool} at chunksize {other_size}",
            rate=median(figures[contender]),
            other_rate=median(figures[other]),
        )
    base = figures["ProcessPoolExecutor, 1"]
    report.table(
        "Items a second",
        ("contender, chunksize", "items/s", "us an item", "x ProcessPoolExecutor at chunksize 1"),
        [
            (name, f"{median(values):,.0f}", figure(1e6 / median(values)), f"{median(ratios(values, base)):.2f}")
            for name, values in figures.items()
        ],
    )
    report.finish()


if __name__ == "__main__":
    main()
