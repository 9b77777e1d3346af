"""One worker process and how far its end has come: TERM, KILL, exit, report.

THREAD: the watchdog's, which owns every ward.
"""

from __future__ import annotations

import math
import signal

import attrs

from .process import ChildProcess, ExitStatus
from .reports import Exited, SpawnFailed
from .stderr import WorkerStderr

__all__ = ("KILL_LIMIT_S", "Ward")

KILL_LIMIT_S = 5.0
"""How long a process may outlive SIGKILL (uninterruptible sleep) until it is called a survivor; arbitrary."""


@attrs.define(eq=False)
class Ward:
    """One process in the watchdog's care.

    Attributes:
        token: Its run token, which its descendants carry in their environment too.
        start: Clock ticks since boot; 0 when unknown.
        sent: The last step taken to end it: None, SIGTERM or SIGKILL.
        due_at: Monotonic seconds of the next step: TERM, KILL, giving up; once it has exited, the next look
            at what it left behind. inf: none.
        exited_at: Monotonic seconds when its exit was seen; inf: not yet.
        failure: Why its spawn counts as failed although there is a process, or None.
        killed: ``{pid: start}`` of descendants that had left its group and got SIGKILL after its exit.
    """

    worker_id: str
    child: ChildProcess
    token: str
    start: int
    stderr: WorkerStderr
    sent: signal.Signals | None = None
    due_at: float = math.inf
    exited_at: float = math.inf
    failure: Exception | None = None
    killed: dict[int, int] = attrs.field(factory=dict)

    @property
    def exited(self) -> bool:
        """Whether its exit was seen."""
        return self.exited_at < math.inf

    @property
    def polled(self) -> bool:
        """Whether its exit must be looked for: there is no pidfd, or one that said too much."""
        return not self.exited and self.child.exit_fd is None

    def terminate(self, now: float, kill_grace_s: float) -> None:
        """Send TERM; KILL is due after the grace."""
        # The grace counts from the TERM that was sent: a starved host does not take it from the worker.
        self.sent, self.due_at = signal.SIGTERM, now + kill_grace_s
        self.child.signal_group(signal.SIGTERM)
        self.child.signal_group(signal.SIGCONT)  # a stopped process cannot act on TERM

    def kill(self, now: float) -> None:
        """Send KILL; giving up is due after `KILL_LIMIT_S`."""
        self.sent, self.due_at = signal.SIGKILL, now + KILL_LIMIT_S
        self.child.kill_group()

    def report(self, status: ExitStatus, survivors: tuple[int, ...]) -> Exited | SpawnFailed:
        """Return how the process ended.

        Args:
            status: Its own.
            survivors: Pids of what SIGKILL did not end; the process itself may be among them.
        """
        if self.failure is not None:
            return SpawnFailed(self.worker_id, self.failure)
        return Exited(
            self.worker_id,
            self.child.pid,
            status.code,
            status.signal,
            self.stderr.tail,
            expected=self.sent is not None,
            uptime_s=self.exited_at - self.child.started_at,
            survivors=survivors,
        )
