"""The nouns of a pool: requests, workers, slots; the events and actions of ``_core/events`` are found here too.

Pure data; no thread, no I/O.  Requests are made by callers and owned by the scheduler from their
acceptance to their end; workers and slots are owned by the scheduler.
"""

from __future__ import annotations

import signal as signals
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any

from .events import *  # noqa: F403  # one vocabulary: m.Request, m.Submitted, m.Dispatch

if TYPE_CHECKING:
    from .affinity import Session
    from .lanes import Entry, Lane

__all__ = ()


class _Enum(Enum):
    """An enum whose members hash by identity, in C: they are keys on every request's way."""

    __hash__ = object.__hash__


class PoolState(_Enum):
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"
    BROKEN = "broken"


class WorkerState(_Enum):
    STARTING = "starting"
    IDLE = "idle"
    CHECKING = "checking"
    """Idle for its users, with a health check in its pipe."""
    BUSY = "busy"
    CONDEMNED = "condemned"


class RequestState(_Enum):
    QUEUED = "queued"
    SENT = "sent"
    DONE = "done"


class RequestKind(_Enum):
    USER = "user"
    SETUP = "setup"
    """A command of a session's set-up; nobody waits for it but the session's next request."""
    PING = "ping"
    SESSION_END = "session_end"
    """Not answered by the worker; in its lane only so that it is sent in order."""


class Outcome(_Enum):
    """How a request ended, as it is counted in ``PoolStats`` and told by ``snakepit.worker.request``."""

    COMPLETED = "ok"
    ERROR = "error"
    DIED = "died"
    CANCELLED = "cancelled"
    QUEUE_TIMEOUT = "queue_timeout"
    COMMAND_TIMEOUT = "timeout"


class ExitReason(_Enum):
    """Why a worker ended; the value appears in ``snakepit.worker.exited``."""

    CRASH = "crash"
    START_FAILED = "start_failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    PROTOCOL = "protocol"
    HEALTH = "health"
    MAX_REQUESTS = "max_requests"
    MAX_AGE = "max_age"
    MAX_RSS = "max_rss"
    RECYCLED = "recycled"
    IDLE = "idle"
    SHUTDOWN = "shutdown"
    TERMINATED = "terminated"
    BROKEN = "broken"


EXPECTED_EXITS = frozenset(
    (
        ExitReason.MAX_REQUESTS,
        ExitReason.MAX_AGE,
        ExitReason.MAX_RSS,
        ExitReason.RECYCLED,
        ExitReason.IDLE,
        ExitReason.SHUTDOWN,
        ExitReason.TERMINATED,
    )
)
"""Exits that somebody asked for: they do not warn and do not count against the restart budget."""


class Request:
    """One accepted request (or one of the pool's own) on its way through the pool.

    Attributes:
        future: What the caller holds; None for the pool's own requests.
        content: The encoded request, opaque to the scheduler.
        command: Name for messages and events.
        seq: Place in the order of acceptance, given under the admission lock.
        weight: Items it counts for in the statistics (a chunk of callables: its length).
        size_bytes: Encoded bytes it holds while it waits for the first time.
        encoded_bytes: The same for good; ``math.inf``: it is not encoded yet.
        rank: Priority negated, and never lower than that of its session's previous request.
        ahead: It was sent ahead and is not the oldest of its worker yet.
        token: It was sent with a claim token, which the worker takes when it begins it.
        splits: It is a bulk of items, of which some at a time are sent as a request of their own (``split``).
        answers: What the worker has answered to the items that travel in this request: values and exceptions, in
            order; None when it is a request of one answer.
    """

    # INVARIANT: `entry` is the one live entry of this request in a lane (I1, I7), None when it is in no lane.
    # INVARIANT: `timer` is the one live deadline: queue time-out while queued, run time-out while oldest.
    # LOCK: `settled` and `counted_running` belong to the ledger's lock, the rest to the manager's thread.
    __slots__ = (
        "accepted_at",
        "affinity",
        "ahead",
        "answers",
        "chunk",
        "command",
        "content",
        "counted_running",
        "encoded_bytes",
        "entry",
        "future",
        "kind",
        "lane",
        "priority",
        "queue_deadline",
        "rank",
        "sent_at",
        "seq",
        "session",
        "session_id",
        "settled",
        "setup",
        "size_bytes",
        "splits",
        "started_at",
        "state",
        "timeout_s",
        "timer",
        "token",
        "ttl_s",
        "weight",
        "worker",
    )

    def __init__(
        self,
        content: Any,
        command: str,
        *,
        future: Any = None,
        kind: RequestKind = RequestKind.USER,
        session_id: str | None = None,
        affinity: str = "strict",
        setup: tuple[Any, ...] = (),
        ttl_s: float | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        queue_deadline: float | None = None,
        accepted_at: float = 0.0,
        weight: int = 1,
        size_bytes: int = 0,
        chunk: object = None,
    ) -> None:
        self.content = content
        self.command = command
        self.future = future
        self.kind = kind
        self.session_id = session_id
        self.affinity = affinity
        self.setup = setup
        self.ttl_s = ttl_s
        self.priority = priority
        self.rank = -priority
        self.timeout_s = timeout_s
        self.queue_deadline = queue_deadline
        self.accepted_at = accepted_at
        self.weight = weight
        self.size_bytes = size_bytes
        self.encoded_bytes: float = size_bytes
        self.chunk = chunk
        self.seq = 0
        self.state = RequestState.QUEUED
        self.session: Session | None = None
        self.entry: Entry | None = None
        self.lane: Lane | None = None
        self.timer: Any = None
        self.worker: Worker | None = None
        self.sent_at = 0.0
        self.started_at: float | None = None
        self.ahead = False
        self.token = False
        self.splits = False
        self.answers: list[Any] | None = None
        self.settled = False
        self.counted_running = False

    def __repr__(self) -> str:
        return f"<Request {self.seq} {self.command} {self.state.value}>"

    def claim(self) -> bool:
        """Move the future from pending to running; False when it was cancelled first."""
        return self.future is None or self.future.claim()

    def split(self, most: int) -> Request | None:
        """Take the first items, ``most`` at most, out of a bulk as a claimed request; None when it was cancelled first.

        Once none is left the bulk is settled.
        """
        part: Request | None = self.future.split(most)
        return part


