"""Starts a worker as a host does: its descriptors, its variables, files for what it prints.

Runs on the caller's thread; what is returned is the caller's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ("Launched", "launch")

# Numbers above the range that Node's own start-up marks close-on-exec, so the bridge has to do it.
FRAME_FD_FLOOR = 60


@dataclass(frozen=True)
class Launched:
    """A process and this side of its streams.

    Attributes:
        process: Leader of a session of its own.
        fds: Requests (written, never blocking), replies (read), claims (written).
        files: Closes the two files.
        stdout_fd: File of what it prints (level 1).
        stderr_fd: File of what it says on stderr.
    """

    process: subprocess.Popen[bytes]
    fds: tuple[int, int, int]
    files: contextlib.ExitStack
    stdout_fd: int
    stderr_fd: int


def launch(
    argv: Sequence[str],
    level: int,
    env: Mapping[str, str | None] | None = None,
    *,
    claim: bool,
    sockets: bool,
    packets: bool,
) -> Launched:
    """Start a process; the arguments are those of ``Worker``.

    Raises:
        OSError: It cannot be started; raised here.
    """
    environment = {key: value for key, value in {**os.environ, **(env or {})}.items() if value is not None}
    theirs_in, requests = _socket_pair() if sockets else os.pipe()
    if packets:
        replies, theirs_out = _socket_pair(socket.SOCK_SEQPACKET)
    else:
        replies, theirs_out = _socket_pair() if sockets else os.pipe()
    claim_in, claims = os.pipe()
    os.set_blocking(claim_in, False)
    os.set_blocking(requests, False)
    passed: list[int] = []
    if level:
        passed = [_dup_high(fd) for fd in (theirs_in, theirs_out)]
        environment["SNAKEPIT_FDS"] = "{},{}".format(*passed)
        if claim:
            passed.append(_dup_high(claim_in))
            environment["SNAKEPIT_CLAIM_FD"] = str(passed[2])
    with contextlib.ExitStack() as files:
        ours = (requests, replies, claims)
        for fd in ours:
            files.callback(os.close, fd)
        stdout, stderr = (files.enter_context(tempfile.TemporaryFile()) for _ in range(2))
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL if level else theirs_in,
                stdout=stdout if level else theirs_out,
                stderr=stderr,
                env=environment,
                pass_fds=passed,
                start_new_session=True,
            )
        finally:
            for fd in (theirs_in, theirs_out, claim_in, *passed):
                os.close(fd)
        files.pop_all()
        kept = contextlib.ExitStack()
        kept.callback(stdout.close)
        kept.callback(stderr.close)
    return Launched(process, ours, kept, stdout.fileno(), stderr.fileno())


def _socket_pair(kind: int = socket.SOCK_STREAM) -> tuple[int, int]:
    first, second = socket.socketpair(socket.AF_UNIX, kind)
    return first.detach(), second.detach()


def _dup_high(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FRAME_FD_FLOOR)
