"""One pool of a chaos run from its construction to its verdict."""

from __future__ import annotations

import gc
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from snakepit import (
    CallableAdapter,
    JavaScriptAdapter,
    PoolBroken,
    PoolConfig,
    PythonAdapter,
    QueueFull,
    SnakepitExecutor,
    WorkerStartError,
)

import gates
from .signals import processes_with
from .verdict import Finding, SessionBook, check_book, check_counters, check_sessions, read_log
from .watch import Book, new_rid
from .workers import calls

__all__ = ("ENDINGS", "KINDS", "Era", "draw_settings")

KINDS = ("python", "node", "callables")
ENDINGS = ("shutdown", "cancel", "timeout", "terminate", "kill", "interrupt", "no_wait", "drop")
END_LIMIT_S = 60.0
"""How long the end of a pool may take; far above every time-out that a run gives its calls."""
FULL_LIMIT_S = 30.0
"""How long a pool may take to come back to full size on a busy machine; arbitrary."""

_FOLDER = Path(__file__).resolve().parent / "workers"
_MARK = "CHAOS_ERA"


class _Marked:
    """Gives every worker the variables by which its run log and its process are found."""

    def environment(self, worker: Any) -> Mapping[str, str]:
        return self.marks  # type: ignore[attr-defined,no-any-return]


class _Python(_Marked, PythonAdapter):
    pass


class _Node(_Marked, JavaScriptAdapter):
    pass


class _Callables(_Marked, CallableAdapter):
    pass


def draw_settings(rng: random.Random) -> dict[str, Any]:
    """Return the settings of a pool, as the seed has it."""
    size = rng.choice((1, 2, 2, 3))
    least = rng.choice((None, None, 0, 1))
    config = PoolConfig(
        kill_grace_s=0.2,
        shutdown_grace_s=0.3,
        restart_backoff_s=0.01,
        restart_backoff_cap_s=0.2,
        # Starting workers are killed too; a spent budget is one of the things that may happen.
        restart_budget=rng.choice((3, 1000, 1000, 1000)),
        worker_init_timeout_s=8.0,
        health_check_interval_s=0.5,
        health_check_timeout_s=0.5,
        min_workers=least,
        worker_idle_timeout_s=rng.choice((None, 0.2)),
        max_requests_per_worker=rng.choice((None, None, 15, 200)),
        max_worker_age_s=rng.choice((None, 1.0)),
        session_drain_s=rng.choice((0.2, 1.0)),
        max_sessions=rng.choice((4, 10_000, 10_000)),
        max_queued_bytes=rng.choice((4096, 256 << 20, 256 << 20)),
    )
    return {
        "max_workers": size,
        "max_queue_size": rng.choice((None, 5, 50)),
        "queue_full": rng.choice(("raise", "block")),
        "queue_timeout": rng.choice((None, None, 1.0)),
        # None would let a stopped busy worker keep its call for ever, as documented.
        "timeout": rng.choice((1.0, 2.0)),
        "config": config,
    }


