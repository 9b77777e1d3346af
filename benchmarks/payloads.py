"""How fast do large values travel there and back: text, bytes, and numpy arrays?

python benchmarks/payloads.py [--quick] [--json FILE] [--rounds 4] [--largest 256]

``--largest`` is in MiB.  Each figure is an echo: the value goes to one worker and comes
back, and its size counts once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from support import loads, peers, tasks
from support.results import Report, figure, median, options, ratios

KIB, MIB = 1 << 10, 1 << 20
TEXTS = (KIB, 32 * KIB, MIB, 32 * MIB)
BYTES = (KIB, 32 * KIB, MIB, 32 * MIB, 256 * MIB)
ARRAYS = (8 * MIB, 256 * MIB)
NODE_TEXT = 16 * MIB
"""For the comparison of the two bridges."""
VOLUME = 8 * MIB
"""Bytes that one round of a small size moves, up to 200 echoes."""

LARGE = 64 * MIB
"""From here on fewer rounds, and fewer contenders: each echo takes long enough to be steady."""

Echo = Callable[[Any], Any]


def size_of(count: int) -> str:
    """Return a size in words."""
    return f"{count // MIB} MiB" if count >= MIB else f"{count // KIB} KiB"


def rate(echo: Echo, value: Any, size: int, equal: Callable[[Any, Any], bool]) -> Callable[[], float]:
    """Return what measures MB a second, by the median of the echoes of a round; every answer is checked."""
    count = max(1, min(200, VOLUME // size))

    def measure() -> float:
        times, answers = [], []
        for _ in range(count):
            begin = time.perf_counter()
            answers.append(echo(value))
            times.append(time.perf_counter() - begin)
        assert all(equal(value, answer) for answer in answers)
        return size / median(times) / 1e6

    return measure


def compare(
    echoes: dict[str, Echo],
    value: Any,
    size: int,
    count: int,
    equal: Callable[[Any, Any], bool] = lambda sent, received: bool(sent == received),
) -> dict[str, list[float]]:
    """Return MB a second of each echo, round by round."""
    if size >= LARGE:
        count = max(2, count - 2)
        echoes = {name: echo for name, echo in echoes.items() if name not in ("pebble", "raw pipe")}
    return loads.rounds({name: rate(echo, value, size, equal) for name, echo in echoes.items()}, count)


class Table:
    """Rows of one kind of value (text, bytes, arrays), collected size by size."""

    def __init__(self, report: Report, kind: str) -> None:
        self._report, self._kind = report, kind
        self._cells: list[list[str]] = []
        self._names: list[str] = []
        self._lines: dict[str, list[tuple[float, float]]] = {}

    def add(self, size: int, figures: dict[str, list[float]], goals: dict[str, float], judged: str = "") -> None:
        """Add one size; ``goals`` says what a contender has to reach against ProcessPoolExecutor."""
        other = figures["ProcessPoolExecutor"]
        for contender, goal in goals.items():
            through = contender.removeprefix("snakepit, ")
            self._report.row(
                f"{self._kind}_{size}_{through}",
                f"echo of {size_of(size)} {judged or self._kind} through {through}, MB/s",
                ratios(figures[contender], other),
                ">=",
                goal,
                "ProcessPoolExecutor",
                rate_mb_s=median(figures[contender]),
                other_rate_mb_s=median(other),
            )
        for name, values in figures.items():
            if name not in self._names:
                self._names.append(name)
            self._lines.setdefault(name, []).append((size, median(values)))
        cells = [figure(median(figures[name])) if name in figures else "" for name in self._names]
        self._cells.append([size_of(size), *cells])

    def show(self) -> None:
        """Hand the table and its plot to the report, unless every size was above the largest wanted."""
        if not self._cells:
            return
        rows = [row + [""] * (1 + len(self._names) - len(row)) for row in self._cells]
        self._report.table(f"Echo of {self._kind}, MB/s", ("size", *self._names), rows)
        self._report.plot(self._kind, f"Echo of {self._kind}", "bytes", "MB/s", self._lines)


def main() -> None:
    """Measure and report."""
    given = options(__doc__, {"rounds": 4, "largest": 256}, {"rounds": 3, "largest": 32})
    largest = given.largest * MIB
    sample = f"{given.rounds} interleaved rounds, one worker each, values up to {given.largest} MiB"
    report = Report("payloads", sample, given)
    with ExitStack() as stack:
        commands = stack.enter_context(peers.snakepit_commands(1))
        pools: dict[str, Any] = {
            "snakepit, callables": stack.enter_context(peers.snakepit_callables(1)),
            "ProcessPoolExecutor": peers.process_pool(1),
            "loky": peers.loky_pool(1),
            "pebble": peers.PebblePool(1),
        }
        for pool in list(pools.values())[1:]:
            stack.callback(pool.shutdown)
        raw = peers.RawPipe()
        stack.callback(raw.shutdown)
        echoes: dict[str, Echo] = {
            name: lambda value, pool=pool: pool.submit(tasks.echo, value).result() for name, pool in pools.items()
        }
        for echo in echoes.values():
            assert echo("warm") == "warm"
        by_command = {"snakepit, commands": lambda value: commands.execute("mirror", {"value": value})}
        assert by_command["snakepit, commands"]("warm") == "warm"

        def raw_rounds(value: bytes, size: int) -> dict[str, Echo]:
            raw.carry(value)
            return {"raw pipe": lambda _: memoryview(raw.echo())[4:]}

        table = Table(report, "text")
        for size in (size for size in TEXTS if size <= largest):
            text = ("The quick brown fox jumps. " * (size // 27 + 1))[:size]
            figures = compare({**by_command, **echoes}, text, size, given.rounds)
            table.add(size, figures, {"snakepit, commands": 1.1, "snakepit, callables": 1.1})
        table.show()

        table = Table(report, "bytes")
        for size in (size for size in BYTES if size <= largest):
            data = bytes(range(256)) * (size // 256)
            figures = compare({**echoes, **raw_rounds(data, size)}, data, size, given.rounds)
            table.add(size, figures, {"snakepit, callables": 1.5 if size >= MIB else 1.1})
        table.show()

        arrays(report, echoes, largest, given.rounds)
        if shutil.which("node"):
            bridges(report, by_command["snakepit, commands"], given.rounds)
    report.finish()


def arrays(report: Report, echoes: dict[str, Echo], largest: int, count: int) -> None:
    """Echo numpy arrays."""
    import numpy

    table = Table(report, "arrays")
    for size in (size for size in ARRAYS if size <= largest):
        array = numpy.arange(size // 8, dtype=numpy.float64)
        figures = compare(echoes, array, size, count, numpy.array_equal)
        table.add(size, figures, {"snakepit, callables": 2}, "numpy array")
    table.show()


def bridges(report: Report, by_python: Echo, count: int) -> None:
    """Echo a large text through the bridges of both languages."""
    from snakepit import JavaScriptAdapter, SnakepitExecutor

    text = ("The quick brown fox jumps. " * (NODE_TEXT // 27 + 1))[:NODE_TEXT]
    with SnakepitExecutor(JavaScriptAdapter(peers.HERE / "bench_handlers.cjs"), 1) as pool:
        by_node: Echo = lambda value: pool.execute("mirror", {"value": value})  # noqa: E731  # one of a pair
        assert by_node("warm") == "warm"
        figures = compare({"Python": by_python, "Node": by_node}, text, NODE_TEXT, count)
    report.row(
        "node_python",
        "echo of 16 MiB text through the Node bridge, time",
        ratios(figures["Python"], figures["Node"]),
        "<=",
        1.5,
        "the Python bridge",
        node_mb_s=median(figures["Node"]),
        python_mb_s=median(figures["Python"]),
    )


if __name__ == "__main__":
    main()
