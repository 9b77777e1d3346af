"""What the benchmarks have in common: the contenders, interleaved rounds, tables.

Every script runs all contenders in one process on one machine, in rounds that take turns, and
prints medians and ratios: absolute figures of a shared machine mean little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from snakepit import PythonAdapter, SnakepitExecutor

HERE = Path(__file__).resolve().parent


def nothing() -> None:
    """Do nothing: what is measured is the way there and back."""


def add(a: int, b: int) -> int:
    """Return the sum: the smallest call that carries something."""
    return a + b


class PebblePool:
    """pebble's process pool behind ``submit``."""

    def __init__(self, workers: int) -> None:
        from pebble import ProcessPool

        self._pool = ProcessPool(max_workers=workers)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Schedule a call; returns pebble's future."""
        return self._pool.schedule(fn, args=args)

    def shutdown(self) -> None:
        """Finish and end."""
        self._pool.close()
        self._pool.join()


class RawPipe:
    """One Python process that echoes JSON frames: the floor under every design with a pipe."""

    _ECHO = (
        "import json,os,struct\n"
        "def read(n):\n"
        "    data=b''\n"
        "    while len(data)<n:\n"
        "        part=os.read(0,n-len(data))\n"
        "        if not part: raise SystemExit\n"
        "        data+=part\n"
        "    return data\n"
        "while True:\n"
        "    message=json.loads(read(struct.unpack('>I',read(4))[0]))\n"
        "    reply=json.dumps({'id':message['id'],'success':True,'result':None}).encode()\n"
        "    os.write(1,struct.pack('>I',len(reply))+reply)\n"
    )

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", self._ECHO],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )

    def call(self) -> Any:
        """Send one frame and return the decoded answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        data = json.dumps({"id": 1, "command": "nothing", "args": {}}).encode()
        os.write(self._process.stdin.fileno(), struct.pack(">I", len(data)) + data)
        (length,) = struct.unpack(">I", self._process.stdout.read(4))
        return json.loads(self._process.stdout.read(length))

    def shutdown(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(5)
        assert self._process.stdout is not None
        self._process.stdout.close()


def snakepit_callables(workers: int) -> SnakepitExecutor:
    """Return snakepit with callables, as a drop-in user has it."""
    return SnakepitExecutor(max_workers=workers)


def snakepit_commands(workers: int) -> SnakepitExecutor:
    """Return snakepit with commands of a handlers file."""
    return SnakepitExecutor(PythonAdapter(HERE / "bench_handlers.py"), max_workers=workers)


def loky_pool(workers: int) -> Executor:
    """Return loky's executor (not the reusable one)."""
    from loky import ProcessPoolExecutor as LokyExecutor

    return LokyExecutor(max_workers=workers)


def process_pool(workers: int) -> ProcessPoolExecutor:
    """Return the standard library's process pool."""
    return ProcessPoolExecutor(workers)


def thread_pool(workers: int) -> ThreadPoolExecutor:
    """Return the standard library's thread pool."""
    return ThreadPoolExecutor(workers)


def rounds(contenders: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Run every contender once per round, in turn; return all figures by name."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(count):
        # The order turns with the round, so that nobody always runs after the same neighbour.
        for name in names[number % len(names) :] + names[: number % len(names)]:
            figures[name].append(contenders[name]())
    return figures


def timed(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def commit() -> str:
    """Return the checkout's commit, with a mark when it was changed since."""
    try:
        name = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes"],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return name.stdout.strip()


def header(script: str, sample: str) -> str:
    """Return what a figure needs beside it: script, commit, machine, versions, sample."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("loky", "pebble", "cloudpickle", "msgspec"))
    return (
        f"benchmarks/{script} at {commit()}; {platform.machine()}, {os.cpu_count()} processors,"
        f" {platform.system()} {platform.release()}, CPython {platform.python_version()}, {packages}; {sample}"
    )


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    names = list(columns)
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def median(values: list[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def median_ratio(values: list[float], others: list[float]) -> float:
    """Return the median of the ratios, round by round: both sides of each had the same neighbours."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def percentile(values: list[float], share: float) -> float:
    """Return the value below which ``share`` of the sample lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def options(description: str, **defaults: int) -> argparse.Namespace:
    """Parse integer options with these defaults."""
    parser = argparse.ArgumentParser(description=description)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    return parser.parse_args()
