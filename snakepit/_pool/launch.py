"""What it takes to start one worker of a pool: its command line, environment and first message.

``spec_for`` runs on the watchdog's thread, the rest on the manager's; the adapter is only read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from .._core.model import Worker
from .._programs import check_variables
from .._supervision.spawn import SpawnSpec
from ..adapters import Adapter, WorkerSpec

__all__ = ("Launcher",)


class Launcher:
    """Makes the start of each worker from the pool's adapter.

    Args:
        adapter: What the workers are.
        pool: The pool's name.
        preparation: Builds the first pickle of a callable worker, or None.
    """

    def __init__(self, adapter: Adapter, pool: str, preparation: Any = None) -> None:
        self._adapter = adapter
        self._pool = pool
        self._preparation = preparation
        self.argv = adapter.argv()
        self._first_pickles: dict[str, bytes] = {}

    def spec_for(self, worker: Worker) -> Callable[[], tuple[SpawnSpec, Callable[[], None]]]:
        """Return a function, for the watchdog's thread, that makes the spec and what to release after the spawn."""
        described = WorkerSpec(worker.worker_id, worker.slot.index, worker.slot.incarnation, self._pool)

        def make() -> tuple[SpawnSpec, Callable[[], None]]:
            adapter = self._adapter
            env = {
                **(os.environ if adapter.inherit_env else {}),
                **(adapter.env or {}),
                **_own_variables(adapter, described),
            }
            pass_fds: tuple[int, ...] = ()
            release: Callable[[], None] = _nothing
            if self._preparation is not None:
                # Posted before Spawned by the same thread, so the manager finds it.
                self._first_pickles[described.worker_id], pass_fds = self._preparation.build()
                release = self._preparation.release
            cwd = None if adapter.cwd is None else os.fspath(adapter.cwd)
            return SpawnSpec(self.argv, env, cwd, adapter.level, adapter.output, pass_fds), release

        return make

    def first_pickle(self, worker_id: str) -> bytes | None:
        """Take the worker's preparation, or None where there is none."""
        return self._first_pickles.pop(worker_id, None)


def _nothing() -> None:
    return None


def _own_variables(adapter: Adapter, described: WorkerSpec) -> dict[str, str]:
    """Return what the adapter's ``environment`` adds for one worker; numbers become text."""
    where = f"{type(adapter).__name__}.environment()"
    try:
        given = {str(name): str(value) for name, value in adapter.environment(described).items()}
    except Exception as error:
        raise RuntimeError(f"{where} raised {type(error).__name__}: {error}") from error
    check_variables(where, given)
    return given
