"""What the watchdog tells the manager of a pool's processes.

Frozen records, made on the watchdog's thread, free to go anywhere.
"""

from __future__ import annotations

import attrs

__all__ = ("Exited", "RssMeasured", "SpawnFailed", "Spawned", "WatchdogFailed")


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
