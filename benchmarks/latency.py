"""How long does one call take, when the next one is made after its answer?

python benchmarks/latency.py [--calls 500] [--rounds 15] [--workers 2]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from support import peers


def main() -> None:
    """Measure and print."""
    given = peers.options(__doc__ or "", calls=500, rounds=15, workers=2)
    pools: dict[str, Any] = {
        "snakepit, callables": peers.snakepit_callables(given.workers),
        "snakepit, commands": peers.snakepit_commands(given.workers),
        "ProcessPoolExecutor": peers.process_pool(given.workers),
        "loky": peers.loky_pool(given.workers),
        "pebble": peers.PebblePool(given.workers),
        "ThreadPoolExecutor": peers.thread_pool(given.workers),
    }
    pipe = peers.RawPipe()
    calls: dict[str, Callable[[], Any]] = {
        name: (lambda pool=pool: pool.submit(peers.nothing).result()) for name, pool in pools.items()
    }
    commands = pools["snakepit, commands"]
    calls["snakepit, commands"] = lambda: commands.submit("nothing").result()
    calls["raw pipe"] = pipe.call
    single: dict[str, list[float]] = {name: [] for name in calls}

    def contender(name: str) -> Callable[[], float]:
        call, times = calls[name], single[name]

        def run() -> float:
            begin = time.perf_counter()
            for _ in range(given.calls):
                before = time.perf_counter()
                call()
                times.append(time.perf_counter() - before)
            return (time.perf_counter() - begin) / given.calls

        return run

    for call in calls.values():
        for _ in range(50):
            call()
    for times in single.values():
        times.clear()
    figures = peers.rounds({name: contender(name) for name in calls}, given.rounds)
    for pool in [*pools.values(), pipe]:
        pool.shutdown()

    base = peers.median(figures["ProcessPoolExecutor"])
    rows = [
        (
            name,
            f"{peers.median(values) * 1e6:.0f}",
            f"{peers.percentile(single[name], 0.99) * 1e6:.0f}",
            f"{peers.median(values) / base:.2f}",
            f"{peers.median_ratio(values, figures['ProcessPoolExecutor']):.2f}",
        )
        for name, values in figures.items()
    ]
    sample = f"{given.rounds} interleaved rounds of {given.calls} sequential submit().result(), {given.workers} workers"
    print(peers.header("latency.py", sample), end="\n\n")
    columns = ("contender", "median us", "p99 us", "/ ProcessPoolExecutor", "the same, round by round")
    print(peers.table(columns, rows))


if __name__ == "__main__":
    main()
