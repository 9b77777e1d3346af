"""Runs the suites again and again, in their own order and in random ones, and says what failed: ``make repeat``.

Each run is a process of its own with a fresh cache; ``--jobs`` of them run side by side, which is a load as well.
The last lines are a table; the exit status is 1 if any run failed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LIMIT_S = 3600.0
"""How long one run may take; arbitrary, many times what it takes on a quiet machine."""


def run(number: int, seed: int | None, folder: Path, arguments: list[str]) -> tuple[int, list[str], str, float]:
    """Run the suites once and return (exit status, names of what failed, last line, seconds)."""
    order = ["-p", "no:randomly"] if seed is None else ["-p", "randomly", f"--randomly-seed={seed}"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *order, *arguments]
    began = time.monotonic()
    with (folder / f"run-{number:02}.log").open("w+") as log:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False
        )
        log.seek(0)
        text = log.read()
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)
    last = text.strip().splitlines()[-1] if text.strip() else ""
    return done.returncode, failed, last, time.monotonic() - began


def main() -> int:
    """Run everything and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ordered", type=int, default=20, help="runs in the suites' own order")
    parser.add_argument("--random", type=int, default=5, help="runs in a random order")
    parser.add_argument("--first", type=int, default=1, help="number of the run to go on with, of the same seed")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="runs side by side")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--out", type=Path, default=Path("build/repeat"), help="folder for the logs")
    options, arguments = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = random.Random(options.seed)
    orders = [None] * options.ordered + [seeds.randrange(1 << 32) for _ in range(options.random)]
    numbered = list(enumerate(orders, 1))[options.first - 1 :]
    print(f"seed {options.seed}, {len(numbered)} runs, {options.jobs} side by side, logs in {options.out}", flush=True)
    failures: Counter[str] = Counter()
    bad = 0
    with ThreadPoolExecutor(options.jobs) as threads:
        runs = threads.map(lambda item: run(item[0], item[1], options.out, arguments), numbered)
        for (number, seed), (status, failed, last, took_s) in zip(numbered, runs, strict=True):
            order = "own order" if seed is None else f"random order {seed}"
            print(f"run {number:2} ({order}): exit {status}, {took_s:.0f} s, {last}", flush=True)
            failures.update(failed)
            bad += status != 0
    print(f"\n{len(numbered)} runs, {bad} with a failure")
    for name, count in failures.most_common():
        print(f"{count:4} x {name}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
