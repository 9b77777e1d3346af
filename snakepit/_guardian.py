"""The guardian: a small process that ends this host's workers when the host itself is killed.

Two halves in one file.  The host's half is `Guardian`, one per host process, called on the watchdogs'
threads; it owns the lifeline and the list of live groups.  The other half is the guardian's own program
(``python -I -S -E _guardian.py HOST_PID HOST_START``): it must import nothing from this package and as
little as possible from the standard library.  The look-ups in ``/proc`` that both need are here as well.

Lifeline, host to guardian, one line a message, as ASCII::

    run RUN          a pool has started; its workers carry SNAKEPIT_RUN=RUN-<n> in their environment
    end RUN          that pool has no process left
    + PID START      a worker's group, START as in field 22 of /proc/PID/stat, 0 where unknown
    - PID            that group is gone
    bye              treat as end of file

At end of file, or when the host is seen to exit, every group that is still listed and every process that
carries a listed run in its environment gets SIGKILL.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

if __name__ != "__main__":
    import contextlib
    import logging
    import socket
    import subprocess
    import threading

__all__ = ()

RUN_VARIABLE = "SNAKEPIT_RUN"
PROC = "/proc"
"""Where the process table is; tests point it elsewhere to force the code for systems without one."""

_SIGKILL = int(signal.SIGKILL)
_READ_BYTES = 65536
_SWEEP_PAUSES_S = (0.01, 0.05, 0.1)
"""Pauses between the last sweeps; arbitrary, longer in sum than a child takes from vfork to exec."""
_SWEEP_LIMIT_S = 5.0
_LEAVE_LIMIT_S = 1.0
_MAX_FAILURES = 5


# What /proc tells: both halves -----------------------------------------------------------------------


def _read(path: str) -> bytes | None:
    """Return a file of ``/proc``; None when it is gone, or not ours to read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, _READ_BYTES):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(fd)


def process_record(pid: int) -> tuple[int, str, int, int, int] | None:
    """Return ``(pid, state, pgid, start, rss_pages)``; None when there is no such process or no ``/proc``."""
    raw = _read(f"{PROC}/{pid}/stat")
    if not raw:
        return None
    fields = raw[raw.rindex(b")") + 2 :].split()
    return pid, fields[0].decode(), int(fields[2]), int(fields[19]), int(fields[21])


def process_start(pid: int) -> int:
    """Return the start time in clock ticks since boot; 0 when unknown."""
    record = process_record(pid)
    return record[3] if record else 0


def process_table() -> list[tuple[int, str, int, int, int]] | None:
    """Return the record of every process but zombies; None where there is no ``/proc``."""
    try:
        names = os.listdir(PROC)
    except OSError:
        return None
    records = (process_record(int(name)) for name in names if name.isdigit())
    return [record for record in records if record and record[1] not in "ZXx"]


def run_token(pid: int) -> str:
    """Return the run token in the process's environment; empty when it has none or it cannot be read."""
    environ = b"\0" + (_read(f"{PROC}/{pid}/environ") or b"")
    _, found, rest = environ.partition(b"\0" + RUN_VARIABLE.encode() + b"=")
    return rest.partition(b"\0")[0].decode("ascii", "replace") if found else ""


def kill_verified(pid: int, start: int) -> bool:
    """Send SIGKILL to the one process that has this pid and this start time; False when it is not there."""
    if pid <= 1 or pid == os.getpid():
        return False
    # RACE: (1) the table is read, (2) that process ends and its pid goes to another, (3) we signal the pid.
    # The start time is compared after the pidfd was opened: it is either the right process or not used.
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (OSError, AttributeError):
        pidfd = None
    try:
        if process_start(pid) != start:
            return False
        if pidfd is None:
            os.kill(pid, _SIGKILL)
        else:
            signal.pidfd_send_signal(pidfd, _SIGKILL)
    except OSError:
        return False
    finally:
        if pidfd is not None:
            os.close(pidfd)
    return True


