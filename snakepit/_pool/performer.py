"""What the scheduler has decided about workers, done: requests sent, processes started and ended.

THREAD: manager.  Owns no state; what users see of a decision is `_pool/settling`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._core import model as m
from .._core.scheduler import Scheduler
from .._inbox import Inbox
from .._supervision.watchdog import Watchdog
from ..errors import InternalError
from .launch import Launcher
from .ledger import Ledger
from .links import Links, unreachable

__all__ = ("Performer",)


class Performer:
    """Performs the actions of one pool's scheduler that are about workers.

    Args:
        scheduler: Asked for the numbers about workers.
        links: The conversations with all workers.
        ledger: Told what is sent and taken back.
        inbox: For what the scheduler has to hear of later.
        launcher: How a worker is started.
        watchdog: Starts and ends processes.
        answer: Takes what the scheduler has to hear once the actions at hand are done.
        grace_s: Seconds that a polite end takes at most.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        links: Links,
        ledger: Ledger,
        inbox: Inbox,
        launcher: Launcher,
        watchdog: Watchdog,
        answer: Callable[[m.TakenBack], object],
        grace_s: float,
    ) -> None:
        self._scheduler = scheduler
        self._links = links
        self._ledger = ledger
        self._inbox = inbox
        self._launcher = launcher
        self._watchdog = watchdog
        self._answer = answer
        self._grace_s = grace_s

    def acts(self) -> dict[type, Callable[[Any], None]]:
        """Return ``{kind of action: what performs it}``."""
        return {
            m.Dispatch: self._dispatch,
            m.Spawn: self._spawn,
            m.Condemn: self._condemn,
            m.TakeBack: self._take_back,
            m.EndSession: self._end_session,
            m.Forget: lambda action: self._links.remove(action.worker.worker_id),
            m.Break: lambda action: self._ledger.refuse_with(action.error),
            m.Heal: lambda _: self._ledger.refuse(None),
        }

    def numbers(self) -> tuple[int, int, int, int, int, int]:
        """Return the numbers about workers: all, available, busy, starting, restarts, recycled."""
        lifecycle = self._scheduler.lifecycle
        return (*self._scheduler.board.workers.census(), lifecycle.restarts, lifecycle.recycled)

    def _dispatch(self, action: m.Dispatch) -> None:
        # RACE: 1. a worker begins the request, 2. somebody who has heard of that asks for the pool's numbers,
        # 3. this turn ends.  So they are published before the request is sent
        # (tests/integration/test_stats.py::test_a_worker_that_runs_is_busy).
        self._ledger.sent(action.requests, self.numbers())
        pid = action.worker.pid
        for request in action.requests:
            if request.future is not None:
                request.future._pid = pid
        link = self._links.get(action.worker.worker_id)
        if link is None:
            raise InternalError(f"{action.worker!r} has no link")
        link.send(action.requests)
        if link.channel.request_fd is None:
            # Posted, since the scheduler is in the middle of an event.
            self._inbox.post(unreachable(link))
        if link.channel.wants_write:
            self._links.watch_writes(link)

    def _spawn(self, action: m.Spawn) -> None:
        self._watchdog.spawn(action.worker.worker_id, self._launcher.spec_for(action.worker))

    def _condemn(self, action: m.Condemn) -> None:
        worker_id = action.worker.worker_id
        link = self._links.get(worker_id)
        if action.kill:
            self._watchdog.kill(worker_id)
            return
        if link is not None and link.put_off(self._condemn, action):
            return
        if action.polite and link is not None:
            link.channel.close_requests()
        self._watchdog.condemn(worker_id, grace_s=self._grace_s if action.polite else 0.0)
        if link is not None:
            self._links.watch_writes(link)

    def _take_back(self, action: m.TakeBack) -> None:
        link = self._links.get(action.worker.worker_id)
        count = 0 if link is None else link.channel.take_back(action.count)
        self._ledger.put_back(list(action.worker.sent)[len(action.worker.sent) - count :])
        # Told to the scheduler once the actions at hand are done: they were decided before.
        self._answer(m.TakenBack(action.worker.worker_id, count))

    def _end_session(self, action: m.EndSession) -> None:
        link = self._links.get(action.worker.worker_id)
        if link is not None and not link.put_off(self._end_session, action):
            link.end_session(action.session_id)
            self._links.watch_writes(link)