class Era:
    """A pool, its callers' account, its run log.

    Args:
        kind: One of ``KINDS``.
        number: No other era of the run has it.
        settings: For the executor.
        directory: For the run log.
        breakable: It may spend its restart budget; None: as the settings say.
    """

    def __init__(
        self, kind: str, number: int, settings: dict[str, Any], directory: Path, *, breakable: bool | None = None
    ) -> None:
        self.kind = kind
        self.name = f"{kind}-{number}"
        self.settings = settings
        self.book = Book()
        self.sessions: dict[str, SessionBook] = {}
        self.findings: list[Finding] = []
        self.breakable = settings["config"].restart_budget < 100 if breakable is None else breakable
        self._log = directory / f"{self.name}.log"
        self._mark = f"{_MARK}={os.getpid()}-{self.name}"
        # LOCK: protects `_users` and `_ending`; never held while calling out.
        self._lock = threading.Condition()
        self._users = 0
        self._ending = False
        self.session_lock = threading.Lock()
        self._epochs: dict[str, int] = {}
        adapter: Any
        if kind == "python":
            adapter = _Python(_FOLDER / "handlers.py", env={"PYTHONPATH": gates.DIRECTORY})
        elif kind == "node":
            adapter = _Node(_FOLDER / "handlers.cjs")
        else:
            adapter = _Callables(output="log")
        adapter.marks = dict([self._mark.split("=", 1)], CHAOS_LOG=str(self._log))
        self._pool: SnakepitExecutor | None = SnakepitExecutor(adapter, name=self.name, **settings)
        self.manager = self._pool._manager
        self.ledger = self._pool._ledger
        self._intake = weakref.ref(self._pool._intake)
        self.book.follow(self.ledger)

    # Use --------------------------------------------------------------------------------------------

    @contextmanager
    def use(self) -> Iterator[SnakepitExecutor | None]:
        """Hold the pool; None when it is about to be dropped."""
        with self._lock:
            pool = None if self._ending else self._pool
            self._users += pool is not None
        try:
            yield pool
        finally:
            if pool is not None:
                del pool
                with self._lock:
                    self._users -= 1
                    self._lock.notify_all()

    def spoken(self, rid: str, how: str = "quick", arg: Any = None, what: str = "step") -> tuple[Any, ...]:
        """Return what to submit for a request."""
        if self.kind == "callables":
            return (getattr(calls, what), rid, how, arg)
        return (what, {"rid": rid, "how": how, "arg": arg})

    def bare(self) -> Any:
        """Return what to map over items of ``item``."""
        return calls.step if self.kind == "callables" else "step"

    def item(self, rid: str, how: str = "quick", arg: Any = None) -> Any:
        """Return one item of a map."""
        return rid if self.kind == "callables" else {"rid": rid, "how": how, "arg": arg}

    def session(self, number: int, rng: random.Random) -> SessionBook:
        """Return a session of this pool, drawn when it is first asked for; call with ``session_lock`` held."""
        session_id = f"s{number}"
        if session_id not in self.sessions:
            mode = rng.choice(("strict", "strict", "strict", "fail_fast", "hint"))
            steps = rng.choice((0, 0, 1, 3))
            self.sessions[session_id] = SessionBook(session_id, mode, steps, rng.random() < 0.1)
        return self.sessions[session_id]

    def setup(self, session: SessionBook) -> list[tuple[Any, ...]]:
        """Return the set-up of a session."""
        pinned = session.mode != "hint"
        if self.kind == "callables":
            return [(calls.settle_in, place, pinned) for place in range(session.steps)]
        return [("settle_in", {"place": place, "pinned": pinned}) for place in range(session.steps)]

    def epoch(self, session: SessionBook, *, ended: bool = False) -> int:
        """Return how often the session has been ended; with ``ended``, once more from now on."""
        self._epochs[session.session_id] = self._epochs.get(session.session_id, 0) + ended
        return self._epochs[session.session_id]

    # The end ----------------------------------------------------------------------------------------

    def end(self, how: str, full: bool) -> dict[str, Any]:
        """Shut the pool down in one of the ``ENDINGS``, and judge it; return its numbers."""
        pool = self._pool
        assert pool is not None
        if full and not self.breakable:
            self._expect_full_size(pool)
        if how == "drop":
            self._ending = True
        else:
            self._shut_down(pool, how)
        self._leave_to_others()
        if how == "drop":
            for _ in range(20):
                spoken = self.spoken(new_rid())
                with suppress(QueueFull, PoolBroken):
                    pool.submit(*spoken)
            # Nobody holds the executor any more, nor one of the futures.
            self._pool = None
        del pool
        if not self._is_over():
            held = [f"{type(holder).__name__} {holder!r:.200}" for holder in gc.get_referrers(self._intake())]
            self.findings.append(("hung", f"{self.name}: {how} did not end: {self.ledger.stats()}; held by {held}"))
            return self._numbers(how)
        self._judge()
        return self._numbers(how)

    def _is_over(self) -> bool:
        for _ in range(int(END_LIMIT_S)):
            # An exception that a caller kept in a local variable is a cycle, with a dropped executor in its frames.
            gc.collect()
            if self.manager.join(1.0):
                return True
        return False

    def _shut_down(self, pool: SnakepitExecutor, how: str) -> None:
        ends: dict[str, Callable[[], object]] = {
            "shutdown": pool.shutdown,
            "cancel": lambda: pool.shutdown(cancel_futures=True),
            "timeout": lambda: pool.shutdown(timeout=0.3),
            "terminate": pool.terminate_workers,
            "kill": pool.kill_workers,
            "interrupt": lambda: pool.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None),
            "no_wait": lambda: pool.shutdown(wait=False),
        }
        # On a thread of its own: what never returns must not take the run with it.
        thread = threading.Thread(target=ends[how], name=f"end of {self.name}", daemon=True)
        thread.start()
        thread.join(END_LIMIT_S)
        if thread.is_alive():
            self.findings.append(("hung", f"{self.name}: {how} did not return: {self.ledger.stats()}"))
        with self._lock:
            self._ending = True

    def _leave_to_others(self) -> None:
        """Wait until no caller holds the pool."""
        with self._lock:
            if not self._lock.wait_for(lambda: not self._users, END_LIMIT_S):
                stuck = f"{self.name}: {self._users} callers still wait: {self.ledger.stats()}"
                self.findings.append(("hung", stuck))

    def _expect_full_size(self, pool: SnakepitExecutor) -> None:
        size = self.settings["max_workers"]
        try:
            pool.wait_ready(FULL_LIMIT_S, workers=size)
        except (TimeoutError, WorkerStartError) as error:
            self.findings.append(("not_full", f"{self.name}: {error}"))

    def count_processes(self) -> None:
        """Look whether there are more processes than the pool may have."""
        alive = processes_with(self._mark)
        if len(alive) > self.settings["max_workers"]:
            self.findings.append(("oversize", f"{self.name}: {sorted(alive)} of {self.settings['max_workers']}"))

    def _judge(self) -> None:
        left = processes_with(self._mark)
        if left:
            self.findings.append(("children", f"{self.name}: {sorted(left)}"))
        runs = read_log(self._log.read_text().splitlines() if self._log.exists() else [])
        self.findings += check_book(self.book, runs)
        self.findings += check_counters(self.book, self.ledger.stats())
        self.findings += check_sessions(self.sessions.values(), runs)
        self.runs = len(runs)
        if not self.findings and self._log.exists():
            self._log.unlink()

    def _numbers(self, how: str) -> dict[str, Any]:
        return {"name": self.name, "end": how, "runs": getattr(self, "runs", 0), **attrs.asdict(self.ledger.stats())}
