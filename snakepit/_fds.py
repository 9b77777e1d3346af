"""Descriptors with numbers above 2: those below are standard streams, also while a host has them closed.

Pure but for the system calls; used on any thread.
"""

from __future__ import annotations

import fcntl
import os

__all__ = ("lifted",)


def lifted(fd: int) -> int:
    """Return a new descriptor, or where the host runs with a standard stream closed, its copy above 2.

    Whoever prints there would write into it, and a child is given its own streams under these numbers.

    Args:
        fd: Just made, and closed here unless it is returned.

    Raises:
        OSError: Out of descriptors; raised here.
    """
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)
