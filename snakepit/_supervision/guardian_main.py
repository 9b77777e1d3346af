"""The guardian's own program: it ends a host's workers when the host is gone.

Started by `_supervision/guardian` as ``python -I -S -E -B guardian_main.py HOST_PID HOST_START``, with the lifeline as
its fd 0.  One thread; it owns the list of live groups and runs.  It imports `_supervision/procfs`, which stands beside
it, and as little as possible from the standard library: it starts in milliseconds and stays small.

Lifeline, host to guardian, one line a message, as ASCII::

    run RUN          a pool has started; its workers carry SNAKEPIT_RUN=RUN-<n> in their environment
    end RUN          that pool has no process left
    + PID START      a worker's group, START as in field 22 of /proc/PID/stat, 0 where unknown
    - PID            that group is gone
    bye              treat as end of file

Anything else is ignored: no stray byte may end a live host's workers.

At end of file, or when the host is seen to exit, every group that is still listed and every process that
carries a listed run in its environment gets SIGKILL.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

if __name__ == "__main__":
    # Isolated mode searches no folder of ours.  At the end of the path, this one shadows nothing.
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    import procfs as _procfs  # type: ignore[import-not-found]  # run as a script, beside it
else:
    from . import procfs as _procfs

__all__ = ()

_READ_BYTES = 65536
_SWEEP_PAUSES_S = (0.01, 0.05, 0.1)
"""Pauses between the last sweeps; arbitrary, longer in sum than a child takes from vfork to exec."""
_SWEEP_LIMIT_S = 5.0
"""How long the sweeps go on at most; arbitrary."""


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
        host_gone = host == -1 or any(fd == host for fd, _ in poll.poll())
        data, at_end = _read_lifeline()
        *lines, rest = (rest + data).split(b"\n")
        leaving = host_gone or at_end
        for line in lines:
            leaving = _obey(line.decode("ascii", "replace"), groups, runs) or leaving
    if groups or runs:
        _kill_all(groups, runs)


def _host_pidfd(host_pid: int, host_start: int) -> int | None:
    """Return a pidfd of the host; None where there are none, -1 when the host is gone already."""
    try:
        pidfd = os.pidfd_open(host_pid)
    except ProcessLookupError:
        return -1
    except (OSError, AttributeError):
        return None
    # 0: the host was out of descriptors when it wanted to know.  It is our parent, or was.
    if host_start and _procfs.process_start(host_pid) != host_start:
        os.close(pidfd)
        return -1
    return pidfd


def _read_lifeline() -> tuple[bytes, bool]:
    """Return what is in the lifeline, and whether nothing can follow it."""
    parts: list[bytes] = []
    while True:
        try:
            part = os.read(0, _READ_BYTES)
        except BlockingIOError:
            return b"".join(parts), False
        except OSError:
            part = b""
        if not part:
            return b"".join(parts), True
        parts.append(part)


def _obey(line: str, groups: dict[int, int], runs: set[str]) -> bool:
    """Follow one message; True when it says goodbye."""
    verb, *words = line.split() or [""]
    try:
        if verb == "+":
            groups[int(words[0])] = int(words[1])
        elif verb == "-":
            groups.pop(int(words[0]), None)
        elif verb == "run":
            runs.add(words[0])
        elif verb == "end":
            runs.discard(words[0])
    except (ValueError, IndexError):
        return False
    return verb == "bye"


def _kill_all(groups: dict[int, int], runs: set[str]) -> None:
    """End every listed group and every process of a listed run, and look again until none turns up.

    Args:
        groups: ``{pid of the leader: its start time}``.
        runs: The first part of their run tokens.
    """
    deadline = time.monotonic() + _SWEEP_LIMIT_S
    pauses = list(_SWEEP_PAUSES_S)
    while True:
        found = False
        for pid, start in groups.items():
            found = _kill_group(pid, start) or found
        for record in _procfs.process_table() or ():
            if _procfs.run_token(record.pid).rpartition("-")[0] in runs:
                found = _procfs.kill_verified(record.pid, record.start) or found
        # RACE: (1) the host has made a child, (2) the host is killed, (3) the child execs and only now shows
        # its environment.  Hence some quiet sweeps before the end
        # (tests/unit/test_races_supervision.py::test_a_child_that_shows_its_token_late).
        if time.monotonic() > deadline or (not found and not pauses):
            return
        time.sleep(0.005 if found else pauses.pop(0))


def _kill_group(pid: int, start: int) -> bool:
    """Send SIGKILL to the group if its leader is the listed one; True when that may have ended something."""
    record = _procfs.process_record(pid)
    if pid <= 1 or (record.start != start if record else os.path.isdir(_procfs.PROC)):
        return False
    try:
        # A zombie leader still reserves its pgid: the start time alone decides about the signal.
        if os.getpgid(pid) != pid:
            return False
        os.killpg(pid, signal.SIGKILL)
    except OSError:
        return False
    return record is None or not record.ended


if __name__ == "__main__":
    _guard(int(sys.argv[1]), int(sys.argv[2]))
