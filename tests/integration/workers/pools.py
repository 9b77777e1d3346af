"""Short ways to the pools that the integration tests use."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from snakepit import CommandAdapter, PoolConfig, PythonAdapter, SnakepitExecutor, telemetry

import gates

FOLDER = Path(__file__).resolve().parent
HANDLERS = str(FOLDER / "handlers.py")
SABOTEUR = str(FOLDER / "saboteur.py")
LIMIT_S = 20.0
"""How long a test waits for what must happen; arbitrary, far above what it takes on a busy machine."""

QUICK = PoolConfig(kill_grace_s=0.3, shutdown_grace_s=0.3, restart_backoff_s=0.01)
"""Short graces, so that ending a stubborn worker does not take the tests' time."""


def config(**changes: Any) -> PoolConfig:
    """Return the quick settings with some changed."""
    return attrs.evolve(QUICK, **changes)


def adapter(**options: Any) -> PythonAdapter:
    """Return the adapter of the handlers file."""
    env = {"PYTHONPATH": gates.DIRECTORY, **options.pop("env", {})}
    return PythonAdapter(HANDLERS, env=env, **options)


def handler_pool(max_workers: int = 1, **options: Any) -> SnakepitExecutor:
    """Return a pool of workers with the handlers file's commands."""
    kind = options.pop("adapter", None) or adapter()
    options.setdefault("config", QUICK)
    return SnakepitExecutor(kind, max_workers, **options)


def saboteur(level: int = 1, env: Mapping[str, str] | None = None, **options: Any) -> CommandAdapter:
    """Return the adapter of the saboteur bridge."""
    return CommandAdapter([sys.executable, "-I", "-S", SABOTEUR], level=level, env=env or {}, **options)


def saboteur_pool(
    max_workers: int = 1, *, level: int = 1, env: Mapping[str, str] | None = None, **options: Any
) -> SnakepitExecutor:
    """Return a pool of saboteurs."""
    options.setdefault("config", QUICK)
    return SnakepitExecutor(saboteur(level, env), max_workers, **options)


def lines(path: str | os.PathLike[str]) -> list[str]:
    """Return the lines of a run log, oldest first; none when nobody wrote."""
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def balance(stats: Any) -> int:
    """Return what the counters of ended and pending requests add up to."""
    ended = stats.completed + stats.errors + stats.cancelled + stats.queue_timeouts + stats.command_timeouts
    return int(ended + stats.queued + stats.running)


@contextmanager
def manager_held(ex: SnakepitExecutor) -> Iterator[None]:
    """Hold the pool's own thread in the middle of a turn, after it has looked at the pipes."""
    held, let_go = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        held.set()
        assert let_go.wait(LIMIT_S)

    thread = threading.Thread(target=ex._manager.ask, args=(hold,))
    thread.start()
    assert held.wait(LIMIT_S)
    try:
        yield
    finally:
        let_go.set()
        thread.join(LIMIT_S)


Seen = list[tuple[str, dict[str, Any], dict[str, Any]]]


@contextmanager
def recorded(*events: str) -> Iterator[Seen]:
    """Collect (event, measurements, metadata) of the events named; all of them when none is."""
    seen: Seen = []
    names = events or tuple(telemetry.EVENTS)
    telemetry.attach_many("recorder", names, lambda *emission: seen.append(emission))  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        telemetry.detach("recorder")
