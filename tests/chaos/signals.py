"""Signals that reach a worker of ours or nobody: a pid alone may have been given to another since it was read."""

from __future__ import annotations

import os
import signal
from pathlib import Path

__all__ = ("children_running", "is_alive", "send")


def _stat(pid: int) -> tuple[str, int, int, int] | None:
    """Return (state, parent, group, start time), or None when there is no such process."""
    try:
        text = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return None
    words = text[text.rindex(")") + 2 :].split()
    return words[0], int(words[1]), int(words[2]), int(words[19])


def send(pid: int, number: signal.Signals, *, must_run: str = "") -> bool:
    """Signal a process that leads a group of its own and is our child; False when there is none (any more).

    Args:
        pid: As the pool told it.
        number: The signal.
        must_run: Text that has to be in its command line, or nothing.
    """
    # RACE: 1. the pool tells a pid, 2. the process ends and is reaped, 3. the pid is given to another.  The
    # pidfd is opened first: what is then found to be our child is that process, or the signal reaches nobody.
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return False
    try:
        stat = _stat(pid)
        if stat is None:
            return False
        state, parent, group, _ = stat
        if state == "Z" or parent != os.getpid() or group != pid:
            return False
        assert group > 1
        if must_run and must_run not in _command_line(pid):
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def _command_line(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def children_running(program: str) -> list[int]:
    """Return our children whose command line names the program; one may be left out while another is reaped."""
    children = Path("/proc/self/task").glob("*/children")
    pids = []
    for path in children:
        try:
            pids += [int(word) for word in path.read_text().split()]
        except OSError:
            continue
    return [pid for pid in pids if program in _command_line(pid)]


def is_alive(pid: int, variable: str) -> int | None:
    """Return the start time of a process that has this in its environment and is no zombie, else None."""
    try:
        environment = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    stat = _stat(pid)
    if stat is None or stat[0] in "ZX" or variable.encode() not in environment:
        return None
    return stat[3]


def processes_with(variable: str) -> dict[int, int]:
    """Return ``{pid: start time}`` of the live processes that have ``NAME=value`` in their environment.

    Only those that lived at one and the same instant: each is looked at once more after the last was found.
    """
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (start := is_alive(int(entry), variable)) is not None:
            found[int(entry)] = start
    return {pid: start for pid, start in found.items() if is_alive(pid, variable) == start}
