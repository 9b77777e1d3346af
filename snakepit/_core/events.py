"""What happens to a pool, and what is to be done: the scheduler's events and actions.

Pure data; no thread, no I/O.  Events are past participles, actions imperatives.  Used through ``_core/model``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from .affinity import Session
    from .model import ExitReason, Outcome, Request, Worker

__all__ = (
    "Action",
    "Adopted",
    "Break",
    "Cancel",
    "Cancelled",
    "Close",
    "Condemn",
    "DeadlinePassed",
    "Dispatch",
    "Emit",
    "EndRequested",
    "EndSession",
    "Exited",
    "Fail",
    "Forget",
    "Heal",
    "Misbehaved",
    "Notify",
    "PipeClosed",
    "Ready",
    "RecycleRequested",
    "Replied",
    "Resolve",
    "RestartRequested",
    "RssMeasured",
    "Served",
    "SessionEnded",
    "ShutdownRequested",
    "Skipped",
    "Spawn",
    "SpawnRefused",
    "StartFailed",
    "Started",
    "Submitted",
    "TakeBack",
    "TakenBack",
    "Unheard",
    "WorkersWanted",
)

# Events -----------------------------------------------------------------------------------------------
# Those on every request's way are not frozen: that would make them twice as dear.


class Submitted:
    """Requests were accepted, in this order."""

    __slots__ = ("requests",)

    def __init__(self, *requests: Request) -> None:
        self.requests = requests


@attrs.frozen(eq=False)
class Cancelled:
    """The caller cancelled; the ledger has counted it and the future has ended."""

    request: Request


@attrs.frozen
class Ready:
    worker_id: str
    can_claim: bool = False
    can_end_session: bool = False
    can_batch: bool = False


@attrs.frozen
class Started:
    """The process exists; its handshake is under way. ``limits`` tells those it was started with, or nothing."""

    worker_id: str
    pid: int
    argv: tuple[str, ...] = ()
    limits: str = ""


@attrs.frozen
class StartFailed:
    """The handshake failed; the process may still live. ``fatal`` breaks the pool at once."""

    worker_id: str
    error: BaseException
    fatal: bool = False


@attrs.frozen
class SpawnRefused:
    """The system could not make the process."""

    worker_id: str
    error: BaseException


@attrs.define(eq=False)
class Replied:
    """The worker answered its ``count`` oldest requests, several at once only of users who still wait.

    ``error``: what a single one was answered with instead of a result.
    """

    worker_id: str
    error: BaseException | None = None
    count: int = 1


@attrs.frozen(eq=False)
class Adopted:
    """The caller of an accepted request has sent it to an idle worker itself; it is the pool's from now on."""

    worker_id: str
    request: Request


@attrs.frozen
class Served:
    """An idle worker has answered ``count`` requests of callers who sent and read for themselves."""

    worker_id: str
    count: int


@attrs.frozen
class Skipped:
    """The worker stepped over one frame that was taken back."""

    worker_id: str


@attrs.frozen
class TakenBack:
    """The last ``count`` requests in the worker's pipe are certain not to start."""

    worker_id: str
    count: int


@attrs.frozen(eq=False)
class Unheard:
    """A ``Fail`` that was to tell the session's loss came too late: the request's caller had cancelled it."""

    session: Session


@attrs.frozen
class Misbehaved:
    """The worker broke the protocol."""

    worker_id: str
    error: BaseException


@attrs.frozen
class PipeClosed:
    """The worker closed its reply pipe; its exit should follow."""

    worker_id: str


@attrs.frozen
class Exited:
    """The process is gone and its pipe was read empty. ``cut``: the message in whose middle that ended, or nothing."""

    worker_id: str
    code: int | None = None
    signal: int | None = None
    stderr_tail: str = ""
    cut: str = ""


@attrs.frozen
class RssMeasured:
    worker_id: str
    rss_bytes: int


@attrs.frozen
class SessionEnded:
    session_id: str


@attrs.frozen(eq=False)
class WorkersWanted:
    """Somebody waits until ``count`` workers are ready; ``waiter`` is answered by a ``Notify``."""

    count: int
    waiter: Any


@attrs.frozen
class RestartRequested:
    worker_id: str


@attrs.frozen
class RecycleRequested:
    pass


@attrs.frozen
class ShutdownRequested:
    """``end_at``: monotonic seconds at which everything that still runs is ended, or None."""

    cancel_queued: bool = False
    end_at: float | None = None


@attrs.frozen
class EndRequested:
    """End every worker now. ``kill``: without the time a polite end would take."""

    kill: bool = False


@attrs.frozen
class DeadlinePassed:
    pass


# Actions --------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Spawn:
    worker: Worker


@attrs.frozen(eq=False)
class Condemn:
    """End the worker. ``polite``: close its pipe and give it the grace; else TERM now; ``kill``: KILL now."""

    worker: Worker
    reason: ExitReason
    polite: bool = False
    kill: bool = False


@attrs.define(eq=False)
class Dispatch:
    worker: Worker
    requests: tuple[Request, ...]


@attrs.frozen(eq=False)
class TakeBack:
    """Take back up to ``count`` of the worker's last requests; answered by ``TakenBack``."""

    worker: Worker
    count: int

    @classmethod
    def everything(cls, worker: Worker) -> TakeBack:
        """Take back all that has not begun, its oldest request too, of a worker that is gone or not understood."""
        return cls(worker, sum(request.token for request in worker.sent))


@attrs.frozen(eq=False)
class EndSession:
    worker: Worker
    session_id: str


@attrs.define(eq=False)
class Resolve:
    """Settle the request with the reply that is being handled."""

    request: Request


@attrs.frozen(eq=False)
class Fail:
    """End the request with an error. ``loss_of``: the session whose loss it tells; nobody told: ``Unheard``."""

    request: Request
    error: BaseException
    outcome: Outcome
    loss_of: Session | None = None


@attrs.frozen(eq=False)
class Cancel:
    """Cancel a queued request on the pool's behalf."""

    request: Request


@attrs.frozen(eq=False)
class Forget:
    """The worker is gone: close its channel."""

    worker: Worker


@attrs.frozen(eq=False)
class Notify:
    waiter: Any
    error: BaseException | None = None


@attrs.frozen
class Break:
    """The pool is broken: later requests are refused with ``error``."""

    error: BaseException


@attrs.frozen
class Heal:
    """The pool is open again."""


@attrs.frozen
class Close:
    """No work and no worker is left: the manager's thread may end."""


@attrs.frozen
class Emit:
    event: str
    measurements: dict[str, Any]
    metadata: dict[str, Any]


Action = (
    Spawn
    | Condemn
    | Dispatch
    | TakeBack
    | EndSession
    | Resolve
    | Fail
    | Cancel
    | Forget
    | Notify
    | Break
    | Heal
    | Close
    | Emit
)
