"""Runs the scripts, each in a process of its own, and reads what they have written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
ROOT = BENCHMARKS.parent

SCRIPTS = (
    "latency",
    "throughput",
    "maps",
    "payloads",
    "startup",
    "inference",
    "queued",
    "scale",
    "store",
    "breakeven",
    "recovery",
    "languages",
    "ray_actors",
)
"""In the order of the documentation."""

OPTIONAL = frozenset({"ray_actors"})
"""They have no results where what they need is not installed."""

LIMIT_S = 600.0
"""A script that takes longer than this hangs; the slowest takes a tenth, several times as much on a busy machine."""


def run(names: Iterable[str], folder: Path, quick: bool) -> list[str]:
    """Run scripts, and have their results written to ``folder/<name>.json``.

    Returns:
        The names of those that failed.
    """
    failed = []
    for name in names:
        file = folder / f"{name}.json"
        file.unlink(missing_ok=True)
        command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--json", str(file), *(["--quick"] if quick else [])]
        print(f"== {name}", flush=True)
        began, spent_s = time.monotonic(), processor_time_s()
        # A group of its own, so that a script that hangs leaves no pool behind.
        script = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
        succeeded = False
        try:
            succeeded = script.wait(LIMIT_S) == 0
        except subprocess.TimeoutExpired:
            print(f"{name} has taken {LIMIT_S:.0f} s and is ended")
        finally:
            if script.poll() is None:
                os.killpg(script.pid, signal.SIGKILL)
                script.wait()
        took = f"{time.monotonic() - began:.0f} s, {processor_time_s() - spent_s:.0f} s of processor time"
        print(f"== {name}: {'' if succeeded else 'FAILED after '}{took}\n", flush=True)
        if not succeeded:
            failed.append(name)
    return failed


def processor_time_s() -> float:
    """Return what the processes that have ended have used, those that they had started included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def read(folder: Path, names: Iterable[str] = SCRIPTS) -> dict[str, dict[str, Any]]:
    """Return the results that there are, by script."""
    found = {}
    for name in names:
        file = folder / f"{name}.json"
        if file.exists():
            found[name] = json.loads(file.read_text(encoding="utf-8"))
    return found
