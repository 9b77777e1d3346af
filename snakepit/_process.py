"""One worker process from its spawn to its reaping: pipes, exit, group, stderr, and what is told of it.

THREAD: the watchdog's alone (it alone spawns, signals and reaps); the records are frozen and go anywhere.
A `ChildProcess` owns its descriptors until `release_channel_fds` hands those of the channel over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping

import attrs

from .errors import InternalError

__all__ = ()

USE_PIDFD = True
"""Tests turn this off to force the code for systems without pidfds."""
DRAIN_LIMIT_BYTES = 1 << 20
"""What a pipe holds at most (Linux, pipe-max-size): more comes from a writer that is still alive."""
READ_BYTES = 1 << 16
"""A pipe's usual capacity, so that one read empties it."""
_MAX_LINE_BYTES = 8192
"""Arbitrary: more of one line is not worth a place in a log."""
_FRAME_VARIABLES = frozenset(("SNAKEPIT_FDS", "SNAKEPIT_CLAIM_FD"))

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_CONTROL |= {0x2028: "\\u2028", 0x2029: "\\u2029"}
_CONTROL_BUT_LAYOUT = {code: text for code, text in _CONTROL.items() if code not in (0x09, 0x0A)}


# Records ---------------------------------------------------------------------------------------------


@attrs.frozen
class SpawnSpec:
    """What to start.

    Attributes:
        argv: Command line; ``argv[0]`` is searched in the PATH of ``env`` unless it has a slash.
        env: The complete environment.
        cwd: Working directory; None: the host's.
        level: 0: frames on fds 0 and 1. 1: on two pipes named in SNAKEPIT_FDS="in,out", fd 0 is the null
            device, and the non-blocking read end of a claim pipe is named in SNAKEPIT_CLAIM_FD.
        output: At level 1, "log": fd 1 is the stderr pipe; "inherit": fd 1 is the host's. At either level,
            "inherit" passes stderr on to the host's fd 2, "log" to the logger ``snakepit.worker``.
        pass_fds: More descriptors that the child keeps, under the same numbers; all > 2.
    """

    argv: tuple[str, ...] = attrs.field(validator=attrs.validators.min_len(1))
    env: Mapping[str, str] = attrs.field(repr=False)
    cwd: str | None = None
    level: int = attrs.field(default=1, validator=attrs.validators.in_((0, 1)))
    output: str = attrs.field(default="log", validator=attrs.validators.in_(("log", "inherit")))
    pass_fds: tuple[int, ...] = ()


@attrs.frozen
class ExitStatus:
    """How a process ended: one of the two is set, or none where somebody else had reaped it."""

    code: int | None = None
    signal: int | None = None


@attrs.frozen
class ChannelFds:
    """The host's ends of a worker's frame pipes, non-blocking; the claim pipe's both ends at level 1."""

    request_fd: int
    reply_fd: int
    claim_read_fd: int | None = None
    claim_write_fd: int | None = None


@attrs.frozen
class Spawned:
    """The process exists and its group is guarded; the descriptors now belong to the receiver."""

    worker_id: str
    pid: int
    request_fd: int
    reply_fd: int
    claim_read_fd: int | None = None
    claim_write_fd: int | None = None


@attrs.frozen
class SpawnFailed:
    """No process, or one that could not be guarded and is gone again; nothing of it is left."""

    worker_id: str
    error: Exception


@attrs.frozen
class Exited:
    """The process has ended, its group is empty and it is reaped; the last event of a worker.

    Attributes:
        code: Exit status; None when a signal ended it or somebody else had reaped it.
        signal: Number of the signal that ended it, or None.
        stderr_tail: The last bytes of its stderr, control characters but newline and tab escaped.
        expected: Whether the watchdog had sent TERM or KILL before it saw the exit.
        uptime_s: Seconds from spawn to exit.
        survivors: Pids of the worker or its descendants that outlived SIGKILL; normally empty.
    """

    worker_id: str
    pid: int
    code: int | None
    signal: int | None
    stderr_tail: str
    expected: bool
    uptime_s: float
    survivors: tuple[int, ...] = ()


@attrs.frozen
class RssMeasured:
    """Resident memory of the worker's process group."""

    worker_id: str
    rss_bytes: int


@attrs.frozen
class WatchdogFailed:
    """The watchdog's loop raised; every process it had is being killed, an `Exited` for each follows."""

    error: BaseException