# The guardian's own program --------------------------------------------------------------------------


def _kill_all(groups: dict[int, int], runs: set[str]) -> None:
    """End every listed group and every process of a listed run, and look again until none turns up."""
    deadline = time.monotonic() + _SWEEP_LIMIT_S
    pauses = list(_SWEEP_PAUSES_S)
    while True:
        found = False
        for pid, start in groups.items():
            record = process_record(pid)
            if pid <= 1 or (record[3] != start if record else os.path.isdir(PROC)):
                continue
            try:
                # A zombie leader still reserves its pgid: the start time alone decides about the signal.
                if os.getpgid(pid) == pid:
                    os.killpg(pid, _SIGKILL)
                    found = found or record is None or record[1] not in "ZXx"
            except OSError:
                continue
        for pid, _, _, start, _ in process_table() or ():
            if run_token(pid).rpartition("-")[0] in runs:
                found = kill_verified(pid, start) or found
        # RACE: (1) the host has made a child, (2) the host is killed, (3) the child execs and only now shows
        # its environment.  Hence some quiet sweeps in a row before the end.
        if time.monotonic() > deadline or (not found and not pauses):
            return
        time.sleep(0.005 if found else pauses.pop(0))


def _host_pidfd(host_pid: int, host_start: int) -> int | None:
    """Return a pidfd of the host; None where there are none, -1 when the host is gone already."""
    try:
        pidfd = os.pidfd_open(host_pid)
    except ProcessLookupError:
        return -1
    except (OSError, AttributeError):
        return None
    if process_start(host_pid) != host_start:
        os.close(pidfd)
        return -1
    return pidfd


