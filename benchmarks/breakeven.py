"""How long must a task be for worker processes to beat threads?

python benchmarks/breakeven.py [--quick] [--json FILE] [--budget 100] [--rounds 5] [--workers 2]

The task is pure Python, so that threads run one after the other.  Tasks of growing length are submitted at once;
``--budget`` is the milliseconds of work in one round of one length.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from support import loads, peers, tasks
from support.results import Report, figure, median, options

LENGTHS_US = (1, 10, 20, 50, 100, 200, 500, 1000)
MOST_TASKS = 2000


def loops_per_us() -> float:
    """Return how often the task's loop turns in a microsecond."""
    loops = 200_000
    return loops / (min(loads.timed(lambda: tasks.spin(loops)) for _ in range(5)) * 1e6)


def crossing(points: list[tuple[float, float]], others: list[tuple[float, float]]) -> float | None:
    """Return from which length on the points lie below the others, or None where they never do."""
    before: tuple[float, float] | None = None
    for (length, cost), (_, other) in zip(points, others, strict=True):
        gap = cost - other
        if gap <= 0:
            if before is None:
                return length
            return before[0] + (length - before[0]) * before[1] / (before[1] - gap)
        before = (length, gap)
    return None


def main() -> None:
    """Measure and report."""
    given = options(__doc__, {"budget": 100, "rounds": 5, "workers": 2}, {"budget": 30, "rounds": 3})
    sample = f"{given.rounds} interleaved rounds, {given.budget} ms of work a length, {given.workers} workers"
    report = Report("breakeven", sample, given)
    speed = loops_per_us()
    with ExitStack() as stack:
        callables = stack.enter_context(peers.snakepit_callables(given.workers))
        process, thread = peers.process_pool(given.workers), peers.thread_pool(given.workers)
        for pool in (process, thread):
            stack.callback(pool.shutdown)
        for pool in (callables, process, thread):
            peers.warm_up(lambda pool=pool: pool.submit(tasks.spin, 1), given.workers)

        def flood(pool: Any) -> Callable[[int, int], float]:
            return lambda loops, count: loads.flood(lambda: pool.submit(tasks.spin, loops), count, loops)

        def chunks(loops: int, count: int) -> float:
            answers: list[int] = []
            took_s = loads.timed(lambda: answers.extend(callables.map(tasks.spin, [loops] * count, chunksize=50)))
            assert answers == [loops] * count
            return took_s

        contenders = {
            "no pool": lambda loops, count: loads.timed(lambda: [tasks.spin(loops) for _ in range(count)]),
            "ThreadPoolExecutor": flood(thread),
            "ProcessPoolExecutor": flood(process),
            "snakepit, callables": flood(callables),
            "snakepit, map in chunks of 50": chunks,
        }
        lines: dict[str, list[list[tuple[float, float]]]] = {
            name: [[] for _ in range(given.rounds)] for name in contenders
        }
        for length in LENGTHS_US:
            loops, count = max(1, round(length * speed)), min(MOST_TASKS, max(50, given.budget * 1000 // length))
            figures = loads.rounds(
                {name: lambda run=run: run(loops, count) / count * 1e6 for name, run in contenders.items()},  # noqa: B023  # called in this turn
                given.rounds,
            )
            for name, values in figures.items():
                for line, value in zip(lines[name], values, strict=True):
                    line.append((length, value))
    for name, other in (
        ("snakepit, callables", "ThreadPoolExecutor"),
        ("snakepit, map in chunks of 50", "ThreadPoolExecutor"),
        ("snakepit, callables", "no pool"),
        ("snakepit, map in chunks of 50", "no pool"),
        ("ProcessPoolExecutor", "ThreadPoolExecutor"),
    ):
        found = [crossing(*pair) for pair in zip(lines[name], lines[other], strict=True)]
        lengths = [float(LENGTHS_US[-1]) if length is None else length for length in found]
        report.row(
            f"{name}_{other}".replace("snakepit, ", "").replace(" ", "_").lower(),
            f"{name}: faster from tasks of this length on",
            lengths,
            against=f"than {other}",
            unit="us",
            never=found.count(None),
        )
    costs = {
        name: [(length, median(line[place][1] for line in mine)) for place, length in enumerate(LENGTHS_US)]
        for name, mine in lines.items()
    }
    report.table(
        "Microseconds a task, by its length",
        ("contender", *(f"{length} us" for length in LENGTHS_US)),
        [(name, *(figure(cost) for _, cost in points)) for name, points in costs.items()],
    )
    report.plot("cost", "Cost of a task, submitted at once", "length of the task, us", "us a task", costs)
    report.finish()


if __name__ == "__main__":
    main()
