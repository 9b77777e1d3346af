"""One worker process from just after its spawn to its reaping: exit, signals to its group, descriptors.

THREAD: the watchdog's alone, for it alone signals and reaps.  A `ChildProcess` owns its descriptors until
`release_channel_fds` hands those of the channel over.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time

import attrs

from ..errors import InternalError
from .held_fds import drop, let_go

__all__ = ("ChannelFds", "ChildProcess", "ExitStatus", "reap_abandoned")


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


class ChildProcess:
    """A running worker process, the leader of a session and a group of its own; made by `start_process`.

    Attributes:
        pid: Its process id, > 1; also its session and its process group.
        started_at: Monotonic seconds.
        exit_fd: A pidfd, readable once it has ended; None where there are none, and once it was closed.
        stderr_fd: Non-blocking read end; None once it was closed.
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
        self._popen.returncode = -status.signal if status.signal is not None else status.code or 0

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

    def kill_group(self) -> bool:
        """SIGKILL every process of the group; between `exited` and `poll`: what the leader left in it."""
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
            let_go(fd)
        return channel

    def close(self) -> None:
        """Close every descriptor that was not handed over; may be repeated."""
        channel, self.channel = self.channel, None
        for fd in attrs.astuple(channel) if channel is not None else ():
            if fd is not None:
                drop(fd)
        self.close_stderr()
        self.close_exit_fd()

    def close_stderr(self) -> None:
        """Close the read end of stderr; may be repeated."""
        fd, self.stderr_fd = self.stderr_fd, None
        if fd is not None:
            drop(fd)

    def close_exit_fd(self) -> None:
        """Close the pidfd; may be repeated."""
        fd, self.exit_fd = self.exit_fd, None
        if fd is not None:
            drop(fd)

    def abandon(self) -> None:
        """Leave a process that outlived SIGKILL to a later `reap_abandoned`."""
        _abandoned.append(self)

    def forget(self) -> None:
        """Make this copy harmless in a forked child: the process is the parent's."""
        self.channel = self.stderr_fd = self.exit_fd = None
        self._settle(ExitStatus())


# INVARIANT: processes that outlived SIGKILL; kept so that they are reaped once they do end.
_abandoned: list[ChildProcess] = []


def reap_abandoned() -> None:
    """Reap those that could not be ended in time and have ended since."""
    _abandoned[:] = [child for child in _abandoned if child.poll() is None]


def _forget_abandoned_after_fork() -> None:
    for child in _abandoned:
        child.forget()
    _abandoned.clear()


os.register_at_fork(after_in_child=_forget_abandoned_after_fork)
