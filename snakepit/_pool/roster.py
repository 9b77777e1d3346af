"""The live workers as users see them, with the memory they hold now.

Runs on callers' threads; owns nothing.
"""

from __future__ import annotations

import attrs

from .._clock import monotonic_s
from .._core.numbers import WorkerInfo
from .._core.scheduler import Scheduler
from .manager import Manager
from .queries import describe_worker

__all__ = ("live_workers",)


def live_workers(manager: Manager) -> tuple[WorkerInfo, ...]:
    """Return what is known of each live worker, by slot; empty when the pool is gone."""
    found: tuple[WorkerInfo, ...] | None = manager.ask(_described)
    return tuple(attrs.evolve(info, rss_bytes=info.rss_bytes or _rss_bytes(info.pid)) for info in found or ())


def _described(scheduler: Scheduler) -> tuple[WorkerInfo, ...]:
    workers = sorted(scheduler.board.workers.by_id.values(), key=lambda worker: worker.slot.index)
    return tuple(describe_worker(worker, monotonic_s()) for worker in workers)


def _rss_bytes(pid: int | None) -> int | None:
    if pid is None:
        return None
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except (psutil.Error, OSError):
        # Gone; or the host is out of descriptors, which is no reason to tell nothing at all.
        return None
