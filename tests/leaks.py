"""Finds what a test left behind: processes, threads, file descriptors.

Runs on the main thread of the test process and owns one environment variable, a mark that every
process started by this run inherits; a process that carries it is ours even when its parent is gone
and it has left its session.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

__all__ = ("Snapshot", "assert_no_leaks", "end_processes", "is_gone", "leaks_since", "take_snapshot", "wait_until")

T = TypeVar("T")

MARK_NAME = "LEAK_CHECK_RUN"
"""Not SNAKEPIT_...: the bridges take those variables out of what user code and children see."""
MARK = uuid.uuid4().hex
os.environ[MARK_NAME] = MARK

FD_DIRECTORY = Path("/proc/self/fd") if Path("/proc/self/fd").exists() else Path("/dev/fd")
TRACKER_MODULES = ("multiprocessing.resource_tracker", "loky.backend.resource_tracker")
PROCESS_SETTLE_S = 5.0
"""How long what a test has let go may take to be gone; arbitrary, far above every grace in the tests."""


@dataclass(frozen=True)
class Snapshot:
    """What exists at one moment.

    Attributes:
        pids: Every process of the machine: what a test left is looked for among those that are not here.
        threads: The live Python threads.
        fds: ``{(number, target)}`` of the open descriptors.
    """

    pids: frozenset[int]
    threads: frozenset[threading.Thread]
    fds: frozenset[tuple[int, str]]


def is_gone(pid: int) -> bool:
    """Say whether a process has ended; a zombie has."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_until(predicate: Callable[[], T], timeout_s: float = 10.0, what: str = "") -> T:
    """Poll until ``predicate()`` is true and return what it returned.

    For facts that no event announces, such as the exit of a stranger's process; what a test can
    wait for directly (a future, a gate, an event) it waits for directly.

    Args:
        predicate: Called every 5 ms.
        timeout_s: Seconds, > 0.
        what: The awaited fact, for the message.

    Raises:
        AssertionError: Still false after ``timeout_s``; raised here.
    """
    never = threading.Event()
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"not true within {timeout_s} s: {what or predicate}")
        never.wait(0.005)


def take_snapshot() -> Snapshot:
    """Return what exists now."""
    return Snapshot(frozenset(psutil.pids()), frozenset(threading.enumerate()), _fds())


def leaks_since(before: Snapshot) -> list[str]:
    """Return one line for each process, thread and descriptor that ``before`` does not have."""
    now = take_snapshot()
    lines = [f"process {text}" for text in _ours(now.pids - before.pids).values()]
    lines += [
        f"thread {thread.name!r} (daemon={thread.daemon})"
        for thread in now.threads - before.threads
        if not thread.name.startswith("pytest_timeout")
    ]
    tracker_fds = _tracker_fds()
    lines += [f"fd {fd} -> {target}" for fd, target in sorted(now.fds - before.fds) if fd not in tracker_fds]
    return lines


def assert_no_leaks(before: Snapshot, timeout_s: float = PROCESS_SETTLE_S) -> None:
    """Wait until nothing is left over; what stays is named, and its processes are ended.

    Args:
        before: Taken before the test.
        timeout_s: Seconds that what is ending may still take.

    Raises:
        AssertionError: With one line a leak; raised here.
    """
    # A full collection costs more than most unit tests, so it runs only when something is left.
    if not leaks_since(before):
        return
    gc.collect()
    try:
        wait_until(lambda: not leaks_since(before), timeout_s)
    except AssertionError:
        leaks = leaks_since(before)
        end_processes(before)
        if leaks:
            listing = "\n  ".join(leaks)
            raise AssertionError(f"left behind {timeout_s} s after the test:\n  {listing}") from None


def end_processes(before: Snapshot) -> None:
    """Send SIGKILL to every process of ours that ``before`` does not have, and reap our children."""
    for pid in _ours(take_snapshot().pids - before.pids):
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


def _ours(pids: Iterable[int]) -> dict[int, str]:
    """Return ``{pid: description}`` of those that descend from this process or carry its mark."""
    found = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            if not (_has_mark(process) or os.getpid() in (parent.pid for parent in process.parents())):
                continue
            with process.oneshot():
                command = [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
                text = f"{pid} ({process.name()}, {process.status()}, parent {process.ppid()}): {command}"
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        # The helpers of multiprocessing and loky live as long as the host, by design.
        if not any(module in text for module in TRACKER_MODULES):
            found[pid] = text
    return found


def _has_mark(process: psutil.Process) -> bool:
    """Say whether a process has inherited our mark, as far as one may know."""
    try:
        return process.environ().get(MARK_NAME) == MARK
    except (psutil.ZombieProcess, psutil.AccessDenied, OSError):
        return False


def _fds() -> frozenset[tuple[int, str]]:
    found = set()
    for name in os.listdir(FD_DIRECTORY):
        try:
            if FD_DIRECTORY.parts[1] == "proc":
                target = os.readlink(FD_DIRECTORY / name)
            else:
                status = os.fstat(int(name))
                target = f"mode {status.st_mode:o} inode {status.st_ino}"
        except OSError:  # the descriptor of the listing itself
            continue
        found.add((int(name), target))
    return frozenset(found)


def _tracker_fds() -> set[int]:
    """Return our ends of the resource trackers' pipes."""
    trackers = (getattr(sys.modules.get(name), "_resource_tracker", None) for name in TRACKER_MODULES)
    return {tracker._fd for tracker in trackers if tracker is not None and tracker._fd is not None}
