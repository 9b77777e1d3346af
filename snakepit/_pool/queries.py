"""Questions about a pool's state, asked on any thread and answered on the manager's.

Owns nothing but one question and its answer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from .._core import model as m
from .._core.model import Worker
from .._core.numbers import WorkerInfo
from .._core.scheduler import Scheduler
from .._supervision import reports as r
from .channel import Channel
from .loans import Returned

__all__ = ("Query", "describe_worker", "refuse_late")


class Query:
    """A question from another thread, answered on the manager's.

    Args:
        ask: Called with the scheduler.
    """

    def __init__(self, ask: Callable[[Scheduler], Any]) -> None:
        self._ask = ask
        self._done = threading.Event()
        self._answer: Any = None

    def answer(self, scheduler: Scheduler | None) -> None:
        """THREAD: manager.  Answer; without a scheduler the pool is gone."""
        try:
            if scheduler is not None:
                self._answer = self._ask(scheduler)
        finally:
            self._done.set()

    def wait(self, timeout_s: float | None) -> Any:
        """Return the answer, or None when the pool is gone or does not answer in time."""
        self._done.wait(timeout_s)
        return self._answer


def describe_worker(worker: Worker, now: float) -> WorkerInfo:
    """Return what users see of a worker."""
    return WorkerInfo(
        worker_id=worker.worker_id,
        slot=worker.slot.index,
        incarnation=worker.slot.incarnation,
        pid=worker.pid,
        state=worker.state.value,
        sessions=tuple(worker.sessions),
        requests=worker.requests,
        uptime_s=now - worker.spawned_at,
        rss_bytes=worker.rss_bytes,
    )


def refuse_late(item: object, error: BaseException | None = None) -> None:
    """Answer what was posted to a pool that has ended, so that nobody waits for it and nothing stays open.

    Args:
        item: Posted.
        error: What the pool refuses requests with, or None.
    """
    if isinstance(item, Query):
        item.answer(None)
    elif isinstance(item, m.WorkersWanted):
        if not item.waiter.done():
            item.waiter.set_exception(error or RuntimeError("the pool is shut down"))
    elif isinstance(item, r.Spawned):
        Channel(item.request_fd, item.reply_fd, item.claim_read_fd, item.claim_write_fd).close()
    elif isinstance(item, Returned):
        item.loan.link.channel.close()
