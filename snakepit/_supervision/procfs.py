"""What ``/proc`` tells about processes, and how to kill exactly one of them.

Runs on any thread, owns no state.  The guardian's program uses it too: it may import nothing from this
package, nothing that is not in the standard library, and of that as little as possible.
"""

from __future__ import annotations

import errno
import os
import signal

__all__ = (
    "RUN_VARIABLE",
    "ProcessRecord",
    "find_token",
    "kill_verified",
    "process_ids",
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
_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)


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
    """Return the record of one process; None when there is no such process or no ``/proc``.

    Raises:
        OSError: Out of descriptors, so that nothing can be said; raised here.
    """
    fields = _stat(pid)
    if not fields:
        return None
    return ProcessRecord(pid, fields[0].decode(), int(fields[2]), int(fields[19]), int(fields[21]))


def process_start(pid: int) -> int:
    """Return the start time in clock ticks since boot; 0 when unknown."""
    try:
        record = process_record(pid)
    except OSError:
        return 0
    return record.start if record else 0


def process_ids() -> set[int] | None:
    """Return the pids of all processes, ended ones included; None where there is no ``/proc``.

    Raises:
        OSError: Out of descriptors; raised here.
    """
    try:
        names = os.listdir(PROC)
    except OSError as error:
        if error.errno in _OUT_OF_DESCRIPTORS:
            raise
        return None
    return {int(name) for name in names if name.isdigit()}


def process_table() -> list[ProcessRecord] | None:
    """Return the record of every process that has not ended; None where there is no ``/proc``.

    Raises:
        OSError: Out of descriptors; raised here.
    """
    pids = process_ids()
    if pids is None:
        return None
    records = map(process_record, pids)
    return [record for record in records if record and not record.ended]


def find_token(pid: int) -> str | None:
    """Return the run token in the process's environment; empty when it has none or it cannot be read.

    Returns:
        None while it is in the middle of an exec, when the old environment is gone and the new one not there.

    Raises:
        OSError: Out of descriptors; raised here.
    """
    environ = _read(f"{PROC}/{pid}/environ")
    if environ == b"" and _in_exec(pid):
        return None
    _, found, rest = (b"\0" + (environ or b"")).partition(b"\0" + RUN_VARIABLE.encode() + b"=")
    return rest.partition(b"\0")[0].decode("ascii", "replace") if found else ""


def run_token(pid: int) -> str:
    """Do the same as `find_token`, with an empty string in the middle of an exec too."""
    return find_token(pid) or ""


def _in_exec(pid: int) -> bool:
    """Say whether a process whose environment was read as empty may have one all the same."""
    # Linux, fs/exec.c: the new memory takes its place first, and the bounds of the environment are set last.
    # An empty one has bounds, and they are equal; what has no memory is a thread of the kernel, or ending.
    fields = _stat(pid)
    if len(fields) < 49 or fields[20] == b"0":
        return False
    first, last = fields[47:49]
    return last == b"0" or first != last


def _stat(pid: int) -> list[bytes]:
    """Return the fields of ``/proc/PID/stat`` from the third on; none when there is no such process."""
    raw = _read(f"{PROC}/{pid}/stat")
    return raw[raw.rindex(b")") + 2 :].split() if raw else []


def kill_verified(pid: int, start: int) -> bool:
    """Send SIGKILL to the one process that has this pid and this start time; False when it is not there.

    Raises:
        OSError: Out of descriptors; raised here.
    """
    if pid <= 1 or pid == os.getpid():
        return False
    # RACE: (1) the table is read, (2) that process ends and its pid goes to another, (3) we signal the pid.
    # The start time is compared after the pidfd was opened: it is either the right process or not used
    # (tests/unit/test_races_supervision.py::test_a_pid_that_changes_hands_behind_the_table).
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno in _OUT_OF_DESCRIPTORS:
            raise
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
    """Return a file of ``/proc``; None when it is gone, or not ours to read; OSError without descriptors."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _OUT_OF_DESCRIPTORS:
            raise
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
