"""The descriptors of workers that this host holds, so that a forked child can close its copies.

Runs on the watchdog's thread; the fork handler on the only thread of a forked child.  Owns the set.
"""

from __future__ import annotations

import contextlib
import os

from .._fds import lifted

__all__ = ("drop", "hold", "let_go", "pipe")

_held: set[int] = set()


def hold(fd: int) -> int:
    """Note a descriptor and return it."""
    _held.add(fd)
    return fd


def let_go(fd: int) -> None:
    """Forget a descriptor that now belongs to somebody else."""
    _held.discard(fd)


def drop(fd: int) -> None:
    """Close a descriptor."""
    _held.discard(fd)
    os.close(fd)


def pipe() -> tuple[int, int]:
    """Return a close-on-exec pipe with numbers above 2, which are a child's own; both ends are noted."""
    read_fd, write_fd = os.pipe()
    return hold(lifted(read_fd)), hold(lifted(write_fd))


def _close_all_after_fork() -> None:
    while _held:
        with contextlib.suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_close_all_after_fork)
