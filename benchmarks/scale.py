"""What do 64 workers and 1,000 sessions cost, at work and at rest?

python benchmarks/scale.py [--quick] [--json FILE] [--tasks 8000] [--calls 300] [--rounds 5] [--workers 64]
[--idle 31]

``--idle`` are the seconds for which idle hosts are watched; 31 of them contain one round of snakepit's health checks.
A wake-up is a voluntary context switch of a thread of the host.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

from support import loads, peers, tasks
from support.results import Report, figure, median, options, ratios

FEW = 2
SESSIONS = 1000
ADD = {"a": 1, "b": 2}
SETTLE_S = 2.0
"""From the last answer to the watch: what ends with the start shall have ended."""


class Flood:
    """Tasks at once, and the processor time that the host spends on each.

    Args:
        submit: Submits the task of that number.
    """

    def __init__(self, submit: Callable[[int], Any]) -> None:
        self._submit = submit
        self.host_us: list[float] = []

    def round(self, count: int) -> float:
        """Return the seconds a task of one round."""
        numbers = iter(range(count))
        before = resource.getrusage(resource.RUSAGE_SELF)
        took_s = loads.flood(lambda: self._submit(next(numbers)), count, 3)
        after = resource.getrusage(resource.RUSAGE_SELF)
        spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        self.host_us.append(spent_s / count * 1e6)
        return took_s / count


def idle_host(name: str, workers: int) -> None:
    """Be a host whose workers have all answered, until the standard input ends."""
    pool = peers.PebblePool(workers) if name == "pebble" else peers.snakepit_commands(workers)
    if name == "pebble":
        peers.warm_up(lambda: pool.submit(tasks.add, 1, 2), workers)
    else:
        pool.wait_ready(timeout=60, workers=workers)
        peers.warm_up(lambda: pool.submit("add", ADD), workers)
    print("ready", flush=True)
    sys.stdin.read()
    pool.shutdown()


class IdleHost:
    """A host in a process of its own, watched from here.

    Args:
        name: "snakepit" or "pebble".
        workers: Size of its pool.
    """

    def __init__(self, name: str, workers: int) -> None:
        command = [sys.executable, __file__, "--idle-host", name, str(workers)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def read(self) -> tuple[float, int]:
        """Return the processor time in seconds and the wake-ups of its threads, both since their start."""
        cpu_ns = wake_ups = 0
        for thread in Path(f"/proc/{self._process.pid}/task").iterdir():
            cpu_ns += int((thread / "schedstat").read_text(encoding="ascii").split()[0])
            for line in (thread / "status").read_text(encoding="utf-8").splitlines():
                if line.startswith("voluntary_ctxt_switches:"):
                    wake_ups += int(line.split()[1])
        return cpu_ns / 1e9, wake_ups

    def shutdown(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)


def at_work(report: Report, given: Any) -> None:
    """Compare floods."""
    with ExitStack() as stack:
        few = stack.enter_context(peers.snakepit_commands(FEW))
        many = stack.enter_context(peers.snakepit_commands(given.workers))
        many.wait_ready(timeout=60, workers=given.workers)

        def in_sessions(pool: Any) -> Callable[[int], Any]:
            return lambda number: pool.submit("add", ADD, session=f"user-{number % SESSIONS}")

        floods = {
            f"{FEW} workers": Flood(lambda _: few.submit("add", ADD)),
            f"{FEW} workers, {SESSIONS:,} sessions": Flood(in_sessions(few)),
            f"{given.workers} workers": Flood(lambda _: many.submit("add", ADD)),
            f"{given.workers} workers, {SESSIONS:,} sessions": Flood(in_sessions(many)),
        }
        for flood in floods.values():
            flood.round(2 * SESSIONS)
            flood.host_us.clear()
        figures: dict[str, list[float]] = loads.rounds(
            {name: lambda flood=flood: flood.round(given.tasks) for name, flood in floods.items()},
            given.rounds,
        )
        singles = one_by_one(few, many, given)
    base = figures[f"{FEW} workers"]
    for name, contender in (
        ("workers", f"{given.workers} workers"),
        ("workers_sessions", f"{given.workers} workers, {SESSIONS:,} sessions"),
    ):
        report.row(
            name,
            f"{contender}, cost of a request",
            ratios(figures[contender], base),
            "<=",
            1.2,
            f"{FEW} workers without sessions",
            us=median(figures[contender]) * 1e6,
            other_us=median(base) * 1e6,
            same_sessions=median(ratios(figures[contender], figures[f"{FEW} workers, {SESSIONS:,} sessions"])),
        )
    report.table(
        f"{given.tasks:,} commands at once",
        ("pool", "us a request", f"/ {FEW} workers", "of the host's processor time, us"),
        [
            (
                name,
                figure(median(values) * 1e6),
                f"{median(ratios(values, base)):.2f}",
                figure(median(floods[name].host_us)),
            )
            for name, values in figures.items()
        ],
    )

    report.row(
        "one_by_one",
        f"{given.workers} workers, {SESSIONS:,} sessions, one call after another",
        ratios(singles[f"{given.workers} workers, {SESSIONS:,} sessions"], singles[f"{FEW} workers"]),
        against=f"{FEW} workers without sessions",
    )
    report.table(
        "One call after another",
        ("pool", "p50 us", f"/ {FEW} workers"),
        [
            (name, figure(median(values) * 1e6), f"{median(ratios(values, singles[f'{FEW} workers'])):.2f}")
            for name, values in singles.items()
        ],
    )


def one_by_one(few: Any, many: Any, given: Any) -> dict[str, list[float]]:
    """Return the median of single calls, round by round; every call is of another session than the one before."""

    def plain(pool: Any) -> Callable[[], float]:
        return lambda: median(loads.sequential(lambda: pool.execute("add", ADD), given.calls, 3))

    def in_sessions(pool: Any) -> Callable[[], float]:
        numbers = cycle(range(SESSIONS))
        call = lambda: pool.execute("add", ADD, session=f"user-{next(numbers)}")  # noqa: E731  # as above
        return lambda: median(loads.sequential(call, given.calls, 3))

    return loads.rounds(
        {
            f"{FEW} workers": plain(few),
            f"{FEW} workers, {SESSIONS:,} sessions": in_sessions(few),
            f"{given.workers} workers": plain(many),
            f"{given.workers} workers, {SESSIONS:,} sessions": in_sessions(many),
        },
        given.rounds,
    )


def at_rest(report: Report, given: Any) -> None:
    """Watch idle hosts, all at the same time."""
    with ExitStack() as stack:
        hosts = {}
        for name in ("snakepit", "pebble"):
            hosts[name] = IdleHost(name, given.workers)
            stack.callback(hosts[name].shutdown)
        time.sleep(SETTLE_S)
        before = {name: host.read() for name, host in hosts.items()}
        time.sleep(given.idle)
        after = {name: host.read() for name, host in hosts.items()}
    percent = {name: (after[name][0] - before[name][0]) / given.idle * 100 for name in hosts}
    wake_ups = {name: (after[name][1] - before[name][1]) / given.idle for name in hosts}
    question = f"idle host with {given.workers} workers"
    report.row("idle_cpu", f"{question}, share of a core", [percent["snakepit"]], "<=", 0.1, unit="%")
    report.row("idle_wake_ups", f"{question}, wake-ups", [wake_ups["snakepit"]], "<=", 2, unit="/s")
    report.table(
        f"Idle for {given.idle} s, {given.workers} workers",
        ("host", "% of a core", "wake-ups/s"),
        [(name, f"{percent[name]:.3f}", f"{wake_ups[name]:.1f}") for name in hosts],
    )


def main() -> None:
    """Measure and report."""
    given = options(
        __doc__,
        {"tasks": 8000, "calls": 300, "rounds": 5, "workers": 64, "idle": 31},
        {"tasks": 3000, "calls": 100, "rounds": 3, "idle": 5},
    )
    sample = (
        f"{given.rounds} interleaved rounds of {given.tasks:,} commands at once and {given.calls} in turn;"
        f" {given.idle} idle seconds"
    )
    report = Report("scale", sample, given)
    at_work(report, given)
    at_rest(report, given)
    report.finish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--idle-host"]:
        idle_host(sys.argv[2], int(sys.argv[3]))
    else:
        main()
