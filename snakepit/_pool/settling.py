"""The end of each request as its caller sees it: futures, waiters and telemetry.

THREAD: manager.  Owns what was decided and not told yet.  Users' code runs here and nowhere else on this thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from .. import telemetry
from .._clock import monotonic_s
from .._core import model as m
from .._core.model import Outcome, Request
from ..adapters import Adapter
from ..config import PoolConfig
from ..errors import InternalError
from .arrivals import Reply
from .ledger import Ledger
from .quiet import QuietLogger, quietly

__all__ = ("Settler",)

_log = QuietLogger("snakepit.pool")


class Settler:
    """Decides at once who won a request (the ledger's word), and tells users at the end of the turn.

    Args:
        adapter: Its ``process_response`` shapes results.
        ledger: Where each end is counted.
        config: For what counts as a slow callback.
        name: The pool's name.
        answer: Takes what the scheduler has to hear of an action, once those at hand are done.
    """

    def __init__(
        self, adapter: Adapter, ledger: Ledger, config: PoolConfig, name: str, answer: Callable[[m.Unheard], object]
    ) -> None:
        self._adapter = adapter
        self._ledger = ledger
        self._config = config
        self._name = name
        self._answer = answer
        self._shapes = type(adapter).process_response is not Adapter.process_response
        self._decided: deque[tuple[Any, Reply | None]] = deque()

    def take(self, action: Any) -> None:
        """Note an action that users will see; a request that has ended before is dropped."""
        if isinstance(action, m.Fail):
            if not self._ledger.settle(action.request, action.outcome):
                if action.loss_of is not None:
                    self._answer(m.Unheard(action.loss_of))
                return
        elif isinstance(action, m.Cancel) and not self._ledger.settle(action.request, Outcome.CANCELLED):
            return
        self._decided.append((action, None))

    def resolve(self, action: m.Resolve, reply: Reply | None) -> None:
        """Count an answered request, begin the worker's next one at the same instant, and note what to tell."""
        if reply is None:
            raise InternalError(f"{action.request!r} resolved without a reply")
        request = action.request
        # A pickled result counts as completed until it fails to load: then `_deliver_reply` corrects the count.
        worker = request.worker
        following = worker.sent[0] if worker is not None and worker.sent else None
        if self._ledger.finish(request, Outcome.COMPLETED if reply.good else Outcome.ERROR, following):
            self._decided.append((action, reply))

    def fail_all(self, requests: Iterable[Request], error: BaseException) -> None:
        """End every request that has not ended."""
        for request in list(requests):
            self.take(m.Fail(request, error, Outcome.ERROR))

    def settle(self) -> None:
        """Settle futures, wake waiters and emit events, in the order in which they were decided."""
        while self._decided:
            action, reply = self._decided.popleft()
            began = monotonic_s()
            try:
                self._deliver(action, reply)
            except BaseException as error:
                # A done-callback of the user's raised something that the future's own guard lets through.
                _log.error("pool %r: a callback raised", self._name, exc_info=error)
                self._end_anyway(action, error)
            took_s = monotonic_s() - began
            if took_s > self._config.callback_slow_s and not isinstance(action, m.Emit):
                self._emit_slow(action, took_s)

    def _deliver(self, action: Any, reply: Reply | None) -> None:
        if isinstance(action, m.Emit):
            telemetry.execute(action.event, action.measurements, action.metadata)
        elif isinstance(action, m.Notify):
            if action.error is None:
                action.waiter.set_result(None)
            else:
                action.waiter.set_exception(action.error)
        elif isinstance(action, m.Resolve):
            assert reply is not None
            self._deliver_reply(action.request, reply)
        elif isinstance(action, m.Fail):
            self._report(action.request, action.outcome)
            action.request.future.set_exception(action.error)
        elif isinstance(action, m.Cancelled):
            self._report(action.request, Outcome.CANCELLED)
        elif isinstance(action, m.Cancel):
            self._report(action.request, Outcome.CANCELLED)
            action.request.future.cancel_for_pool()
        else:
            raise InternalError(f"unknown action {action!r}")

    @staticmethod
    def _end_anyway(action: Any, error: BaseException) -> None:
        """End the future of an action that raised before it could."""
        # INVARIANT: what left `_decided` is counted as ended, so its future is done whatever went wrong.
        future = action.request.future if isinstance(action, (m.Resolve, m.Fail, m.Cancel)) else None
        if future is not None and not future.done():
            future.set_exception(action.error if isinstance(action, m.Fail) else error)

    def _deliver_reply(self, request: Request, reply: Reply) -> None:
        value: Any = None
        try:
            value, error = reply.load()
            if error is None and self._shapes:
                value = self._adapter.process_response(request.command, value)
        except BaseException as raised:
            # Also a SystemExit: this thread must live, and the future must end.
            error = raised
        if error is not None and reply.good:
            self._ledger.recount(request, Outcome.COMPLETED, Outcome.ERROR)
        self._report(request, Outcome.COMPLETED if error is None else Outcome.ERROR)
        future = request.future
        # Freed before users see the future: a held future must not hold its arguments.
        request.content = None
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    def _report(self, request: Request, outcome: Outcome) -> None:
        if not telemetry.enabled("snakepit.worker.request"):
            return
        now = monotonic_s()
        started_at = request.started_at if request.started_at is not None else now
        quietly(
            telemetry.execute,
            "snakepit.worker.request",
            {"duration_s": now - started_at, "queue_s": started_at - request.accepted_at},
            {
                "pool": self._name,
                "worker_id": request.worker.worker_id if request.worker is not None else None,
                "command": request.command,
                "session": request.session_id,
                "result": outcome.value,
            },
        )

    def _emit_slow(self, action: Any, took_s: float) -> None:
        command = action.request.command if hasattr(action, "request") else type(action).__name__
        _log.warning("pool %r: a callback for %r held the pool's thread for %.3f s", self._name, command, took_s)
        telemetry.execute(
            "snakepit.pool.callback_slow",
            {"duration_s": took_s},
            {"pool": self._name, "kind": "callback", "name": command},
        )
