"""Which processor runs what: the host on one, everything that it has started on the others.

A pipe's round trip takes some 4 microseconds when both ends share a processor and ten times as much when they do
not, and the kernel moves processes between the two as it likes.  Where that decides a figure it is decided here.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

_ALL = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def can_pin() -> bool:
    """Say whether this machine has two processors and lets us choose."""
    return len(_ALL) >= 2


def pin_host() -> None:
    """Keep this process on the first processor; what it starts from now on begins there too."""
    if can_pin():
        _move(os.getpid(), {_ALL[0]})


def pin_workers() -> None:
    """Move every process below this one to the other processors, with all its threads."""
    if can_pin():
        for child in psutil.Process().children(recursive=True):
            _move(child.pid, set(_ALL[1:]))


def unpin() -> None:
    """Let this process and those below it run anywhere."""
    if can_pin():
        for pid in (os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))):
            _move(pid, set(_ALL))


def _move(pid: int, processors: set[int]) -> None:
    with suppress(OSError):  # it has ended meanwhile
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                os.sched_setaffinity(int(thread.name), processors)
