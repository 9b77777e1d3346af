"""What the parts of the scheduler share: the tables, the clock of the current event, the actions so far.

Pure; used by the scheduler on the manager's thread.
"""

from __future__ import annotations

import copy
import random
from typing import Any

from ..config import PoolConfig
from .lanes import Queue, Tally
from .model import Action, Emit, PoolState, Request, RequestState, Worker
from .timers import Timers
from .workers import WorkerTable

__all__ = ("Board", "fresh")


def fresh(error: BaseException) -> BaseException:
    """Return a copy of an error that several callers are to get, with its cause and no traceback.

    Raised, an exception keeps the frames of who raised it: one object for all would mix their tracebacks, and for
    as long as the pool holds it nothing that those frames refer to is freed, the executor itself included.
    """
    made = copy.copy(error)
    made.__cause__ = error.__cause__
    return made


class Board:
    """The scheduler's common state.

    Args:
        name: The pool's name.
        size: Number of workers, >= 1.
        min_workers: Workers kept at all times, 0 to ``size``.
        config: The pool's settings.
        rng: Source of jitter.

    Attributes:
        now: Time of the event that is being handled, monotonic seconds.
        looked_at: When the pipes that are read now were last seen empty.
        horizon: The last seq accepted when that event was taken up.
        queue: Requests that wait for no worker in particular.
        ahead: Requests sent ahead of time to all workers together.
        tally: Counts the requests in all lanes.
    """

    def __init__(
        self, name: str, size: int, min_workers: int, config: PoolConfig, rng: random.Random
    ) -> None:
        self.name = name
        self.size = size
        self.min_workers = min_workers
        self.config = config
        self.rng = rng
        self.state = PoolState.OPEN
        self.now = 0.0
        self.looked_at = 0.0
        self.horizon = 0
        self.tally = Tally()
        self.queue = Queue(self.tally)
        self.timers = Timers()
        self.workers = WorkerTable(name, size, self.tally)
        self.ahead = 0
        self.actions: list[Action] = []
        self.broken_by: BaseException | None = None

    def act(self, action: Action) -> None:
        self.actions.append(action)

    def emit(self, event: str, measurements: dict[str, Any], **metadata: Any) -> None:
        metadata["pool"] = self.name
        self.actions.append(Emit(f"snakepit.{event}", measurements, metadata))

    def numbers(self) -> str:
        """Return the pool's numbers for a message."""
        workers = self.workers
        return (
            f"pool {self.name!r}: size {self.size}, busy {workers.busy}, idle {workers.available},"
            f" starting {workers.starting}, queued {self.tally.count + self.ahead}"
        )

    def times(self, request: Request) -> str:
        """Return a request's times for a message."""
        if request.started_at is None:
            return f"waited {self.now - request.accepted_at:.3f} s in the queue and never ran"
        return (
            f"waited {request.started_at - request.accepted_at:.3f} s in the queue"
            f" and ran for {self.now - request.started_at:.3f} s"
        )

    def demand(self) -> int:
        """Return how many workers the common queue could use now, as far as its first request tells."""
        entry = self.queue.peek()
        first = None if entry is None else entry[4]
        return len(self.queue) + (first.weight - 1 if first is not None and first.splits else 0)

    def begin(self, worker: Worker, request: Request, since: float | None = None) -> None:
        """Note that the request is the oldest of its worker, from now on or ``since`` then: its run time begins."""
        request.started_at = started_at = self.now if since is None else since
        if request.ahead:
            request.ahead = False
            self.ahead -= 1
        if request.timeout_s is not None and request.state is RequestState.SENT:
            self.timers.set(request, started_at + request.timeout_s, "run")
