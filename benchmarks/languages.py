"""How fast is the bridge of each language: its start, one call after another, a flood of calls, large texts?

python benchmarks/languages.py [--quick] [--json FILE] [--calls 200] [--flood 2000] [--rounds 7]

Each language has one worker, whose handler returns its argument.  The handshake is the time from the spawn of a
process to its first reply, without a pool; beside it stands a program that does nothing, from its spawn to its end.
A language whose runtime is not installed is left out, and named.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from support import ROOT, loads, peers, placement
from support.results import Report, figure, median, options, ratios

from snakepit import (
    CommandAdapter,
    JavaAdapter,
    JavaScriptAdapter,
    PerlAdapter,
    PHPAdapter,
    PythonAdapter,
    RAdapter,
    RubyAdapter,
    SnakepitExecutor,
)
from snakepit._pool.launch import Launcher
from snakepit.adapters import Adapter, LuaAdapter
from snakepit.errors import WorkerStartError

HANDLERS = peers.HERE / "languages"
BUILD = Path(ROOT) / "build" / "languages"
LIMIT_S = 300.0
"""Arbitrary: the first build of Go compiles its standard library, too."""

MIB = 1 << 20
LARGE, LARGER = MIB, 16 * MIB
LARGE_ECHOES = 4
"""Of a round; their median counts."""
STARTS = 3
"""Of a round; the fastest counts."""
PING = {
    "worker_id": "bench",
    "initialization": True,
    "protocol": {"versions": [1], "max_frame": 64 * MIB, "capabilities": ["errors", "pipeline"]},
}


class Language(NamedTuple):
    """What runs the workers of a language, and a command line that does nothing in it."""

    adapter: Adapter
    bare: tuple[str, ...]


def script(kind: type[Any], file: str, *bare: str) -> Language:
    """Return a language whose runtime reads the handler file."""
    adapter = kind(HANDLERS / file)
    return Language(adapter, (adapter.executable_path(), *bare))


def compiled(folder: Path, *argv: str) -> None:
    """Run a compiler.

    Raises:
        WorkerStartError: There is none.
    """
    if shutil.which(argv[0]) is None:
        raise WorkerStartError(f"no {argv[0]} here", argv=argv)
    BUILD.mkdir(parents=True, exist_ok=True)
    subprocess.run(argv, cwd=folder, check=True, timeout=LIMIT_S)


def java() -> Language:
    """Return Java, compiled."""
    adapter = JavaAdapter(HANDLERS / "Handlers.java")
    adapter.argv()
    compiled(HANDLERS, "javac", "-d", str(BUILD), "Bare.java")
    return Language(adapter, ("java", "-cp", str(BUILD), "Bare"))


def lua() -> Language:
    """Return Lua, whose bridge is started by a shell; the bare program is Lua itself."""
    adapter = LuaAdapter(HANDLERS / "handlers.lua")
    words = adapter.argv()
    return Language(adapter, (words[words.index("--lua") + 1], "-e", ""))


def go() -> Language:
    """Return Go, compiled; no module comes from elsewhere."""
    compiled(HANDLERS / "go", "go", "build", "-o", f"{BUILD}/", ".", "./bare")
    return Language(CommandAdapter([str(BUILD / "worker")], level=1), (str(BUILD / "bare"),))


LANGUAGES: dict[str, Callable[[], Language]] = {
    "Python": lambda: script(PythonAdapter, "handlers.py", "-c", ""),
    "JavaScript": lambda: script(JavaScriptAdapter, "handlers.cjs", "-e", ""),
    "Ruby": lambda: script(RubyAdapter, "handlers.rb", "-e", ""),
    "R": lambda: script(RAdapter, "handlers.R", "--vanilla", "-e", "invisible(0)"),
    "Perl": lambda: script(PerlAdapter, "handlers.pl", "-e", ""),
    "PHP": lambda: script(PHPAdapter, "handlers.php", "-r", ""),
    "Java": java,
    "Lua": lua,
    "Go": go,
}


def command_line(adapter: Adapter) -> tuple[str, ...]:
    """Return what the pool starts for a worker."""
    return Launcher(adapter, "benchmark").imported(adapter.argv())


def installed() -> tuple[dict[str, Language], list[str]]:
    """Return the languages that can be measured here, and the names of the others."""
    found: dict[str, Language] = {}
    missing = []
    for name, make in LANGUAGES.items():
        try:
            found[name] = make()
        except WorkerStartError as error:
            print(f"{name} is left out: {error}")
            missing.append(name)
    return found, missing


def handshake(argv: Sequence[str]) -> tuple[float, dict[str, Any]]:
    """Start a worker by itself and end it; returns the seconds until its first reply, and what that announced."""
    payload = json.dumps({"id": 0, "command": "ping", "args": PING}).encode()
    requests, request = os.pipe()
    reply, replies = os.pipe()
    fds = (requests, replies)
    environment = {**os.environ, "SNAKEPIT_FDS": f"{requests},{replies}"}
    with os.fdopen(request, "wb", 0) as to_worker, os.fdopen(reply, "rb") as from_worker:
        begin = time.perf_counter()
        worker = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=fds, env=environment)
        to_worker.write(len(payload).to_bytes(4, "big") + payload)
        for fd in fds:
            os.close(fd)
        content = from_worker.read(int.from_bytes(from_worker.read(4), "big"))
        took_s = time.perf_counter() - begin
    assert worker.wait(LIMIT_S) == 0
    announced: dict[str, Any] = json.loads(content)["result"]["protocol"]
    return took_s, announced


def bare_start(argv: Sequence[str]) -> float:
    """Return the seconds that a program which does nothing takes from its spawn to its end."""
    begin = time.perf_counter()
    # Without a timeout, which would look for the end every few milliseconds; run.py limits the whole script.
    status = subprocess.Popen(argv, stdin=subprocess.DEVNULL).wait()
    took_s = time.perf_counter() - begin
    assert status == 0, argv
    return took_s


def fastest(measure: Callable[[], float]) -> float:
    """Return the least of some measurements: what others do on the machine only ever adds to a start."""
    return min(measure() for _ in range(STARTS))


class Worker:
    """The one worker of a language.

    Args:
        pool: Has that worker.
    """

    def __init__(self, pool: SnakepitExecutor) -> None:
        self._pool = pool

    def sequential(self, calls: int) -> float:
        """Return the median of so many calls, in seconds."""
        args = {"value": 3}
        return median(loads.sequential(lambda: self._pool.execute("mirror", args), calls, 3))

    def flood(self, tasks: int) -> float:
        """Return the seconds for each of so many calls, submitted at once."""
        args = {"value": 3}
        return loads.flood(lambda: self._pool.submit("mirror", args), tasks, 3) / tasks

    def echo(self, text: str, count: int) -> float:
        """Return the MiB a second of the median of so many echoes; the text has ASCII characters alone."""
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            answer = self._pool.execute("mirror", {"value": text})
            times.append(time.perf_counter() - begin)
            assert answer == text
        return len(text) / MIB / median(times)


def measure(workers: dict[str, Worker], calls: int, tasks: int, count: int) -> dict[str, dict[str, list[float]]]:
    """Return the figures of every language, by what was measured."""
    larger = ("The quick brown fox jumps. " * (LARGER // 27 + 1))[:LARGER]
    large = larger[:LARGE]

    def each(figure_of: Callable[[Worker], float]) -> dict[str, list[float]]:
        return loads.rounds({name: lambda worker=worker: figure_of(worker) for name, worker in workers.items()}, count)

    placement.pin_workers()
    figures = {"sequential": each(lambda worker: worker.sequential(calls))}
    placement.unpin()
    figures["flood"] = each(lambda worker: worker.flood(tasks))
    figures["large"] = each(lambda worker: worker.echo(large, LARGE_ECHOES))
    figures["larger"] = each(lambda worker: worker.echo(larger, 1))
    return figures


def main() -> None:
    """Measure and report."""
    given = options(__doc__, {"calls": 200, "flood": 2000, "rounds": 7}, {"calls": 100, "flood": 500, "rounds": 3})
    found, missing = installed()
    absent = f"; {', '.join(missing)} not installed" if missing else ""
    sample = f"{given.rounds} interleaved rounds of {given.calls} sequential calls and {given.flood} at once{absent}"
    report = Report("languages", sample, given)
    commands = {name: command_line(language.adapter) for name, language in found.items()}
    runtimes = {name: handshake(argv)[1]["runtime"] for name, argv in commands.items()}
    starts: dict[str, Callable[[], float]] = {}
    for name, language in found.items():
        starts[name] = lambda argv=commands[name]: fastest(lambda: handshake(argv)[0])
        starts[f"bare {name}"] = lambda argv=language.bare: fastest(lambda: bare_start(argv))
    started = loads.rounds(starts, given.rounds)
    with ExitStack() as stack:
        placement.pin_host()
        pools = {name: stack.enter_context(SnakepitExecutor(language.adapter, 1)) for name, language in found.items()}
        for pool in pools.values():
            peers.warm_up(lambda pool=pool: pool.submit("mirror", {"value": 3}), 10)
        figures = measure({name: Worker(pool) for name, pool in pools.items()}, given.calls, given.flood, given.rounds)
    rows = []
    for name in found:
        times, rates = figures["sequential"][name], figures["larger"][name]
        if name != "Python":
            report.row(
                f"sequential_{name.lower()}",
                f"{name}: sequential `execute`, p50",
                ratios(times, figures["sequential"]["Python"]),
                "<=",
                3,
                "Python",
                placement="cross" if placement.can_pin() else "none",
                p50_us=median(times) * 1e6,
            )
        report.row(
            f"handshake_{name.lower()}",
            f"{name}: spawn to first reply",
            ratios(started[name], started[f"bare {name}"]),
            "<=",
            1.3,
            "the bare start",
            ms=median(started[name]) * 1e3,
            bare_ms=median(started[f"bare {name}"]) * 1e3,
        )
        report.row(f"echo_{name.lower()}", f"{name}: echo of 16 MiB", rates, ">=", 16, unit="MiB/s")
        cells = [figure(median(started[name]) * 1e3), figure(median(started[f"bare {name}"]) * 1e3)]
        for values, scale in (("sequential", 1e6), ("flood", 1e6), ("large", 1), ("larger", 1)):
            mine, others = figures[values][name], figures[values]["Python"]
            cells.append(f"{figure(median(mine) * scale)} ({figure(median(ratios(mine, others)))})")
        rows.append((f"{name} {runtimes[name]}", *cells))
    columns = ("language", "handshake ms", "bare start ms", "sequential p50 us", "flood us a call")
    title = "Each figure with its ratio to Python's in brackets"
    report.table(title, (*columns, "1 MiB echo MiB/s", "16 MiB echo MiB/s"), rows)
    report.finish()


if __name__ == "__main__":
    main()