def _guard(host_pid: int, host_start: int) -> None:
    """Serve the lifeline on fd 0 until the host lets go of it, then end what is still listed."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGPIPE"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    groups: dict[int, int] = {}
    runs: set[str] = set()
    os.set_blocking(0, False)
    poll = select.poll()
    poll.register(0, select.POLLIN)
    # The lifeline alone would not do: a library that forks in C, past Python's hooks, keeps it open.
    host = _host_pidfd(host_pid, host_start)
    if host is not None and host >= 0:
        poll.register(host, select.POLLIN)
    rest = b""
    leaving = False
    while not leaving:
        leaving = host == -1 or any(fd == host for fd, _ in poll.poll())
        while True:
            try:
                data = os.read(0, _READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                leaving = True
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                verb, *words = line.decode("ascii").split()
                if verb == "+":
                    groups[int(words[0])] = int(words[1])
                elif verb == "-":
                    groups.pop(int(words[0]), None)
                elif verb == "run":
                    runs.add(words[0])
                elif verb == "end":
                    runs.discard(words[0])
                else:
                    leaving = True
    if groups or runs:
        _kill_all(groups, runs)


# The host's half -------------------------------------------------------------------------------------


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
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline: socket.socket | None = None
        self._exit_fd: int | None = None
        # INVARIANT: what the guardian has been told, so that a replacement can be told the same.
        self._runs: set[str] = set()
        self._groups: dict[int, int] = {}
        self._failures = 0

    @property
    def pid(self) -> int | None:
        """The guardian's process id; None while there is none."""
        process = self._process
        return process.pid if process else None

    def acquire(self, run: str) -> None:
        """Make sure that a guardian runs and knows ``run``; may be repeated.

        Args:
            run: Letters and digits, the prefix of every run token of one pool.

        Raises:
            OSError: No process or descriptor to be had; raised here, nothing is held.
        """
        with self._lock:
            if run in self._runs:
                return self._ensure_locked()
            self._runs.add(run)
            try:
                if self._process is None:
                    self._ensure_locked()
                else:
                    self._send_locked(f"run {run}\n")
            except BaseException:
                self._runs.discard(run)
                raise
        return None

    def release(self, run: str) -> None:
        """Take the pool off the list; the last one ends the guardian and reaps it. May be repeated."""
        with self._lock:
            if run not in self._runs:
                return
            self._runs.discard(run)
            if self._runs:
                self._send_locked(f"end {run}\n")
                return
            process, lifeline, exit_fd = self._process, self._lifeline, self._exit_fd
            self._process = self._lifeline = self._exit_fd = None
            # What is still listed could not be ended by its watchdog: the guardian tries once more.
            self._groups.clear()
            self._failures = 0
        _dismiss(process, lifeline, exit_fd, run)

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
            return None if self._exit_fd is None else os.dup(self._exit_fd)

    def forget(self) -> None:
        """Let go of everything in a forked child: the guardian belongs to the parent."""
        lifeline, exit_fd, process = self._lifeline, self._exit_fd, self._process
        self._reset()
        if lifeline is not None:
            lifeline.close()
        if exit_fd is not None:
            os.close(exit_fd)
        if process is not None:
            process.returncode = 0  # or its finalizer would look for a child that is not ours

    def _send_locked(self, line: str) -> None:
        if self._lifeline is None:
            return
        data = line.encode("ascii")
        try:
            # MSG_NOSIGNAL: a host may have given SIGPIPE its default action; a dead guardian must not end it.
            if self._lifeline.send(data, getattr(socket, "MSG_NOSIGNAL", 0)) == len(data):
                return
        except OSError:
            pass  # ended, or stopped until the line was full: its replacement is told everything again
        self._replace_locked()

    def _ensure_locked(self) -> None:
        if self._process is None:
            self._start_locked()
        elif self._process.poll() is not None:
            self._replace_locked()

    def _replace_locked(self) -> None:
        process, lifeline, exit_fd = self._process, self._lifeline, self._exit_fd
        self._process = self._lifeline = self._exit_fd = None
        if process is not None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE_LIMIT_S)
            # An exit status of its own means that it cannot run here; a signal is somebody's doing.
            self._failures = self._failures + 1 if (process.returncode or 0) > 0 else 0
        if lifeline is not None:
            lifeline.close()
        if exit_fd is not None:
            os.close(exit_fd)
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
        host_end, guardian_end = socket.socketpair()
        self._lifeline = host_end
        try:
            host_end.setblocking(False)
            told = [f"run {run}\n" for run in self._runs]
            told += [f"+ {pid} {start}\n" for pid, start in self._groups.items()]
            data = "".join(told).encode("ascii")
            if data and host_end.send(data) != len(data):
                raise BlockingIOError(f"{len(self._groups)} worker groups do not fit into the lifeline")
            host = os.getpid()
            self._process = subprocess.Popen(
                (sys.executable, "-I", "-S", "-E", __file__, str(host), str(process_start(host))),
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
                self._exit_fd = os.pidfd_open(self._process.pid)
        except BaseException:
            self._lifeline = None
            host_end.close()
            raise
        finally:
            guardian_end.close()


def _dismiss(
    process: subprocess.Popen[bytes] | None, lifeline: socket.socket | None, exit_fd: int | None, run: str
) -> None:
    """Send the guardian home, wait for it for a bounded time, and reap it."""
    if lifeline is not None:
        with contextlib.suppress(OSError):
            lifeline.send(f"end {run}\nbye\n".encode("ascii"), getattr(socket, "MSG_NOSIGNAL", 0))
        lifeline.close()
    if exit_fd is not None:
        poll = select.poll()
        poll.register(exit_fd, select.POLLIN)
        poll.poll(_LEAVE_LIMIT_S * 1000)
        os.close(exit_fd)
    if process is None:
        return
    try:
        process.wait(_LEAVE_LIMIT_S if exit_fd is None else 0.05)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LEAVE_LIMIT_S)


if __name__ == "__main__":
    _guard(int(sys.argv[1]), int(sys.argv[2]))
else:
    GUARDIAN = Guardian()
    """The one of this host."""
    os.register_at_fork(after_in_child=GUARDIAN.forget)
