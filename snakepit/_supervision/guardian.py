"""The host's handle of its guardian, the small process that ends this host's workers when the host is killed.

Called on the watchdogs' threads.  One `GUARDIAN` per host process owns the lifeline, the list of live groups
and the process, whose program is `_supervision/guardian_main` (there: what is said on the lifeline).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import subprocess
import sys
import threading

from .._fds import lifted
from .procfs import RUN_VARIABLE, process_start

__all__ = ("GUARDIAN", "Guardian")

_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "guardian_main.py")
_LEAVE_LIMIT_S = 1.0
"""How long a guardian may take to end when it is told to, or killed; arbitrary."""
_MAX_FAILURES = 5
"""Failed starts in a row until this host goes on without a guardian; arbitrary."""


class _Helper:
    """One guardian process and what this host holds of it."""

    def __init__(self, lifeline: socket.socket) -> None:
        self.lifeline = lifeline
        self.process: subprocess.Popen[bytes] | None = None
        # A pidfd; None where there are none.
        self.exit_fd: int | None = None

    def send(self, text: str) -> bool:
        """Write to the lifeline; False when it has ended, or was stopped until the line was full."""
        data = text.encode("ascii")
        try:
            # MSG_NOSIGNAL: a host may have given SIGPIPE its default action; a dead guardian must not end it.
            return self.lifeline.send(data, getattr(socket, "MSG_NOSIGNAL", 0)) == len(data)
        except OSError:
            return False

    def start(self, guardian_end: socket.socket) -> None:
        """Start the process; raises OSError."""
        host = os.getpid()
        self.process = subprocess.Popen(
            (sys.executable, "-I", "-S", "-E", "-B", _PROGRAM, str(host), str(process_start(host))),
            stdin=guardian_end.fileno(),
            # Nothing of the user's is kept open: `script | head` must end with the script.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            # A host that is itself a worker carries a token; with it, its guardian would be swept away.
            env={name: value for name, value in os.environ.items() if name != RUN_VARIABLE},
            start_new_session=True,
        )
        with contextlib.suppress(OSError, AttributeError):
            self.exit_fd = lifted(os.pidfd_open(self.process.pid))

    def dismiss(self, run: str) -> None:
        """Send it home, wait for it for a bounded time, and reap it."""
        self.send(f"end {run}\nbye\n")
        self.lifeline.close()
        if self.exit_fd is not None:
            poll = select.poll()
            poll.register(self.exit_fd, select.POLLIN)
            poll.poll(_LEAVE_LIMIT_S * 1000)
        assert self.process is not None
        try:
            self.process.wait(_LEAVE_LIMIT_S if self.exit_fd is None else 0.05)
        except subprocess.TimeoutExpired:
            self.kill()
        self.close()

    def kill(self) -> int | None:
        """Kill it if it lives, and return its exit status; None when even that takes too long."""
        assert self.process is not None
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_LEAVE_LIMIT_S)
        return self.process.returncode

    def close(self) -> None:
        """Close the host's descriptors; may be repeated."""
        self.lifeline.close()
        fd, self.exit_fd = self.exit_fd, None
        if fd is not None:
            os.close(fd)

    def forget(self) -> None:
        """Make this copy harmless in a forked child: the process is the parent's."""
        self.close()
        if self.process is not None:
            self.process.returncode = 0  # or its finalizer would look for a child that is not ours


