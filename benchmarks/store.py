"""How many operations a second does the session store do, in memory and in a SQLite file?

python benchmarks/store.py [--quick] [--json FILE] [--operations 4000] [--rounds 5] [--sessions 1000]

One thread; 1,000 sessions with 100 bytes of data each.  The mix is four reads to one update.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from support import loads
from support.results import Report, figure, median, options, percentile

from snakepit.sessions import SessionStore, SQLiteBackend

GOALS = {"memory": 300_000, "SQLite": 10_000}
DATA = {"name": "Ada", "visits": 0, "basket": ["one", "two", "three"], "note": "x" * 40}


class Operations:
    """One kind of operation, again and again.

    Args:
        run: Does it with one session.
        ids: The sessions.
    """

    def __init__(self, run: Callable[[str], object], ids: list[str]) -> None:
        self._run, self._ids = run, ids
        self.p99: list[float] = []

    def round(self, count: int) -> float:
        """Return the operations a second of one round."""
        chosen = random.Random(count).choices(self._ids, k=count)
        clock, run = time.perf_counter, self._run
        begin = clock()
        for session_id in chosen:
            run(session_id)
        rate = count / (clock() - begin)
        # Apart from the rate: reading the clock twice an operation would cost some of it.
        times = []
        for session_id in chosen[: max(200, count // 4)]:
            begin = clock()
            run(session_id)
            times.append(clock() - begin)
        self.p99.append(percentile(times, 0.99))
        return rate


class Visits:
    """Counts in the store and beside it, so that no update can be lost unseen."""

    def __init__(self, store: SessionStore, ids: list[str]) -> None:
        self._store, self._ids = store, ids
        self._numbers = iter(range(1 << 60))
        self._made = 0

    def update(self, session_id: str) -> None:
        """Count one visit."""
        self._store.update(session_id, self._count)
        self._made += 1

    def mixed(self, session_id: str) -> None:
        """Count every fifth visit, and read the other sessions."""
        if next(self._numbers) % 5 == 0:
            self.update(session_id)
        else:
            self.read(session_id)

    def read(self, session_id: str) -> None:
        """Read a session."""
        assert self._store.get(session_id).id == session_id

    @staticmethod
    def _count(data: dict[str, int]) -> None:
        data["visits"] += 1

    def check(self) -> None:
        """Assert that the store has counted as we have."""
        assert self._made == sum(self._store.get(session_id).data["visits"] for session_id in self._ids)


def main() -> None:
    """Measure and report."""
    given = options(__doc__, {"operations": 4000, "rounds": 5, "sessions": 1000}, {"operations": 1000, "rounds": 3})
    sample = f"{given.rounds} interleaved rounds of {given.operations:,} operations on {given.sessions:,} sessions"
    report = Report("store", sample, given)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        stores = {"memory": SessionStore(), "SQLite": SessionStore(SQLiteBackend(folder / "sessions.db"))}
        found: dict[str, Operations] = {}
        visits = []
        for name, store in stores.items():
            stack.callback(store.close)
            ids = [f"user-{number}" for number in range(given.sessions)]
            for session_id in ids:
                store.create(session_id)
                store.update(session_id, lambda _: DATA)
            counted = Visits(store, ids)
            visits.append(counted)
            for operation, run in (
                ("exists", store.exists),
                ("get", counted.read),
                ("update", counted.update),
                ("mix", counted.mixed),
            ):
                found[f"{name}, {operation}"] = Operations(run, ids)
        figures = loads.rounds(
            {
                # Durable writes wait for the disk: a tenth of them says as much.
                name: lambda name=name: found[name].round(given.operations // (10 if name == "SQLite, update" else 1))
                for name in found
            },
            given.rounds,
        )
        for counted in visits:
            counted.check()
    for name, goal in GOALS.items():
        for operation, what in (("get", "reads"), ("mix", "four reads to one update")):
            contender = f"{name}, {operation}"
            question = f"session store in {name}, {what}"
            key = f"{name.lower()}_{operation}"
            report.row(key, f"{question}, operations/s", figures[contender], ">=", goal, unit="/s")
            milliseconds = [seconds * 1e3 for seconds in found[contender].p99]
            report.row(f"{key}_p99", f"{question}, p99", milliseconds, "<=", 1, unit="ms")
    report.table(
        "Operations on one thread",
        ("store, operation", "operations/s", "us each", "p99 us"),
        [
            (name, f"{median(values):,.0f}", figure(1e6 / median(values)), figure(median(found[name].p99) * 1e6))
            for name, values in figures.items()
        ],
    )
    report.finish()


if __name__ == "__main__":
    main()
