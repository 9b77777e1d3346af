"""Starts one worker process: finds the program, makes its pipes, gives it a session of its own.

THREAD: the watchdog's alone.  Linux delivers the parent-death signal when the thread that spawned ends.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

import attrs

from .._fds import lifted
from . import held_fds as _held_fds
from .process import ChannelFds, ChildProcess, reap_abandoned

__all__ = ("SpawnSpec", "find_setpriv", "probe_setpriv", "start_process")

USE_PIDFD = True
"""Tests turn this off to force the code for systems without pidfds."""
_FRAME_VARIABLES = frozenset(("SNAKEPIT_FDS", "SNAKEPIT_CLAIM_FD"))


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
        chain: Words before the program: absolute paths of programs that become the next, with their options.
        umask: File mode mask; None: the host's.
    """

    argv: tuple[str, ...] = attrs.field(validator=attrs.validators.min_len(1))
    env: Mapping[str, str] = attrs.field(repr=False)
    cwd: str | None = None
    level: int = attrs.field(default=1, validator=attrs.validators.in_((0, 1)))
    output: str = attrs.field(default="log", validator=attrs.validators.in_(("log", "inherit")))
    pass_fds: tuple[int, ...] = ()
    chain: tuple[str, ...] = ()
    umask: int | None = None


def start_process(spec: SpawnSpec) -> ChildProcess:
    """Start a process in a session of its own.

    On Linux it gets SIGKILL when the calling *thread* ends, if ``setpriv`` is there to arrange it.

    Raises:
        OSError: Program or directory not found, or no process or descriptor to be had; raised here, and
            nothing is left open. A program that turns out not to run ends with status 126 or 127 and a
            line on stderr.
        ValueError: A null character in ``argv`` or ``env``; raised here.
    """
    reap_abandoned()
    program = _find_program(spec.argv[0], spec.env, spec.cwd)
    setpriv = find_setpriv()
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:

        def pipe(*, host_reads: bool) -> tuple[int, int]:
            """Return (host's end, child's end)."""
            ends = _held_fds.pipe()
            host, child = ends if host_reads else ends[::-1]
            ours.callback(_held_fds.drop, host)
            theirs.callback(_held_fds.drop, child)
            os.set_blocking(host, False)
            return host, child

        request_fd, child_in = pipe(host_reads=False)
        reply_fd, child_out = pipe(host_reads=True)
        stderr_fd, child_err = pipe(host_reads=True)
        env = {name: value for name, value in spec.env.items() if name not in _FRAME_VARIABLES}
        stdin: int | None = child_in
        stdout: int | None = child_out
        pass_fds = spec.pass_fds
        channel = ChannelFds(request_fd, reply_fd)
        if spec.level == 1:
            claim_read_fd, claim_write_fd = _held_fds.pipe()
            for fd in (claim_read_fd, claim_write_fd):
                ours.callback(_held_fds.drop, fd)
                # The read end is one description for both: neither may want it to block.
                os.set_blocking(fd, False)
            channel = ChannelFds(request_fd, reply_fd, claim_read_fd, claim_write_fd)
            env["SNAKEPIT_FDS"] = f"{child_in},{child_out}"
            env["SNAKEPIT_CLAIM_FD"] = str(claim_read_fd)
            pass_fds = (*pass_fds, child_in, child_out, claim_read_fd)
            stdin = subprocess.DEVNULL
            stdout = child_err if spec.output == "log" else _host_stdout()
        # RACE: 1. the child is there, 2. the host is killed, 3. the guardian would have heard of the group.  The
        # parent-death signal covers the child, and the run token in `env` its descendants
        # (tests/unit/test_races_supervision.py::test_a_host_killed_before_the_guardian_hears_of_a_worker).
        popen = subprocess.Popen(
            (*((setpriv, "--pdeathsig", "KILL", "--") if setpriv else ()), *spec.chain, program, *spec.argv[1:]),
            stdin=stdin,
            stdout=stdout,
            stderr=child_err,
            env=env,
            cwd=spec.cwd,
            pass_fds=pass_fds,
            umask=-1 if spec.umask is None else spec.umask,
            start_new_session=True,
        )
        ours.callback(popen.wait)
        ours.callback(popen.kill)
        child = ChildProcess(popen, channel, stderr_fd, _open_pidfd(popen.pid))
        ours.pop_all()
        return child


def _find_program(name: str, env: Mapping[str, str], cwd: str | None) -> str:
    """Return the path of the program to run, not resolved further (a venv is known by its links).

    Raises:
        FileNotFoundError: No such file, or nothing of that name in the PATH of ``env``; raised here.
        PermissionError: A file that cannot be run; raised here.
    """
    if os.sep in name:
        # Asked for only where it matters: the host's own directory may have been removed.
        path = name if os.path.isabs(name) else os.path.join(cwd or os.getcwd(), name)
        os.stat(path)
        if os.path.isdir(path) or not os.access(path, os.X_OK):
            raise PermissionError(errno.EACCES, "Not an executable file", path)
        return path
    found = shutil.which(name, path=env.get("PATH", os.defpath))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "No such program in PATH", name)
    return os.path.abspath(found)


def find_setpriv() -> str | None:
    """Return a ``setpriv`` that knows the parent-death signal (util-linux >= 2.33, not busybox), or None."""
    try:
        return probe_setpriv()
    except OSError:
        return None


@functools.lru_cache(maxsize=1)
def probe_setpriv() -> str | None:
    """Return the same, as it was found the first time.

    Raises:
        OSError: It cannot be tried now, for want of descriptors for one; raised here, and not remembered.
    """
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
    except subprocess.TimeoutExpired:
        # Remembered: the next one might delay each start as long.
        return None
    return path if probe.returncode == 0 else None


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
        return _held_fds.hold(lifted(os.pidfd_open(pid)))
    except OSError as error:
        if error.errno in (errno.ENFILE, errno.EMFILE):
            raise
        return None
