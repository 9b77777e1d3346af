"""When the manager lends workers to callers, and what it does with those that come back.

THREAD: manager.  Owns the decision; the loans themselves are shared (`_pool/loans`).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from .. import telemetry
from .._core import model as m
from .._core.model import Worker
from .._core.scheduler import Scheduler
from ..errors import ResultError
from .arrivals import Arrival
from .link import Link
from .links import Links, unreachable
from .loans import Lender, Returned

__all__ = ("Lending",)

_MODE = "SNAKEPIT_DIRECT_CALLS"
"""For tests, a variable of the environment: "off" lends nothing, "on" lends whatever the service time."""

QUICK_S = 0.001
"""Longest recent service time of a worker that is lent.  Half of what a caller waits by itself
(`_pool/direct.LIMIT_MS`): beyond it the detour through the pool's thread is small beside the work."""


class Lending:
    """Lends and recalls the workers of one pool.

    Args:
        lender: The loans.
        links: The conversations with all workers.
        scheduler: Says who idles.
        handle: Hands the scheduler an event and acts.
        take_arrivals: Handles what a worker has answered.
        receive: Reads what a worker has written.
        shapes: Results pass the adapter's ``process_response``, which runs on the pool's thread.
    """

    def __init__(
        self,
        lender: Lender,
        links: Links,
        scheduler: Scheduler,
        handle: Callable[[object], None],
        take_arrivals: Callable[[Link, list[Arrival]], None],
        receive: Callable[[Link], None],
        shapes: bool,
    ) -> None:
        self.lender = lender
        self._links = links
        self._scheduler = scheduler
        self._handle = handle
        self._take_arrivals = take_arrivals
        self._receive = receive
        mode = os.environ.get(_MODE, "auto")
        self._possible = links.can_pause and not shapes and mode != "off"
        self._quick_s = float("inf") if mode == "on" else QUICK_S
        self._answered: dict[Link, None] = {}

    def answered(self, link: Link) -> None:
        """Note that a worker has answered in this turn."""
        if self._possible:
            self._answered[link] = None

    def recall(self) -> None:
        """Take every loan back, so that the scheduler knows of all that was done without it."""
        loans = self.lender.recall()
        for loan in loans:
            if loan.request is not None:
                loan.link.away = None if loan.holder is None else loan
                if loan.is_answered:
                    # In time: what is left is the caller's to load.
                    loan.request.timeout_s = None
                self._handle(m.Adopted(loan.link.worker_id, loan.request))
        for loan in loans:
            if loan.served:
                self._answered[loan.link] = None
                self._handle(m.Served(loan.link.worker_id, loan.served))
        for loan in loans:
            if loan.request is None:
                # Before anybody's request is sent to it: it may have written what nobody asked for, or have ended.
                self._receive(loan.link)

    def returned(self, event: Returned) -> None:
        """Go on with a loan that was in a caller's hands."""
        link = event.loan.link
        if link.away is not event.loan:
            # Given back twice, by a caller who was interrupted the first time.
            return
        link.away = None
        self._links.pause(link, False)
        if event.torn is not None:
            what = f"a reply of worker {link.worker_id} was lost in its caller's thread: {event.torn!r}"
            self._handle(m.Misbehaved(link.worker_id, ResultError(what)))
        elif event.arrivals:
            self._take_arrivals(link, event.arrivals)
        if link.channel.closed_by_worker:
            self._links.stop_reading(link)
            self._handle(m.PipeClosed(link.worker_id))
        elif link.channel.request_fd is None:
            self._handle(unreachable(link))
        self._links.watch_writes(link)
        deferred, link.deferred = link.deferred, []
        for act in deferred:
            act()

    def lend(self) -> bool:
        """At the end of a turn: lend who has answered in it and idles.  True when something is lent."""
        answered, self._answered = self._answered, {}
        if answered and not telemetry.enabled("snakepit.worker.request"):
            self.lender.lend([link for link in answered if self._may_lend(link)])
        return bool(self.lender)

    def _may_lend(self, link: Link) -> bool:
        worker: Worker | None = self._scheduler.worker(link.worker_id)
        if worker is None or link not in self._links or not self._scheduler.lifecycle.may_lend(worker):
            return False
        if link.channel.wants_write:
            return False
        return worker.service_s is not None and worker.service_s <= self._quick_s

    def close(self) -> None:
        """Let go of every loan: the pool has ended, and what is in a caller's hands is closed by the caller."""
        for loan in self.lender.recall():
            loan.link.away = None if loan.holder is None else loan