class Slot:
    """One of the pool's places for a worker; outlives the processes that fill it."""

    __slots__ = ("failures", "incarnation", "index", "respawn", "timer", "worker")

    def __init__(self, index: int) -> None:
        self.index = index
        self.incarnation = 0
        self.worker: Worker | None = None
        self.failures = 0
        self.timer: Any = None
        self.respawn = False


class Worker:
    """One incarnation of a slot: what the scheduler knows about one process.

    Attributes:
        sent: Requests in the worker's pipe, oldest first; the first is the one that runs.
        lane: Queued requests that only this worker may run.
        service_s: Recent time of one request, or item of a bulk, smoothed; None before the first.
        item_s: The same, but a single long one weighs less: no other item waits for long behind a wrong guess.
        skips: Frames that the host took back and the worker has yet to step over.
        recalling: A take-back is under way, or found nothing and has to wait for the worker's next reply.
        used: Something was sent to it after its handshake.
        proven: It has answered something after its handshake.
        closed: It closed its reply pipe, so nothing more is sent to it.
        retire: Why it is to be replaced once it may go (``_core/retirement``), or None.
        drain_by: Monotonic seconds until which a retiring worker waits for its strict sessions.
        overdue: It waits for them no longer.
        lined_up_at: Requests from which on it is to be replaced, when there is a most.
        expires_at: Monotonic seconds at which it is due for replacement, or None.
    """

    __slots__ = (
        "argv",
        "can_batch",
        "can_claim",
        "can_end_session",
        "closed",
        "drain_by",
        "expires_at",
        "idle_since",
        "item_s",
        "lane",
        "limits",
        "lined_up_at",
        "overdue",
        "pid",
        "proven",
        "ready_at",
        "reason",
        "recalling",
        "requests",
        "retire",
        "rss_bytes",
        "sent",
        "service_s",
        "sessions",
        "skips",
        "slot",
        "spawned_at",
        "start_error",
        "state",
        "timer",
        "used",
        "worker_id",
    )

    def __init__(self, worker_id: str, slot: Slot, lane: Lane, now: float) -> None:
        self.worker_id = worker_id
        self.slot = slot
        self.lane = lane
        self.state = WorkerState.STARTING
        self.sent: deque[Request] = deque()
        self.sessions: dict[str, Session] = {}
        self.pid: int | None = None
        self.argv: tuple[str, ...] = ()
        self.limits = ""
        self.spawned_at = now
        self.ready_at: float | None = None
        self.idle_since = now
        self.requests = 0
        self.used = False
        self.proven = False
        self.closed = False
        self.expires_at: float | None = None
        self.service_s: float | None = None
        self.item_s: float | None = None
        self.can_batch = False
        self.can_claim = False
        self.can_end_session = False
        self.skips = 0
        self.recalling = False
        self.rss_bytes: int | None = None
        self.retire: ExitReason | None = None
        self.drain_by = 0.0
        self.overdue = False
        self.lined_up_at = 0
        self.reason: ExitReason | None = None
        self.start_error: BaseException | None = None
        self.timer: Any = None

    def __repr__(self) -> str:
        return f"<Worker {self.worker_id} {self.state.value}>"

    @property
    def in_service(self) -> bool:
        """True while it is among the first to be given work that others could do as well."""
        return self.retire is None and not self.closed


def describe_exit(exit_code: int | None, signal: int | None) -> str:
    """Put an exit status into words, e.g. ``exit code 3`` or ``signal 11 (SIGSEGV)``."""
    if signal is not None:
        try:
            return f"signal {signal} ({signals.Signals(signal).name})"
        except ValueError:
            return f"signal {signal}"
    return "an unknown exit status" if exit_code is None else f"exit code {exit_code}"
