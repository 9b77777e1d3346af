"""Measures the resident memory of process groups.

Runs on the watchdog's thread, owns no state.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from .procfs import process_table

__all__ = ("group_rss_bytes",)


def group_rss_bytes(pgids: Iterable[int]) -> dict[int, int]:
    """Return ``{pgid: resident bytes of its processes together}``."""
    table = process_table()
    if table is None:
        return _by_psutil(pgids)
    total = dict.fromkeys(pgids, 0)
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    for record in table:
        if record.pgid in total:
            total[record.pgid] += record.rss_pages * page_bytes
    return total


def _by_psutil(pgids: Iterable[int]) -> dict[int, int]:
    """Measure where there is no ``/proc``; slower."""
    import psutil

    total = dict.fromkeys(pgids, 0)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            pgid = os.getpgid(process.pid)
            if pgid in total:
                total[pgid] += process.memory_info().rss
    return total
