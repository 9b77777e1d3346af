"""What ``/proc`` tells about processes, and how to kill exactly one of them.

Runs on any thread, owns no state.  The guardian's program uses it too: it may import nothing from this
package, nothing that is not in the standard library, and of that as little as possible.
"""

from __future__ import annotations

import os
import signal

__all__ = (
    "RUN_VARIABLE",
    "ProcessRecord",
    "kill_verified",
    "process_record",
    "process_start",
    "process_table",
    "run_token",
)

RUN_VARIABLE = "SNAKEPIT_RUN"
"""Names the run token in a worker's environment, ``<run of the pool>-<number>``."""
PROC = "/proc"
"""Where the process table is; tests point it elsewhere to force the code for systems without one."""
_READ_BYTES = 65536


class ProcessRecord:
    """One process of the table.

    Attributes:
        pid: Its process id.
        state: A letter of proc(5), such as ``"R"`` or ``"Z"``.
        pgid: Its process group.
        start: Clock ticks since boot.
        rss_pages: Resident memory in pages.
    """

    __slots__ = ("pgid", "pid", "rss_pages", "start", "state")

    def __init__(self, pid: int, state: str, pgid: int, start: int, rss_pages: int) -> None:
        self.pid = pid
        self.state = state
        self.pgid = pgid
        self.start = start
        self.rss_pages = rss_pages

    @property
    def ended(self) -> bool:
        """Whether it is a zombie, or just ceasing to be one."""
        return self.state in "ZXx"


def process_record(pid: int) -> ProcessRecord | None:
    """Return the record of one process; None when there is no such process or no ``/proc``."""
    raw = _read(f"{PROC}/{pid}/stat")
    if not raw:
        return None
    fields = raw[raw.rindex(b")") + 2 :].split()
    return ProcessRecord(pid, fields[0].decode(), int(fields[2]), int(fields[19]), int(fields[21]))


def process_start(pid: int) -> int:
    """Return the start time in clock ticks since boot; 0 when unknown."""
    record = process_record(pid)
    return record.start if record else 0


def process_table() -> list[ProcessRecord] | None:
    """Return the record of every process that has not ended; None where there is no ``/proc``."""
    try:
        names = os.listdir(PROC)
    except OSError:
        return None
    records = (process_record(int(name)) for name in names if name.isdigit())
    return [record for record in records if record and not record.ended]


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
            os.kill(pid, signal.SIGKILL)
        else:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        if pidfd is not None:
            os.close(pidfd)
    return True


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
