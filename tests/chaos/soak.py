"""A soak: pools at full speed with one kill a second, watched for anything that grows.

Modes take turns (small calls, sessions, large payloads); one turn through all of them is a cycle, after which
everything rests and is measured.
"""

from __future__ import annotations

import csv
import gc
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from snakepit import JavaScriptAdapter, PoolConfig, PythonAdapter, SnakepitExecutor
from snakepit.errors import SessionLost, WorkerDied

import gates
from .signals import send
from .trends import Check, Cycle, Histogram, check_cycles
from .workers import soak_calls
from leaks import wait_until

__all__ = ("MODES", "PLANTS", "Soak")

MODES = ("small calls", "sessions", "large payloads")
PLANTS = ("memory", "objects", "fds", "threads", "latency")
WORKERS = 2
LARGE = bytes(range(256)) * 1024
REST_S = 30.0
"""How long everything may take to come to rest: full pools, no request; arbitrary."""

_FOLDER = Path(__file__).resolve().parent / "workers"


class Caller:
    """One thread that calls one pool as fast as it can, one call at a time."""

    def __init__(self, soak: Soak, kind: str, pool: SnakepitExecutor, number: int) -> None:
        self._soak = soak
        self._kind = kind
        self._pool = pool
        self._session = pool.session(f"session-{number}")
        self.parked = threading.Event()
        self.errors: Counter[str] = Counter()
        self.histograms = {mode: Histogram() for mode in MODES}
        self.second = Histogram()
        self.thread = threading.Thread(target=self._run, name=f"caller-{kind}-{number}", daemon=True)

    def _run(self) -> None:
        soak = self._soak
        calls: dict[str, Callable[[], Any]] = {
            "small calls": self._small,
            "sessions": self._in_session,
            "large payloads": self._large,
        }
        while not soak.over.is_set():
            if not soak.go.is_set():
                self.parked.set()
                soak.go.wait()
                self.parked.clear()
                continue
            mode = soak.mode
            began = time.perf_counter()
            if soak.planted_s:
                soak.over.wait(soak.planted_s)
            try:
                calls[mode]()
            except (WorkerDied, SessionLost) as error:
                self.errors[type(error).__name__] += 1
            except BaseException as error:
                self.errors[f"unexpected: {error!r:.200}"] += 1
            else:
                took_s = time.perf_counter() - began
                self.histograms[mode].add(took_s)
                self.second.add(took_s)

    def _small(self) -> None:
        if self._kind == "callables":
            assert self._pool.execute(soak_calls.give, 7) == 7
        else:
            assert self._pool.execute("give", {"value": 7}) == 7

    def _in_session(self) -> None:
        if self._kind == "callables":
            assert self._session.execute(soak_calls.count) > 0
        else:
            assert self._session.execute("count") > 0

    def _large(self) -> None:
        if self._kind == "callables":
            assert self._pool.execute(soak_calls.give, LARGE) == LARGE
        else:
            assert self._pool.execute("give", {"value": LARGE}) == LARGE


