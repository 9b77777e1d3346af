"""Does a request cost more when a million others are queued, and how much of the host's memory does each take?

python benchmarks/queued.py [--quick] [--json FILE] [--largest 1000000] [--rounds 3] [--workers 2]

Every figure comes from a fresh host process.  Its workers are held until everything is queued; then the memory is
read, the workers are let go, and the clock stops at the last result.  What is held while the clock runs is what a
caller holds: the futures.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import loads, peers, tasks
from support.meeting import Meeting
from support.results import Report, figure, median, options, ratios

SIZES = (1_000, 10_000, 100_000, 1_000_000)
REPEAT_UP_TO = 10_000
"""Requests that a host process sends at the least, in several turns if it must."""
CALLABLES_UP_TO = 100_000
PEERS = {"ProcessPoolExecutor": 100_000, "loky": 10_000, "pebble": 10_000}
"""How long their queues get; what they would need for more is known from there."""
LIMIT_S = 300
ADD = {"a": 1, "b": 2}

POOLS: dict[str, Callable[[int], Any]] = {
    "snakepit, commands": peers.snakepit_commands,
    "snakepit, callables": peers.snakepit_callables,
    "ProcessPoolExecutor": peers.process_pool,
    "loky": peers.loky_pool,
    "pebble": peers.PebblePool,
}


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def host(name: str, size: int, workers: int) -> dict[str, float]:
    """Queue so many requests in this process and return what each of them took."""
    pool = POOLS[name](workers)
    by_command = name == "snakepit, commands"
    submit = (lambda: pool.submit("add", ADD)) if by_command else (lambda: pool.submit(tasks.add, 1, 2))
    peers.warm_up(submit, workers)
    submit_s, complete_s, taken_bytes = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        meeting = Meeting(Path(folder))
        meet = ("meet", {"path": meeting.path}) if by_command else (tasks.meet, meeting.path)
        for _ in range(max(1, REPEAT_UP_TO // size)):
            gc.collect()
            futures: list[Any] = []

            def queue(futures: list[Any] = futures) -> None:
                futures.extend(submit() for _ in range(size))

            def complete(futures: list[Any] = futures) -> None:
                assert all(future.result() == 3 for future in futures)

            held = [pool.submit(*meet) for _ in range(workers)]
            with meeting.held(workers):
                before = resident_bytes()
                submit_s.append(loads.timed(queue))
                taken_bytes.append(resident_bytes() - before)
            complete_s.append(loads.timed(complete))
            assert len(futures) == size
            for future in held:
                future.result()
            # The next turn must find the memory free, or its growth would not be seen.
            del futures, queue, complete
        meeting.close()
    pool.shutdown()
    return {
        "submit_us": statistics.median(submit_s) / size * 1e6,
        "complete_us": statistics.median(complete_s) / size * 1e6,
        "us": statistics.median(map(sum, zip(submit_s, complete_s, strict=True))) / size * 1e6,
        # The first turn: later ones may reuse what it has freed.
        "bytes": taken_bytes[0] / size,
    }


def measure(name: str, size: int, workers: int) -> dict[str, float]:
    """Return ``host`` of a fresh process."""
    command = [sys.executable, __file__, "--host", name, str(size), str(workers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=LIMIT_S)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure and report."""
    given = options(__doc__, {"largest": 1_000_000, "rounds": 3, "workers": 2}, {"largest": 100_000, "rounds": 1})
    sample = f"{given.rounds} interleaved rounds (one of 1,000,000, and of peers), fresh hosts, {given.workers} workers"
    report = Report("queued", sample, given)
    wanted: list[tuple[str, int]] = []
    for size in SIZES:
        if size <= given.largest:
            wanted.append(("snakepit, commands", size))
            if size <= CALLABLES_UP_TO:
                wanted.append(("snakepit, callables", size))
            if not given.quick:
                wanted += [(name, size) for name, longest in PEERS.items() if size in (SIZES[0], longest)]
    found: dict[tuple[str, int], list[dict[str, float]]] = {each: [] for each in wanted}
    for number in range(given.rounds):
        for name, size in wanted:
            # What takes long is done once: its own length evens it out.
            if number == 0 or (name.startswith("snakepit") and size <= CALLABLES_UP_TO):
                found[name, size].append(measure(name, size, given.workers))
    judge(report, found)
    show(report, found)
    report.finish()


def judge(report: Report, found: dict[tuple[str, int], list[dict[str, float]]]) -> None:
    """Add the rows."""
    for (name, size), samples in found.items():
        pool, _, kind = name.partition(", ")
        if pool != "snakepit":
            continue
        bases = [sample["us"] for sample in found[name, SIZES[0]]][: len(samples)]
        if size > SIZES[0]:
            report.row(
                f"flat_{kind}_{size}",
                f"{size:,} queued {kind}, cost of one from submission to completion",
                ratios([sample["us"] for sample in samples], bases),
                "<=",
                1.15,
                f"that of {SIZES[0]:,}",
                us=median(sample["us"] for sample in samples),
                base_us=median(bases),
            )
        if size >= 100_000:
            report.row(
                f"memory_{kind}_{size}",
                f"{size:,} queued {kind}, host memory of one",
                [sample["bytes"] / 1024 for sample in samples],
                "<=",
                1.2,
                unit="KiB",
            )


def show(report: Report, found: dict[tuple[str, int], list[dict[str, float]]]) -> None:
    """Add the table and the plot."""
    lines: dict[str, list[tuple[float, float]]] = {}
    cells = []
    for name in dict.fromkeys(name for name, _ in found):
        for size in SIZES:
            samples = found.get((name, size))
            if samples:
                medians = {key: median(sample[key] for sample in samples) for key in samples[0]}
                lines.setdefault(name, []).append((size, medians["us"]))
                times = [figure(medians[key]) for key in ("submit_us", "complete_us", "us")]
                cells.append((name, f"{size:,}", *times, figure(medians["bytes"])))
    columns = ("contender", "queued", "us to submit", "us to complete", "us together", "bytes of the host")
    report.table("One request of so many queued", columns, cells)
    report.plot("cost", "Cost of a request, submission to completion", "queued", "us", lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--host"]:
        print(json.dumps(host(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