# stderr ----------------------------------------------------------------------------------------------


def escape(raw: bytes, *, keep_layout: bool = False) -> str:
    """Return ``raw`` as text without control characters (newline and tab stay with ``keep_layout``)."""
    return raw.decode("utf-8", "backslashreplace").translate(_CONTROL_BUT_LAYOUT if keep_layout else _CONTROL)


class StderrRecord:
    """Keeps the tail of one worker's stderr and logs its lines.

    Args:
        worker_id: Begins each line in the log.
        tail_bytes: How much is kept, >= 0.
        logger: Where complete lines go, at INFO; None: nowhere.
    """

    def __init__(self, worker_id: str, tail_bytes: int, logger: logging.Logger | None) -> None:
        self._worker_id = worker_id
        self._tail_bytes = tail_bytes
        self._logger = logger
        self._tail = bytearray()
        self._line = bytearray()
        self._cut = False

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self._tail += data
        del self._tail[: max(0, len(self._tail) - self._tail_bytes)]
        if self._logger is None or not self._logger.isEnabledFor(logging.INFO):
            return
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._extend(piece)
            self._log_line()
        self._extend(rest)

    def close(self) -> None:
        """Log the last line if it had no newline."""
        if self._line:
            self._log_line()

    @property
    def tail(self) -> str:
        """The last bytes as escaped text, not beginning inside a character."""
        raw = bytes(self._tail)
        if len(raw) == self._tail_bytes:
            start = next((i for i, byte in enumerate(raw[:4]) if byte & 0xC0 != 0x80), 0)
            raw = raw[start:]
        return escape(raw, keep_layout=True)

    def _extend(self, piece: bytes) -> None:
        room = _MAX_LINE_BYTES - len(self._line)
        self._line += piece[:room]
        self._cut = self._cut or len(piece) > room

    def _log_line(self) -> None:
        text = escape(bytes(self._line).removesuffix(b"\r")) + (" ... [cut]" if self._cut else "")
        self._line.clear()
        self._cut = False
        if self._logger is not None:
            # A handler of the user's may raise anything, and the watchdog has more to do than logging.
            with contextlib.suppress(Exception):
                self._logger.info("[%s] %s", self._worker_id, text)


# The process -----------------------------------------------------------------------------------------

# INVARIANT: every descriptor that this module holds open, so that a forked child can close them all.
_held: set[int] = set()


def _hold(fd: int) -> int:
    _held.add(fd)
    return fd


def _drop(fd: int) -> None:
    _held.discard(fd)
    os.close(fd)


# INVARIANT: processes that outlived SIGKILL; kept so that they are reaped once they do end.
_abandoned: list[ChildProcess] = []


def reap_abandoned() -> None:
    """Reap those that could not be ended in time and have ended since."""
    _abandoned[:] = [child for child in _abandoned if child.poll() is None]


def _close_all_after_fork() -> None:
    for child in _abandoned:
        child.forget()
    _abandoned.clear()
    while _held:
        with contextlib.suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_close_all_after_fork)


def _pipe() -> tuple[int, int]:
    """Return a close-on-exec pipe with numbers above 2, which are the child's own."""
    ends = []
    for fd in os.pipe():
        if fd > 2:
            ends.append(_hold(fd))
        else:  # the host runs with a standard stream closed
            ends.append(_hold(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)))
            os.close(fd)
    return ends[0], ends[1]


