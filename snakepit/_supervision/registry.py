"""The run registry: this host's file of its workers, by which a later host ends what this one cannot.

Called on the watchdogs' threads.  One `REGISTRY` per host process owns the file (`_supervision/run_files`) and its
lock; `_supervision/orphans` reads those of dead hosts, once, before the first spawn.

The guardian is the first line.  Where it died together with the host, nobody is left who knows the workers but
this file.  So it is never in the way: what cannot be written is told once on the logger ``snakepit.registry``, and
the pools work as without it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from typing import TYPE_CHECKING

from .held_fds import drop

# `run_files` and `orphans` are imported on the watchdog's thread, so that `import snakepit` does not pay for them.
if TYPE_CHECKING:
    from .run_files import HostId

__all__ = ("REGISTRY", "Registry")

COMPACT_LINES = 512
"""Lines, beyond those of the live workers, after which the file is written anew; arbitrary, about 20 KiB."""

_logger = logging.getLogger("snakepit.registry")


class Registry:
    """The host's own file: made with the first pool that spawns, gone with the last that leaves nothing behind.

    THREAD: any watchdog's.  Nothing here raises; nothing waits, but for the sweep before the first spawn, about 1 s
    at most and that only where there are orphans.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        # LOCK: protects every attribute; not nested; held while the file is written, not during the sweep.
        self._lock = threading.Lock()
        self._runs: set[str] = set()
        # INVARIANT: what the file says, once it has been written: {token: (pid, start), None during the spawn}.
        self._rows: dict[str, tuple[int, int] | None] = {}
        self._fd: int | None = None
        self._directory = self._name = ""
        self._host: HostId | None = None
        self._lines = 0
        # Whether the file does not say what `_rows` says: the next change writes it as a whole.
        self._stale = False
        self._off = False
        self._swept = self._warned = False

    @property
    def path(self) -> str | None:
        """Where the file is; None while there is none."""
        return os.path.join(self._directory, self._name) if self._fd is not None else None

    def acquire(self, run: str) -> None:
        """Make sure that there is a file, if there can be one; the first call of a process sweeps.

        Args:
            run: The prefix of every run token of one pool.
        """
        if run in self._runs:  # only this run's own thread puts it there
            return
        with self._lock:
            first, self._swept = not self._swept, True
        if first:
            self._sweep()
        with self._lock:
            self._runs.add(run)
            if self._fd is None:
                self._write_anew_locked()

    def release(self, run: str) -> None:
        """Take the pool off; the last one removes the file, unless a worker is left. May be repeated."""
        with self._lock:
            if run not in self._runs:
                return
            self._runs.discard(run)
            if self._runs:
                return
            fd, self._fd = self._fd, None
            if fd is not None:
                # With rows it stays: a later host looks at them once this one is gone.
                if not self._rows:
                    self._remove_locked()
                drop(fd)
            self._rows.clear()
            self._name = ""
            self._stale = self._off = False

    def begin(self, token: str) -> None:
        """Write down that a worker is about to be spawned."""
        with self._lock:
            self._rows[token] = None
            self._append_locked(f"? {token}\n")

    def register(self, token: str, pid: int, start: int) -> None:
        """Write down a worker.

        Args:
            token: Its run token.
            pid: The process id, > 1.
            start: Its `process_start`.
        """
        with self._lock:
            self._rows[token] = (pid, start)
            self._append_locked(f"+ {token} {pid} {start}\n")

    def strike(self, token: str) -> None:
        """Take a worker off: it has been reaped and has left nothing, or its spawn has failed. May be repeated."""
        with self._lock:
            if token in self._rows:
                del self._rows[token]
                self._append_locked(f"- {token}\n")

    def forget(self) -> None:
        """Let go of everything in a forked child, which is a host of its own."""
        # Its copy of the descriptor is closed with all that are held.  That does not unlock: the parent has one.
        self._reset()

    # The file ----------------------------------------------------------------------------------------

    def _append_locked(self, line: str) -> None:
        if not self._runs or self._off:
            return
        if self._fd is None or self._stale or self._lines > COMPACT_LINES + 2 * len(self._rows):
            self._write_anew_locked()
            return
        try:
            if os.write(self._fd, line.encode("ascii")) != len(line):
                raise OSError(errno.ENOSPC, "Written in part", self._name)
            self._lines += 1
        except OSError as error:
            self._stale = True
            self._warn(error)

    def _write_anew_locked(self) -> None:
        """Write what is so: the first time, for compaction, or after a failure."""
        try:
            from .run_files import create, directories, new_name, open_directory, render, this_host

            if not self._name:
                self._host = this_host()
                places = directories()
                if self._host is None or not places:
                    self._off = True  # nothing could be verified later, or the user has switched it off
                    return
                self._directory, self._name = places[0], new_name()
            assert self._host is not None
            directory_fd = open_directory(self._directory, make=True)
            try:
                fd = create(directory_fd, self._name, render(self._host, self._rows))
            finally:
                os.close(directory_fd)
        except (OSError, ImportError) as error:
            self._stale = True
            self._warn(error)
            return
        old, self._fd = self._fd, fd
        self._stale = False
        self._lines = len(self._rows)
        if old is not None:
            drop(old)

    def _remove_locked(self) -> None:
        from .run_files import open_directory

        with contextlib.suppress(OSError):
            directory_fd = open_directory(self._directory, make=False)
            try:
                os.unlink(self._name, dir_fd=directory_fd)
            finally:
                os.close(directory_fd)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            _logger.warning(
                "no registry of this host's workers (%s): if this host and its guardian are killed at once, the next "
                'start cannot end what they leave; SNAKEPIT_REGISTRY can name another directory, or be "" for none',
                error,
            )

    def _sweep(self) -> None:
        try:
            from .orphans import sweep_orphans
            from .run_files import directories, this_host

            if this_host() is None or not directories():
                return
            swept = sweep_orphans()
        except Exception as error:
            _logger.warning("no look for orphans of dead hosts: %s", error)
            return
        for orphan in swept.ended:
            _logger.warning("ended process %d, which the dead host %d had left", orphan.pid, orphan.host_pid)
        for orphan in swept.left:
            _logger.warning("process %d, which the dead host %d had left, is still there", orphan.pid, orphan.host_pid)


REGISTRY = Registry()
"""The one of this host."""
os.register_at_fork(after_in_child=REGISTRY.forget)
