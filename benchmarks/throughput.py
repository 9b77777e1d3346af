"""How many trivial tasks a second, when they are submitted at once; and does a long queue cost more a task?

python benchmarks/throughput.py [--tasks 20000] [--rounds 5] [--workers 2]
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait
from typing import Any

from support import peers


def flood(submit: Callable[[], Any], tasks: int) -> float:
    """Return the seconds from the first submit to the last result."""

    def run() -> None:
        futures = [submit() for _ in range(tasks)]
        wait(futures)
        for future in futures:
            future.result()

    return peers.timed(run)


def main() -> None:
    """Measure and print."""
    given = peers.options(__doc__ or "", tasks=20000, rounds=5, workers=2, long=100000)
    pools: dict[str, Any] = {
        "snakepit, callables": peers.snakepit_callables(given.workers),
        "snakepit, commands": peers.snakepit_commands(given.workers),
        "ProcessPoolExecutor": peers.process_pool(given.workers),
        "loky": peers.loky_pool(given.workers),
        "pebble": peers.PebblePool(given.workers),
        "ThreadPoolExecutor": peers.thread_pool(given.workers),
    }
    submits: dict[str, Callable[[], Any]] = {
        name: (lambda pool=pool: pool.submit(peers.add, 1, 2)) for name, pool in pools.items()
    }
    commands = pools["snakepit, commands"]
    submits["snakepit, commands"] = lambda: commands.submit("add", {"a": 1, "b": 2})
    for submit in submits.values():
        flood(submit, 200)

    def contender(name: str, tasks: int) -> Callable[[], float]:
        return lambda: tasks / flood(submits[name], tasks)

    # pebble's rate falls with the length of its queue: it gets a tenth of the tasks, which favours it.
    figures = peers.rounds(
        {name: contender(name, given.tasks // 10 if name == "pebble" else given.tasks) for name in submits},
        given.rounds,
    )
    lengths = peers.rounds(
        {
            f"{name} x {tasks}": contender(name, tasks)
            for name in ("snakepit, callables", "snakepit, commands")
            for tasks in (1000, given.long)
        },
        max(3, given.rounds // 2),
    )
    for pool in pools.values():
        pool.shutdown()

    base = figures["ProcessPoolExecutor"]
    rows = [
        (
            name,
            f"{peers.median(values):,.0f}",
            f"{peers.median_ratio(values, base):.2f}",
        )
        for name, values in figures.items()
    ]
    sample = f"{given.rounds} interleaved rounds of {given.tasks:,} tasks at once, {given.workers} workers"
    print(peers.header("throughput.py", sample), end="\n\n")
    print(peers.table(("contender", "tasks/s", "x ProcessPoolExecutor (median of rounds)"), rows), end="\n\n")
    rows = [
        (
            name,
            f"{1e6 / peers.median(lengths[f'{name} x 1000']):.1f}",
            f"{1e6 / peers.median(lengths[f'{name} x {given.long}']):.1f}",
            f"{peers.median(lengths[f'{name} x 1000']) / peers.median(lengths[f'{name} x {given.long}']):.2f}",
        )
        for name in ("snakepit, callables", "snakepit, commands")
    ]
    print(peers.table(("contender", "us a task, 1,000 queued", f"{given.long:,} queued", "ratio"), rows))


if __name__ == "__main__":
    main()
