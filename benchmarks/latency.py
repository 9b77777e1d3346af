"""How long does one call take, when the next one is made after its answer?

python benchmarks/latency.py [--quick] [--json FILE] [--calls 200] [--rounds 15] [--workers 2]

The judged figures are taken with the host on one processor and all workers on the others; the same without a
placement stands beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from support import loads, peers, placement, tasks
from support.results import Report, median, options, percentile, ratios

COMPUTE = {"operation": "add", "a": 1, "b": 2}


class Contender:
    """One way to have a call made, and the seconds of all its calls.

    Args:
        call: Makes one call and returns its result.
        expected: That result.
    """

    def __init__(self, call: Callable[[], Any], expected: Any) -> None:
        self.call, self.expected = call, expected
        self.times: list[float] = []

    def round(self, calls: int) -> float:
        """Return the median of one round, in seconds."""
        times = loads.sequential(self.call, calls, self.expected)
        self.times += times
        return median(times)


def contenders(stack: ExitStack, workers: int) -> dict[str, Contender]:
    """Start every pool, all workers included."""
    commands = stack.enter_context(peers.snakepit_commands(workers))
    callables = stack.enter_context(peers.snakepit_callables(workers))
    pools: dict[str, Any] = {
        "ProcessPoolExecutor": peers.process_pool(workers),
        "loky": peers.loky_pool(workers),
        "pebble": peers.PebblePool(workers),
        "mpire": peers.MpirePool(workers),
        "ThreadPoolExecutor": peers.thread_pool(workers),
    }
    raw, as_json = peers.RawPipe(), peers.RawPipe(as_json=True)
    for each in (*pools.values(), raw, as_json):
        stack.callback(each.shutdown)
    payload = b'{"id":1,"command":"compute","args":{"operation":"add","a":1,"b":2}}'
    raw.carry(payload)
    for pool in (callables, *pools.values()):
        peers.warm_up(lambda pool=pool: pool.submit(tasks.add, 1, 2), workers)
    peers.warm_up(lambda: commands.submit("compute", COMPUTE), workers)
    found = {
        "snakepit, execute a command": Contender(lambda: commands.execute("compute", COMPUTE)["result"], 3),
        "snakepit, submit a command": Contender(lambda: commands.submit("compute", COMPUTE).result()["result"], 3),
        "snakepit, execute a callable": Contender(lambda: callables.execute(tasks.add, 1, 2), 3),
        "snakepit, submit a callable": Contender(lambda: callables.submit(tasks.add, 1, 2).result(), 3),
        "raw pipe": Contender(raw.echo, len(payload).to_bytes(4, "big") + payload),
        "raw pipe, JSON at both ends": Contender(lambda: as_json.add(1, 2), 3),
    }
    for name, pool in pools.items():
        found[name] = Contender(lambda pool=pool: pool.submit(tasks.add, 1, 2).result(), 3)
    return found


def measure(asked: dict[str, Contender], calls: int, count: int) -> dict[str, list[float]]:
    """Return the median of every round, by contender."""
    for each in asked.values():
        each.times = []
    return loads.rounds({name: lambda each=each: each.round(calls) for name, each in asked.items()}, count)


def show(report: Report, title: str, figures: dict[str, list[float]], asked: dict[str, Contender]) -> None:
    """Add a table of medians and 99th percentiles."""
    rows = [
        (
            name,
            f"{median(values) * 1e6:.0f}",
            f"{percentile(asked[name].times, 0.99) * 1e6:.0f}",
            f"{median(ratios(values, figures['raw pipe'])):.2f}",
            f"{median(ratios(values, figures['ProcessPoolExecutor'])):.2f}",
        )
        for name, values in figures.items()
    ]
    report.table(title, ("contender", "p50 us", "p99 us", "/ raw pipe", "/ ProcessPoolExecutor"), rows)


def main() -> None:
    """Measure and report."""
    given = options(__doc__, {"calls": 200, "rounds": 15, "workers": 2}, {"calls": 100, "rounds": 7})
    sample = f"{given.rounds} interleaved rounds of {given.calls} sequential calls, {given.workers} workers"
    report = Report("latency", sample, given)
    with ExitStack() as stack:
        placement.pin_host()
        asked = contenders(stack, given.workers)
        placement.pin_workers()
        pinned = measure(asked, given.calls, given.rounds)
        show(report, "Host and workers on different processors", pinned, asked)
        placement.unpin()
        free = measure(asked, given.calls, max(3, given.rounds // 2))
        show(report, "Wherever the kernel puts them, not judged", free, asked)

    judged = [
        ("execute_raw", "sequential `execute` of a command", "snakepit, execute a command", 1.6, "raw pipe"),
        ("submit_pebble", "sequential `submit().result()` of a command", "snakepit, submit a command", 0.55, "pebble"),
        (
            "submit_ppe",
            "sequential `submit().result()` of a command",
            "snakepit, submit a command",
            0.45,
            "ProcessPoolExecutor",
        ),
        (
            "callable_ppe",
            "sequential `submit().result()` of a callable",
            "snakepit, submit a callable",
            0.6,
            "ProcessPoolExecutor",
        ),
    ]
    for name, question, contender, goal, other in judged:
        report.row(
            name,
            f"{question}, p50",
            ratios(pinned[contender], pinned[other]),
            "<=",
            goal,
            other,
            placement="cross" if placement.can_pin() else "none",
            p50_us=median(pinned[contender]) * 1e6,
            other_p50_us=median(pinned[other]) * 1e6,
            unpinned=median(ratios(free[contender], free[other])),
        )
    report.finish()


if __name__ == "__main__":
    main()
