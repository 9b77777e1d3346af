"""A chaos run: pools that come and go, callers that use them, a thread that breaks them, and the verdict.

What is done and what is broken comes from the seed; how it interleaves is the system's affair.
"""

from __future__ import annotations

import json
import logging
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from .callers import Caller
from .era import ENDINGS, KINDS, Era, draw_settings
from .faults import Breaker
from .verdict import ROWS, Finding
from .watch import watched_futures
from leaks import assert_no_leaks, take_snapshot

__all__ = ("Chaos", "Outcome")

_SHOWN = 40
"""Discrepancies of one kind that are written down in full; arbitrary."""
_END_S = 150.0
"""How long the last pools and callers may take; above every bound within."""


class _Alarm(logging.Handler):
    """Collects what the product reports as an error of its own."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # The workers' own stderr and log lines come under this name.
        if record.name != "snakepit.worker":
            self.lines.append(self.format(record))


class Outcome:
    """What a run showed.

    Attributes:
        findings: Every discrepancy.
        numbers: What was done, in totals.
        eras: The numbers of each pool.
    """

    def __init__(self, seed: int, seconds: float) -> None:
        self.seed = seed
        self.seconds = seconds
        self.findings: list[Finding] = []
        self.numbers: dict[str, Any] = {}
        self.eras: list[dict[str, Any]] = []

    def rows(self) -> list[tuple[str, int]]:
        """Return (what must not be, how often it was) for each kind of discrepancy."""
        found = Counter(row for row, _ in self.findings)
        return [(text, found[row]) for row, text in ROWS.items()]

    def table(self) -> str:
        """Return the final table."""
        lines = [f"chaos, seed {self.seed}, {self.seconds:.0f} s"]
        lines += [f"  {name:<62}{value}" for name, value in self.numbers.items() if not isinstance(value, dict)]
        for title in ("faults", "calls ended with"):
            lines.append(f"  {title}:")
            lines += [f"    {name:<60}{value}" for name, value in sorted(self.numbers[title].items())]
        lines.append("  must be 0:")
        lines += [f"    {text:<60}{count}" for text, count in self.rows()]
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shown: dict[str, list[str]] = {row: [] for row in ROWS}
        for row, text in self.findings:
            if len(shown[row]) < _SHOWN:
                shown[row].append(text)
        content = {
            "seed": self.seed,
            "seconds": self.seconds,
            "numbers": self.numbers,
            "must be 0": dict(self.rows()),
            "findings": shown,
            "pools": self.eras,
        }
        path.write_text(json.dumps(content, indent=1))


class Chaos:
    """One run.

    Args:
        seed: Decides what is done and what is broken.
        seconds: How long pools are used; their ends come on top.
        callers: Threads that call.
        fault_pause_s: Mean time between two faults.
        pool_s: Shortest and longest life of a pool.
    """

    def __init__(
        self,
        seed: int,
        seconds: float,
        *,
        callers: int = 16,
        fault_pause_s: float = 0.12,
        pool_s: tuple[float, float] = (2.0, 8.0),
    ) -> None:
        self.seed = seed
        self.seconds = seconds
        self._pool_s = pool_s
        self._stop = threading.Event()
        self._idle = threading.Event()
        # LOCK: protects `_present` and `_outcome.eras`; never held while calling out.
        self._lock = threading.Lock()
        self._present: dict[str, Era] = {}
        self._outcome = Outcome(seed, seconds)
        self._callers = [Caller(n, seed, self._eras, self._idle, self._stop) for n in range(callers)]
        self._breaker = Breaker(seed, fault_pause_s, self._eras, self._stop)
        self._ends: Counter[str] = Counter()

    def _eras(self) -> list[Era]:
        with self._lock:
            return [self._present[kind] for kind in KINDS if kind in self._present]

    def run(self) -> Outcome:
        """Run, and return what was found."""
        outcome = self._outcome
        alarm = _Alarm()
        logger = logging.getLogger("snakepit")
        logger.addHandler(alarm)
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder, watched_futures():
            self._warm_up(Path(folder))
            before = take_snapshot()
            # A thread for each kind: pools of all kinds live side by side, each with its own times.
            keepers = [
                threading.Thread(target=self._keep, args=(kind, Path(folder)), name=f"pools-{kind}", daemon=True)
                for kind in KINDS
            ]
            threads = [*keepers, *(caller.thread for caller in self._callers), self._breaker.thread]
            threads.append(threading.Thread(target=self._watch, name="watch", daemon=True))
            for thread in threads:
                thread.start()
            self._phases()
            self._stop.set()
            deadline = time.monotonic() + _END_S
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    outcome.findings.append(("hung", f"thread {thread.name!r}"))
            self._look_for_leaks(before)
        logger.removeHandler(alarm)
        outcome.findings += [("internal", line) for line in alarm.lines]
        self._sum_up()
        return outcome

    def _warm_up(self, folder: Path) -> None:
        """Make once what lives as long as the host, so that it counts as no leak."""
        for kind in KINDS:
            era = Era(kind, 0, {"max_workers": 1}, folder, breakable=False)
            with era.use() as pool:
                assert pool is not None
                pool.wait_ready(30)
            del pool
            era.end("shutdown", full=False)

    def _phases(self) -> None:
        """Take turns between load and idleness until the time is over."""
        rng = random.Random(f"{self.seed}-phases")
        end = time.monotonic() + self.seconds
        while (left := end - time.monotonic()) > 0:
            self._stop.wait(min(left, rng.uniform(1.0, 5.0)))
            self._idle.set()
            self._stop.wait(min(max(0.0, end - time.monotonic()), rng.uniform(0.2, 1.0)))
            self._idle.clear()

    def _keep(self, kind: str, folder: Path) -> None:
        """Open pools of one kind, one after another, and judge each after its end."""
        rng = random.Random(f"{self.seed}-{kind}")
        number = 0
        while not self._stop.is_set():
            number += 1
            settings, how, full = draw_settings(rng), rng.choice(ENDINGS), rng.random() < 0.3
            life_s = rng.uniform(*self._pool_s)
            era = Era(kind, number, settings, folder)
            with self._lock:
                self._present[kind] = era
            self._stop.wait(life_s)
            if how == "drop":
                with self._lock:
                    del self._present[kind]
            try:
                numbers = era.end(how, full)
            except BaseException as error:
                era.findings.append(("internal", f"{era.name}: its end raised {error!r}"))
                numbers = {"name": era.name}
            with self._lock:
                self._present.pop(kind, None)
                self._outcome.eras.append(numbers)
                self._outcome.findings += era.findings
                self._ends[how] += 1
            del era

    def _watch(self) -> None:
        """Count processes now and then."""
        rng = random.Random(f"{self.seed}-watch")
        while not self._stop.wait(0.3):
            eras = self._eras()
            if eras:
                rng.choice(eras).count_processes()

    def _look_for_leaks(self, before: Any) -> None:
        try:
            assert_no_leaks(before, 10.0)
        except AssertionError as error:
            for line in str(error).splitlines()[1:]:
                kind = line.split()[0]
                row = {"process": "children", "thread": "threads", "fd": "fds"}[kind]
                self._outcome.findings.append((row, line.strip()))

    def _sum_up(self) -> None:
        outcome = self._outcome
        calls: Counter[str] = Counter()
        for caller in self._callers:
            calls += caller.done
            outcome.findings += caller.findings
        outcome.findings += [("internal", f"fault: {text}") for text in self._breaker.errors]
        totals: Counter[str] = Counter()
        for numbers in outcome.eras:
            totals += Counter({name: value for name, value in numbers.items() if isinstance(value, int)})
        outcome.numbers = {
            "pools": len(outcome.eras),
            "requests accepted": totals["requests"],
            "runs written down by workers": totals["runs"],
            **{name: totals[name] for name in ("completed", "errors", "cancelled", "queue_timeouts")},
            **{name: totals[name] for name in ("command_timeouts", "pool_saturated", "restarts", "recycled")},
            "faults": dict(self._breaker.done),
            "ends of pools": dict(self._ends),
            "calls ended with": dict(calls),
        }
