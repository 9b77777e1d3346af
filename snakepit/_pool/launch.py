"""What it takes to start one worker of a pool: its command line, environment and first message.

``spec_for`` runs on the watchdog's thread, the rest on the manager's; the adapter is only read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .._bridges import bridge_path
from .._core.model import Worker
from .._limits import check_umask, exec_chain, told
from .._programs import check_variables, host_variables, worker_variables
from .._supervision.spawn import SpawnSpec
from ..adapters import Adapter, WorkerSpec

__all__ = ("Launcher",)

_IMPORT_BRIDGE = (
    "import sys; del sys.argv[0]; sys.path[:sys.path[:1] == ['']] = [sys.argv[0].rpartition('/')[0]];"
    " from snakepit_bridge import main; sys.exit(main(sys.argv[1:]))"
)
"""Runs the script that follows as Python would, but from its bytecode: a script is compiled anew at each start, and
compiling the bridge takes as long as starting two interpreters (measured: 24 of 39 ms).  The folder takes the place
of the current directory, where there is that, and `main` moves it to the end."""


class Launcher:
    """Makes the start of each worker from the pool's adapter.

    The program and the limits are those that the adapter has when the pool is made.

    Args:
        adapter: What the workers are.
        pool: The pool's name.
        preparation: Builds the first pickle of a callable worker, or None.

    Raises:
        TypeError, ValueError: A bad attribute of the adapter; raised here.
        WorkerStartError: The program, the script, or a program that limits it is not there; raised here.
    """

    def __init__(self, adapter: Adapter, pool: str, preparation: Any = None) -> None:
        kind = type(adapter).__name__
        self._adapter = adapter
        self._pool = pool
        self._preparation = preparation
        self._argv = adapter.argv()
        bridge = str(bridge_path("python/snakepit_bridge.py"))
        self._script = (self._argv[0], bridge) if self._argv[1:2] == (bridge,) else None
        self._chain = exec_chain(kind, adapter.rlimits, adapter.nice)
        self._umask = check_umask(f"{kind}: umask", adapter.umask)
        self._limits = told(kind, adapter.rlimits)
        self._command_lines: dict[str, tuple[str, ...]] = {}
        self._first_pickles: dict[str, bytes] = {}

    def spec_for(self, worker: Worker) -> Callable[[], tuple[SpawnSpec, Callable[[], None]]]:
        """Return a function, for the watchdog's thread, that makes the spec and what to release after the spawn."""
        described = WorkerSpec(worker.worker_id, worker.slot.index, worker.slot.incarnation, self._pool)

        def make() -> tuple[SpawnSpec, Callable[[], None]]:
            adapter = self._adapter
            env = worker_variables(
                host_variables(adapter.inherit_env),
                adapter.threads,
                adapter.env or {},
                _own_variables(adapter, described),
            )
            argv = _wrapped(adapter, self._argv, described)
            cwd = None if adapter.cwd is None else os.fspath(adapter.cwd)
            # Both are posted before Spawned by the same thread, so the manager finds them.
            self._command_lines[described.worker_id] = (*self._chain, *argv)
            pass_fds: tuple[int, ...] = ()
            release: Callable[[], None] = _nothing
            if self._preparation is not None:
                self._first_pickles[described.worker_id], pass_fds = self._preparation.build(cwd)
                release = self._preparation.release
            spec = SpawnSpec(
                self.imported(argv),
                env,
                cwd,
                adapter.level,
                adapter.output,
                pass_fds,
                chain=self._chain,
                umask=self._umask,
            )
            return spec, release

        return make

    def imported(self, argv: tuple[str, ...]) -> tuple[str, ...]:
        """Return the command line that does what ``argv`` does, with the Python bridge imported and not run."""
        for place in range(1, len(argv)):
            if argv[place - 1 : place + 1] == self._script:
                return (*argv[:place], "-c", _IMPORT_BRIDGE, *argv[place:])
        return argv

    def started_with(self, worker_id: str) -> tuple[tuple[str, ...], str]:
        """Take the worker's command line, limits and wrapper included, and its resource limits as text."""
        return self._command_lines.pop(worker_id, self._argv), self._limits

    def first_pickle(self, worker_id: str) -> bytes | None:
        """Take the worker's preparation, or None where there is none."""
        return self._first_pickles.pop(worker_id, None)


def _nothing() -> None:
    return None


def _own_variables(adapter: Adapter, described: WorkerSpec) -> Mapping[str, str]:
    """Return what the adapter's ``environment`` adds for one worker; numbers become text."""
    where = f"{type(adapter).__name__}.environment()"
    try:
        given = {str(name): str(value) for name, value in adapter.environment(described).items()}
    except Exception as error:
        raise RuntimeError(f"{where} raised {type(error).__name__}: {error}") from error
    check_variables(where, given)
    return given


def _wrapped(adapter: Adapter, argv: tuple[str, ...], described: WorkerSpec) -> tuple[str, ...]:
    """Return the command line as the adapter's ``wrap`` wants it; a word may be a secret, so no message shows one."""
    where = f"{type(adapter).__name__}.wrap()"
    try:
        given = adapter.wrap(argv, described)
    except Exception as error:
        raise RuntimeError(f"{where} raised {type(error).__name__}: {error}") from error
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
        raise TypeError(f"{where} must return a sequence of words, e.g. ['bwrap', *argv], not {type(given).__name__}")
    words = []
    for place, word in enumerate(given):
        if not isinstance(word, (str, os.PathLike)):
            raise TypeError(f"{where}: word {place} must be a str or a path, not {type(word).__name__}")
        words.append(os.fspath(word))
        if "\0" in words[-1]:
            raise ValueError(f"{where}: no process can be given word {place}: it has a NUL character")
    if not words or not words[0]:
        raise ValueError(f"{where} returned no program; return at least argv itself")
    return tuple(words)