@functools.lru_cache(maxsize=1)
def _setpriv() -> str | None:
    """Return a ``setpriv`` that knows the parent-death signal (util-linux >= 2.33, not busybox), or None."""
    path = shutil.which("setpriv") if sys.platform == "linux" else None
    if path is None:
        return None
    try:
        probe = subprocess.run(
            (path, "--pdeathsig", "KILL", "--", path, "--version"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return path if probe.returncode == 0 else None


def find_program(name: str, env: Mapping[str, str], cwd: str | None) -> str:
    """Return the path of the program to run, not resolved further (a venv is known by its links).

    Raises:
        FileNotFoundError: No such file, or nothing of that name in the PATH of ``env``; raised here.
        PermissionError: A file that cannot be run; raised here.
    """
    if os.sep in name:
        path = os.path.join(cwd or os.getcwd(), name)
        os.stat(path)
        if os.path.isdir(path) or not os.access(path, os.X_OK):
            raise PermissionError(errno.EACCES, "Not an executable file", path)
        return path
    found = shutil.which(name, path=env.get("PATH", os.defpath))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "No such program in PATH", name)
    return os.path.abspath(found)


class ChildProcess:
    """A running worker process; made by `start`.

    Attributes:
        pid: Its process id, > 1; also its session and its process group.
        started_at: Monotonic seconds.
        exit_fd: A pidfd, readable once it has ended; None where there are none.
        stderr_fd: Non-blocking read end.
        channel: The descriptors for the manager; None once released.
    """

    def __init__(
        self, popen: subprocess.Popen[bytes], channel: ChannelFds, stderr_fd: int, exit_fd: int | None
    ) -> None:
        self._popen = popen
        self.pid = self.pgid = popen.pid
        self.started_at = time.monotonic()
        self.channel: ChannelFds | None = channel
        self.stderr_fd: int | None = stderr_fd
        self.exit_fd = exit_fd
        # INVARIANT: None as long as `pid` is known to be ours; no signal is ever sent afterwards.
        self._status: ExitStatus | None = None

    @classmethod
    def start(cls, spec: SpawnSpec) -> ChildProcess:
        """Start a process in a session of its own.

        On Linux it gets SIGKILL when the calling *thread* ends, if ``setpriv`` is there to arrange it.

        Raises:
            OSError: Program or directory not found, or no process or descriptor to be had; raised here, and
                nothing is left open. A program that turns out not to run ends with status 126 or 127 and a
                line on stderr.
            ValueError: A null character in ``argv`` or ``env``; raised here.
        """
        reap_abandoned()
        program = find_program(spec.argv[0], spec.env, spec.cwd)
        setpriv = _setpriv()
        ours: list[int] = []
        theirs: list[int] = []
        popen: subprocess.Popen[bytes] | None = None

        def pipe(host_reads: bool) -> tuple[int, int]:
            """Return (host's end, child's end)."""
            ends = _pipe()
            host, child = ends if host_reads else ends[::-1]
            ours.append(host)
            theirs.append(child)
            os.set_blocking(host, False)
            return host, child

        try:
            request_fd, child_in = pipe(host_reads=False)
            reply_fd, child_out = pipe(host_reads=True)
            stderr_fd, child_err = pipe(host_reads=True)
            env = {name: value for name, value in spec.env.items() if name not in _FRAME_VARIABLES}
            stdin: int | None = child_in
            stdout: int | None = child_out
            pass_fds = spec.pass_fds
            claim_read_fd: int | None = None
            claim_write_fd: int | None = None
            if spec.level == 1:
                claim = claim_read_fd, claim_write_fd = _pipe()
                ours += claim
                for fd in claim:  # the read end is one description for both: neither may want it to block
                    os.set_blocking(fd, False)
                env["SNAKEPIT_FDS"] = f"{child_in},{child_out}"
                env["SNAKEPIT_CLAIM_FD"] = str(claim_read_fd)
                pass_fds = (*pass_fds, child_in, child_out, claim_read_fd)
                stdin = subprocess.DEVNULL
                stdout = child_err if spec.output == "log" else _host_stdout()
            # RACE: between this spawn and the guardian's word of the group, the host may be killed.  The
            # parent-death signal covers the child, and the run token in `env` its descendants.
            popen = subprocess.Popen(
                (*((setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()), program, *spec.argv[1:]),
                stdin=stdin,
                stdout=stdout,
                stderr=child_err,
                env=env,
                cwd=spec.cwd,
                pass_fds=pass_fds,
                start_new_session=True,
            )
            exit_fd = _open_pidfd(popen.pid)
        except BaseException:
            if popen is not None:
                popen.kill()
                popen.wait()
            for fd in ours:
                _drop(fd)
            raise
        finally:
            for fd in theirs:
                _drop(fd)
        channel = ChannelFds(request_fd, reply_fd, claim_read_fd, claim_write_fd)
        return cls(popen, channel, stderr_fd, exit_fd)

    def exited(self) -> bool:
        """Whether it has ended; where the system can tell without it, it is not reaped."""
        if self._status is not None:
            return True
        if not hasattr(os, "waitid"):
            return self.poll() is not None
        try:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.pid, flags) is not None
        except ChildProcessError:
            self._settle(ExitStatus())
            return True

    def poll(self) -> ExitStatus | None:
        """Reap it if it has ended; None while it runs. Neither set: somebody else had reaped it."""
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._settle(ExitStatus())
            else:
                if pid == self.pid:
                    number = os.waitstatus_to_exitcode(status)
                    self._settle(ExitStatus(number) if number >= 0 else ExitStatus(signal=-number))
        return self._status

    def _settle(self, status: ExitStatus) -> None:
        self._status = status
        # subprocess would otherwise reap by this pid when the object is collected.
        self._popen.returncode = status.code if status.signal is None else -status.signal
        if self._popen.returncode is None:
            self._popen.returncode = 0

    @property
    def reaped(self) -> bool:
        """Whether the pid is no longer ours: reaped here, or found to be reaped by somebody else."""
        return self._status is not None

    def signal_group(self, number: int) -> bool:
        """Signal every process of the group; False, and nothing is sent, once the leader is reaped or gone.

        A leader that has ended and is not reaped keeps the group's number from being given away.

        Raises:
            InternalError: The group is not the child's own; raised here.
        """
        self.exited()  # finds out whether somebody else has reaped it
        if self._status is not None:
            return False
        if self.pgid <= 1 or self.pgid != self.pid:
            raise InternalError(f"refused to signal group {self.pgid} of process {self.pid}")
        try:
            os.killpg(self.pgid, number)
        except (ProcessLookupError, PermissionError):  # macOS: EPERM when only zombies are left
            return False
        return True

    def kill_remaining(self) -> bool:
        """SIGKILL what the leader left in its group; to be called between `exited` and `poll`."""
        return self.signal_group(signal.SIGKILL)

    def group_is_empty(self) -> bool:
        """Whether not even a zombie is in the group; for use after the reap, without ``/proc``."""
        try:
            os.killpg(self.pgid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def release_channel_fds(self) -> ChannelFds:
        """Hand the frame and claim descriptors over: the caller closes them.

        Raises:
            InternalError: They were handed over or closed before; raised here.
        """
        channel, self.channel = self.channel, None
        if channel is None:
            raise InternalError(f"the descriptors of process {self.pid} were released twice")
        for fd in attrs.astuple(channel):
            _held.discard(fd)
        return channel

    def abandon(self) -> None:
        """Leave a process that outlived SIGKILL to a later `reap_abandoned`."""
        _abandoned.append(self)

    def close(self) -> None:
        """Close every descriptor that was not handed over; may be repeated."""
        channel, self.channel = self.channel, None
        for fd in attrs.astuple(channel) if channel is not None else ():
            if fd is not None:
                _drop(fd)
        self.close_stderr()
        if self.exit_fd is not None:
            _drop(self.exit_fd)
            self.exit_fd = None

    def close_stderr(self) -> None:
        """Close the read end of stderr; may be repeated."""
        if self.stderr_fd is not None:
            _drop(self.stderr_fd)
            self.stderr_fd = None

    def forget(self) -> None:
        """Make this copy harmless in a forked child: the process is the parent's."""
        self.channel = self.stderr_fd = self.exit_fd = None
        self._settle(ExitStatus())


def _host_stdout() -> int | None:
    """Return what subprocess takes for "the host's fd 1"; the null device if that is closed."""
    try:
        os.fstat(1)
    except OSError:
        return subprocess.DEVNULL
    return None


def _open_pidfd(pid: int) -> int | None:
    """Return a pidfd; None where the system has none or the child is gone already (SIGCHLD ignored).

    Raises:
        OSError: Out of descriptors; raised here.
    """
    if not USE_PIDFD or not hasattr(os, "pidfd_open"):
        return None
    try:
        return _hold(os.pidfd_open(pid))
    except OSError as error:
        if error.errno in (errno.ENFILE, errno.EMFILE):
            raise
        return None


def write_ready(fd: int, data: memoryview) -> int:
    """Write as much as ``fd``, which may be blocking, takes at once; return how many bytes that was.

    Raises:
        OSError: Nobody reads any more; raised here.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    written = 0
    while written < len(data) and poll.poll(0):
        # A pipe that polls writable takes PIPE_BUF bytes without blocking.
        written += os.write(fd, data[written : written + select.PIPE_BUF])
    return written


def group_rss_bytes(pgids: Iterable[int]) -> dict[int, int]:
    """Return ``{pgid: resident bytes}`` of process groups by way of psutil, for systems without ``/proc``."""
    import psutil

    total = dict.fromkeys(pgids, 0)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            pgid = os.getpgid(process.pid)
            if pgid in total:
                total[pgid] += process.memory_info().rss
    return total