class Soak:
    """One run.

    Args:
        seed: Decides which worker is killed when.
        seconds: In all.
        out: Folder of the CSV and the JSON.
        plants: Names of ``PLANTS``: leaks in this process, which the checks must find.
        callers: Threads a pool.
    """

    def __init__(self, seed: int, seconds: float, out: Path, plants: tuple[str, ...] = (), callers: int = 3) -> None:
        self.seed = seed
        self.seconds = seconds
        # Whole minutes where there is time for some; the shortest run has six cycles.
        self.cycle_s = 60.0 if seconds >= 600 else max(1.5, seconds / 8)
        self.go, self.over = threading.Event(), threading.Event()
        self.mode = MODES[0]
        self.planted_s = 0.0
        self.cycles: list[Cycle] = []
        self.errors: Counter[str] = Counter()
        self._out = out
        self._plants = plants
        self._planted: list[Any] = []
        self._planted_threads: list[threading.Thread] = []
        self._kills = 0
        self._killed: set[int] = set()
        self._rng = random.Random(f"{seed}-soak")
        config = PoolConfig(shutdown_grace_s=0.5, kill_grace_s=0.5, restart_backoff_s=0.01)
        self._pools = {
            "python": SnakepitExecutor(
                PythonAdapter(_FOLDER / "soak_handlers.py", env={"PYTHONPATH": gates.DIRECTORY}),
                WORKERS,
                config=config,
            ),
            "node": SnakepitExecutor(JavaScriptAdapter(_FOLDER / "soak_handlers.cjs"), WORKERS, config=config),
            "callables": SnakepitExecutor(WORKERS, config=attrs.evolve(config, min_workers=WORKERS)),
        }
        self._callers = [
            Caller(self, kind, pool, number) for kind, pool in self._pools.items() for number in range(callers)
        ]

    def run(self) -> list[Check]:
        """Run, write the CSV, and return the judged figures."""
        self._out.mkdir(parents=True, exist_ok=True)
        gc.collect()
        try:
            with (self._out / f"soak-{self.seed}.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(("second", "mode", "calls", "p50_ms", "p99_ms", "rss_mb", "fds", "threads", "blocks"))
                for caller in self._callers:
                    caller.thread.start()
                began = time.monotonic()
                while time.monotonic() - began < self.seconds - self.cycle_s / 2 or len(self.cycles) < 5:
                    self._cycle(began, rows)
                    file.flush()
        finally:
            self._end()
        return self.judge()

    def _cycle(self, began: float, rows: Any) -> None:
        kills, loaded = self._kills, time.monotonic()
        for caller in self._callers:
            caller.histograms = {mode: Histogram() for mode in MODES}
        for mode in MODES:
            self.mode = mode
            self.go.set()
            until = time.monotonic() + self.cycle_s / len(MODES)
            while (left := until - time.monotonic()) > 0.01:
                self.over.wait(min(left, 1.0))
                rows.writerow(self._second(time.monotonic() - began))
                self._kill_one()
                self._plant()
        seconds = time.monotonic() - loaded
        self._rest()
        merged = {mode: self._merged([caller.histograms[mode] for caller in self._callers]) for mode in MODES}
        self.cycles.append(
            Cycle(
                at_s=time.monotonic() - began,
                seconds=seconds,
                calls=sum(histogram.count for histogram in merged.values()),
                kills=self._kills - kills,
                p99_s={mode: histogram.quantile(0.99) for mode, histogram in merged.items()},
                rss_mb=_rss_mb(),
                fds=len(os.listdir("/proc/self/fd")),
                threads=threading.active_count(),
                blocks=sys.getallocatedblocks(),
                objects=len(gc.get_objects()),
            )
        )

    def _rest(self) -> None:
        """Let the callers pause and the pools come back to full size."""
        self.go.clear()
        for caller in self._callers:
            assert caller.parked.wait(REST_S), f"{caller.thread.name} does not pause"
        for pool in self._pools.values():
            pool.wait_ready(REST_S, workers=WORKERS)
            wait_until(lambda pool=pool: self._is_full(pool), REST_S, "a full pool")  # type: ignore[misc]
        self._killed.clear()
        gc.collect()

    def _is_full(self, pool: SnakepitExecutor) -> bool:
        # RACE: 1. a worker is killed, 2. the pool is looked at, 3. its exit is seen: until then the dead one idles.
        infos = pool.workers()
        return ["idle"] * WORKERS == [info.state for info in infos] and self._killed.isdisjoint(
            info.pid for info in infos
        )

    @staticmethod
    def _merged(histograms: list[Histogram]) -> Histogram:
        merged = Histogram()
        for histogram in histograms:
            merged.count += histogram.count
            merged._buckets = [a + b for a, b in zip(merged._buckets, histogram._buckets, strict=True)]
        return merged

    def _second(self, at_s: float) -> tuple[Any, ...]:
        histograms = []
        for caller in self._callers:
            histograms.append(caller.second)
            caller.second = Histogram()
        merged = self._merged(histograms)
        fds = len(os.listdir("/proc/self/fd"))
        times = (f"{merged.quantile(share) * 1e3:.3f}" for share in (0.5, 0.99))
        threads, blocks = threading.active_count(), sys.getallocatedblocks()
        return (f"{at_s:.1f}", self.mode, merged.count, *times, f"{_rss_mb():.2f}", fds, threads, blocks)

    def _kill_one(self) -> None:
        pool = self._rng.choice(list(self._pools.values()))
        choice = self._rng.random()
        # One that has served: the death of one that never did is a failed start, and five in a row break a pool.
        workers = [info for info in pool.workers() if info.requests]
        if workers:
            pid = workers[int(choice * len(workers))].pid
            if pid is not None and send(pid, signal.SIGKILL):
                self._kills += 1
                self._killed.add(pid)

    def _plant(self) -> None:
        """Leak what was asked for."""
        if "memory" in self._plants:
            # Several times what a test process gives and takes by itself in a short cycle.
            self._planted.append(bytearray(b"x") * (32 << 20))
        if "objects" in self._plants:
            self._planted.append([[] for _ in range(5000)])
        if "fds" in self._plants:
            self._planted.append(os.open(os.devnull, os.O_RDONLY))
        if "threads" in self._plants:
            thread = threading.Thread(target=self.over.wait, name="planted", daemon=True)
            thread.start()
            self._planted_threads.append(thread)
        if "latency" in self._plants:
            self.planted_s += 0.02

    def _end(self) -> None:
        self.over.set()
        self.go.set()
        for caller in self._callers:
            if caller.thread.ident is not None:
                caller.thread.join(REST_S)
            self.errors += caller.errors
        for pool in self._pools.values():
            pool.shutdown()
        for thread in self._planted_threads:
            thread.join()
        for planted in self._planted:
            if isinstance(planted, int):
                os.close(planted)

    def judge(self) -> list[Check]:
        """Return the judged figures."""
        checks = check_cycles(self.cycles)
        unexpected = {name: count for name, count in self.errors.items() if name.startswith("unexpected")}
        checks.append(Check("unexpected errors", str(unexpected or 0), "0", not unexpected))
        return checks

    def table(self, checks: list[Check]) -> str:
        """Return the final table."""
        lines = [f"soak, seed {self.seed}, {self.seconds:.0f} s, cycles of {self.cycle_s:.0f} s, {self._kills} kills"]
        lines += [f"  calls that a kill has cost: {dict(self.errors)}"]
        for cycle in self.cycles:
            p99 = ", ".join(f"{mode} {value * 1e3:.2f}" for mode, value in cycle.p99_s.items())
            lines.append(
                f"  {cycle.at_s:7.1f} s {cycle.calls:9} calls, p99 ms: {p99}; {cycle.rss_mb:.1f} MB,"
                f" {cycle.fds} fds, {cycle.threads} threads, {cycle.blocks} blocks, {cycle.objects} objects"
            )
        lines += [f"  {'ok  ' if c.good else 'FAIL'} {c.name:<40}{c.figure}   (bound: {c.bound})" for c in checks]
        return "\n".join(lines)

    def write(self, checks: list[Check]) -> Path:
        """Write everything as JSON and return its path."""
        path = self._out / f"soak-{self.seed}.json"
        content = {
            "seed": self.seed,
            "seconds": self.seconds,
            "kills": self._kills,
            "errors": self.errors,
            "cycles": [attrs.asdict(cycle) for cycle in self.cycles],
            "checks": [attrs.asdict(check) for check in checks],
        }
        path.write_text(json.dumps(content, indent=1))
        return path


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
