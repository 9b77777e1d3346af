"""How many trivial tasks a second: submitted at once, or by 16 callers that each wait for their answer?

python benchmarks/throughput.py [--quick] [--json FILE] [--tasks 20000] [--calls 150] [--rounds 4] [--workers 2]
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from support import loads, peers, tasks
from support.results import Report, figure, median, options, percentile, ratios

CALLERS = 16
ADD = {"a": 1, "b": 2}
NOT_JUDGED = ("loky", "mpire", "ThreadPoolExecutor")
"""In the floods, where a quarter of the tasks says as much about them."""
RIVALS = ("ProcessPoolExecutor", "loky", "pebble")
"""In the closed loops.  mpire is not among them: its ``apply_async`` puts two messages that must stay together into a
queue, so several threads that use it crash a worker and hang."""


class RawPipes:
    """Raw pipes with JSON at both ends, shared by threads: what is left when a pool does nothing else."""

    def __init__(self, count: int) -> None:
        self._pipes = [peers.RawPipe(as_json=True) for _ in range(count)]
        self._free: queue.SimpleQueue[peers.RawPipe] = queue.SimpleQueue()
        for pipe in self._pipes:
            self._free.put(pipe)

    def add(self, a: int, b: int) -> int:
        """Make one call on a pipe that is free."""
        pipe = self._free.get()
        result = pipe.add(a, b)
        self._free.put(pipe)
        return result

    def flood(self, count: int) -> float:
        """Return the seconds that so many calls take, up to 64 in each pipe."""

        def run() -> None:
            batches = [min(64, count - start) for start in range(0, count, 64)]
            sent: list[tuple[peers.RawPipe, int]] = []
            for number, size in enumerate(batches):
                if len(sent) == len(self._pipes):
                    pipe, expected = sent.pop(0)
                    assert pipe.receive_many(expected) == [3] * expected
                pipe = self._pipes[number % len(self._pipes)]
                pipe.send_many(1, 2, size)
                sent.append((pipe, size))
            for pipe, expected in sent:
                assert pipe.receive_many(expected) == [3] * expected

        return loads.timed(run)

    def shutdown(self) -> None:
        """End the processes."""
        for pipe in self._pipes:
            pipe.shutdown()


class Loop:
    """A closed loop of callers, round by round.

    Args:
        calls: What each of the callers does again and again.
    """

    def __init__(self, calls: list[Callable[[], Any]]) -> None:
        self._calls = calls
        self.p99: list[float] = []

    def round(self, each: int) -> float:
        """Return the calls a second of one round."""
        loads.closed_loop(self._calls, 5, 3)
        rate, times = loads.closed_loop(self._calls, each, 3)
        self.p99.append(percentile(times, 0.99))
        return rate


def main() -> None:
    """Measure and report."""
    given = options(
        __doc__,
        {"tasks": 20000, "calls": 150, "rounds": 4, "workers": 2},
        {"tasks": 4000, "calls": 50, "rounds": 3},
    )
    sample = (
        f"{given.rounds} interleaved rounds of {given.tasks:,} tasks at once, and of {CALLERS} callers with"
        f" {given.calls} calls each; {given.workers} workers"
    )
    report = Report("throughput", sample, given)
    with ExitStack() as stack:
        commands = stack.enter_context(peers.snakepit_commands(given.workers))
        pools: dict[str, Any] = {
            "snakepit, callables": stack.enter_context(peers.snakepit_callables(given.workers)),
            "ProcessPoolExecutor": peers.process_pool(given.workers),
            "loky": peers.loky_pool(given.workers),
            "pebble": peers.PebblePool(given.workers),
            "mpire": peers.MpirePool(given.workers),
            "ThreadPoolExecutor": peers.thread_pool(given.workers),
        }
        raw = RawPipes(given.workers)
        for each in (*list(pools.values())[1:], raw):
            stack.callback(each.shutdown)
        submits: dict[str, Callable[[], Any]] = {"snakepit, commands": lambda: commands.submit("add", ADD)}
        for name, pool in pools.items():
            submits[name] = lambda pool=pool: pool.submit(tasks.add, 1, 2)
        for submit in submits.values():
            peers.warm_up(submit, given.workers)
        floods(report, submits, raw, given)
        loops(report, commands, pools, raw, given)
    report.finish()


def floods(report: Report, submits: dict[str, Callable[[], Any]], raw: RawPipes, given: Any) -> None:
    """Everything at once."""

    def rate(submit: Callable[[], Any], count: int) -> Callable[[], float]:
        return lambda: count / loads.flood(submit, count, 3)

    contenders = {name: rate(submit, given.tasks) for name, submit in submits.items()}
    for name in NOT_JUDGED:
        contenders[name] = rate(submits[name], given.tasks // 4)
    contenders["raw pipes, JSON at both ends"] = lambda: given.tasks / raw.flood(given.tasks)
    figures = loads.rounds(contenders, given.rounds)
    base = figures["ProcessPoolExecutor"]
    for name, contender, goal, other in (
        ("flood_commands_ppe", "snakepit, commands", 5, "ProcessPoolExecutor"),
        ("flood_commands_pebble", "snakepit, commands", 5, "pebble"),
        ("flood_callables_ppe", "snakepit, callables", 2.5, "ProcessPoolExecutor"),
    ):
        report.row(
            name,
            f"{given.tasks:,} trivial {contender.partition(', ')[2]} submitted at once, tasks/s",
            ratios(figures[contender], figures[other]),
            ">=",
            goal,
            other,
            rate=median(figures[contender]),
            other_rate=median(figures[other]),
        )
    report.table(
        f"{given.tasks:,} tasks at once",
        ("contender", "tasks/s", "us a task", "x ProcessPoolExecutor"),
        [
            (name, f"{median(values):,.0f}", figure(1e6 / median(values)), f"{median(ratios(values, base)):.2f}")
            for name, values in figures.items()
        ],
    )


def loops(report: Report, commands: Any, pools: dict[str, Any], raw: RawPipes, given: Any) -> None:
    """Callers that wait."""
    callables = pools["snakepit, callables"]

    def in_session(number: int) -> Callable[[], Any]:
        return lambda: commands.execute("add", ADD, session=f"caller-{number}")

    found = {
        "snakepit, commands": Loop([lambda: commands.execute("add", ADD)] * CALLERS),
        "snakepit, commands, a session each": Loop([in_session(number) for number in range(CALLERS)]),
        "snakepit, callables": Loop([lambda: callables.execute(tasks.add, 1, 2)] * CALLERS),
        "raw pipes, JSON at both ends": Loop([lambda: raw.add(1, 2)] * CALLERS),
    }
    for name, pool in pools.items():
        if name in (*RIVALS, "ThreadPoolExecutor"):
            found[name] = Loop([lambda pool=pool: pool.submit(tasks.add, 1, 2).result()] * CALLERS)
    figures = loads.rounds(
        {name: lambda loop=loop: loop.round(given.calls) for name, loop in found.items()}, given.rounds
    )

    best_rates = [max(of_round) for of_round in zip(*(figures[name] for name in RIVALS), strict=True)]
    best_p99 = [min(of_round) for of_round in zip(*(found[name].p99 for name in RIVALS), strict=True)]
    plain, sessions = figures["snakepit, commands"], figures["snakepit, commands, a session each"]
    question = f"{CALLERS} callers in closed loop"
    names = ", ".join(RIVALS)
    report.row("closed_loop", f"{question}, calls/s", ratios(plain, best_rates), ">=", 2, f"the best of {names}")
    report.row(
        "closed_loop_p99",
        f"{question}, p99",
        ratios(found["snakepit, commands"].p99, best_p99),
        "<=",
        1,
        "the least of theirs",
        p99_ms=median(found["snakepit, commands"].p99) * 1e3,
        other_p99_ms=median(best_p99) * 1e3,
    )
    report.row(
        "closed_loop_sessions",
        f"{question}, a session each, calls/s",
        ratios(sessions, plain),
        ">=",
        0.9,
        "without sessions",
    )
    report.table(
        f"{question}, {given.workers} workers",
        ("contender", "calls/s", "p99 ms", "x ProcessPoolExecutor"),
        [
            (
                name,
                f"{median(values):,.0f}",
                f"{median(found[name].p99) * 1e3:.1f}",
                f"{median(ratios(values, figures['ProcessPoolExecutor'])):.2f}",
            )
            for name, values in figures.items()
        ],
    )


if __name__ == "__main__":
    main()