class Guardian:
    """The host's handle of its guardian: started with the first pool that spawns, gone with the last.

    THREAD: any watchdog's.  Nothing here waits for the guardian, but for `release` at the very end (at most
    about 2 s, normally some milliseconds).
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        # LOCK: protects every attribute; not nested; held while the process is started or replaced, not while
        # it is sent home.
        self._lock = threading.Lock()
        self._helper: _Helper | None = None
        # INVARIANT: what the guardian has been told, so that a replacement can be told the same.
        self._runs: set[str] = set()
        self._groups: dict[int, int] = {}
        self._failures = 0

    @property
    def pid(self) -> int | None:
        """The guardian's process id; None while there is none."""
        helper = self._helper
        return helper.process.pid if helper is not None and helper.process is not None else None

    def acquire(self, run: str) -> None:
        """Make sure that a guardian runs and knows ``run``; may be repeated.

        Args:
            run: Letters and digits, the prefix of every run token of one pool.

        Raises:
            OSError: No process or descriptor to be had; raised here, nothing is held.
        """
        with self._lock:
            if run in self._runs:
                self._ensure_locked()
                return
            self._runs.add(run)
            try:
                if self._helper is None:
                    self._start_locked()
                else:
                    self._send_locked(f"run {run}\n")
            except BaseException:
                self._runs.discard(run)
                raise

    def release(self, run: str) -> None:
        """Take the pool off the list; the last one ends the guardian and reaps it. May be repeated."""
        with self._lock:
            if run not in self._runs:
                return
            self._runs.discard(run)
            if self._runs:
                self._send_locked(f"end {run}\n")
                return
            helper, self._helper = self._helper, None
            # What is still listed could not be ended by its watchdog: the guardian tries once more.
            self._groups.clear()
            self._failures = 0
        if helper is not None:
            helper.dismiss(run)

    def register(self, pid: int, start: int) -> None:
        """Put a worker's group on the list.

        Args:
            pid: The leader's process id, > 1.
            start: Its `process_start`.

        Raises:
            OSError: The guardian was gone and none could be started; raised here.
        """
        with self._lock:
            self._groups[pid] = start
            self._send_locked(f"+ {pid} {start}\n")

    def unregister(self, pid: int) -> None:
        """Take a group off the list; the guardian learns it unless it cannot be reached."""
        with self._lock:
            if self._groups.pop(pid, None) is not None:
                with contextlib.suppress(OSError):
                    self._send_locked(f"- {pid}\n")

    def ensure(self) -> None:
        """Replace the guardian if it has ended while it is needed.

        Raises:
            OSError: None could be started; raised here.
        """
        with self._lock:
            if self._runs:
                self._ensure_locked()

    def open_exit_fd(self) -> int | None:
        """Return a descriptor, the caller's, readable once the guardian has ended; None without pidfds."""
        with self._lock:
            exit_fd = self._helper.exit_fd if self._helper is not None else None
            return None if exit_fd is None else lifted(os.dup(exit_fd))

    def forget(self) -> None:
        """Let go of everything in a forked child: the guardian belongs to the parent."""
        helper = self._helper
        self._reset()
        if helper is not None:
            helper.forget()

    def _send_locked(self, line: str) -> None:
        if self._helper is not None and not self._helper.send(line):
            self._replace_locked()  # the new one is told everything

    def _ensure_locked(self) -> None:
        if self._helper is None:
            self._start_locked()
        elif self._helper.process is not None and self._helper.process.poll() is not None:
            self._replace_locked()

    def _replace_locked(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            # An exit status of its own means that it cannot run here; a signal is somebody's doing.
            self._failures = self._failures + 1 if (helper.kill() or 0) > 0 else 0
            helper.close()
        self._start_locked()

    def _start_locked(self) -> None:
        if self._failures >= _MAX_FAILURES or not sys.executable or getattr(sys, "frozen", False):
            logging.getLogger("snakepit.guardian").error(
                "no guardian can run here (executable %r, %d failed starts): if this host is killed, "
                "its workers may outlive it",
                sys.executable,
                self._failures,
            )
            return
        host_end, guardian_end = (socket.socket(fileno=lifted(end.detach())) for end in socket.socketpair())
        # Known before the process exists, so that a child forked meanwhile closes its copy of the lifeline.
        self._helper = helper = _Helper(host_end)
        try:
            host_end.setblocking(False)
            told = [f"run {run}\n" for run in self._runs]
            told += [f"+ {pid} {start}\n" for pid, start in self._groups.items()]
            if told and not helper.send("".join(told)):
                raise BlockingIOError(f"{len(self._groups)} worker groups do not fit into the lifeline")
            helper.start(guardian_end)
        except BaseException:
            self._helper = None
            host_end.close()
            raise
        finally:
            guardian_end.close()


GUARDIAN = Guardian()
"""The one of this host."""
os.register_at_fork(after_in_child=GUARDIAN.forget)
