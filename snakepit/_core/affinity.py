"""Which session lives in which worker, and which of its requests wait for what.

Pure; used by the scheduler on the manager's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from ..errors import SessionQuotaExceeded
from .lanes import Lane, Tally
from .model import Request, Worker

__all__ = ("Session", "SessionTable")


class Session:
    """One session's binding.

    Attributes:
        worker: The incarnation that holds the state, None before the first dispatch or after a loss.
        head: The one request of an unbound strict session that stands in the common lane; of a hint session,
            the one that waits for its set-up in a worker's lane, and that no other may overtake.
        waiting: Requests, in order, that wait for the session itself: until it is bound (strict), set up
            (hint), or begins (a successor).
        unsettled: Requests accepted and not ended.
        lost: The state is gone and nobody has been told.
        hearers: Requests that told the latest loss and were not cancelled before.
        lost_until: Requests accepted up to this seq fail with the loss that was told.
        told: The call that binds next fixes the mode: nothing of an earlier binding is left.
        steps: Set-up commands that have not been answered on the present worker.
        moved: It was bound to another worker before.
        rank: The lowest urgency among the unsettled and the set-up, so that a later request never overtakes.
        visited: Every worker that may hold state of the session.
        predecessor: The session of the same id that has to end before this one begins, or None.
        successor: The session of the same id that begins when this one has ended, or None.
    """

    # INVARIANT: `worker` is never condemned or gone (I4).
    __slots__ = (
        "ended",
        "head",
        "hearers",
        "last_used",
        "lost",
        "lost_until",
        "mode",
        "moved",
        "predecessor",
        "rank",
        "session_id",
        "setup",
        "steps",
        "successor",
        "timer",
        "told",
        "ttl_s",
        "unsettled",
        "visited",
        "waiting",
        "worker",
    )

    def __init__(
        self,
        session_id: str,
        mode: str,
        setup: tuple[Any, ...],
        ttl_s: float,
        now: float,
        tally: Tally | None = None,
    ) -> None:
        self.session_id = session_id
        self.mode = mode
        self.setup = setup
        self.ttl_s = ttl_s
        self.worker: Worker | None = None
        self.head: Request | None = None
        self.waiting = Lane(tally)
        self.visited: set[Worker] = set()
        self.unsettled = 0
        self.rank: int | None = None
        self.lost = False
        self.hearers = 0
        self.lost_until = -1
        self.told = True
        self.moved = False
        self.steps = 0
        self.ended = False
        self.predecessor: Session | None = None
        self.successor: Session | None = None
        self.last_used = now
        self.timer: Any = None

    @property
    def blocked(self) -> bool:
        """True while the session that it succeeds has not ended."""
        return self.predecessor is not None

    @property
    def ready(self) -> bool:
        """True when no set-up command, and no request that waits behind one, stands before its requests."""
        return not self.steps and (self.pinned or self.head is None)

    @property
    def pinned(self) -> bool:
        """True when its requests may run in its own worker only."""
        return self.mode != "hint"


class SessionTable:
    """The sessions of a pool by id, least recently used first, and those that are ending.

    Args:
        limit: Most sessions at a time, >= 1.
        ttl_s: Idle seconds after which a binding ends, unless the session says otherwise.
        tally: Counts what stands in the sessions' lanes.
    """

    def __init__(self, limit: int, ttl_s: float, tally: Tally | None = None) -> None:
        self._limit = limit
        self._ttl_s = ttl_s
        self._tally = tally
        self._by_id: OrderedDict[str, Session] = OrderedDict()
        self._ending: dict[Session, None] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, session_id: str) -> Session | None:
        """Return the newest session of this id."""
        return self._by_id.get(session_id)

    def values(self) -> list[Session]:
        """Return every session, also those whose place a successor has taken."""
        return [*self._by_id.values(), *self._ending]

    def touch(self, session: Session, now: float) -> None:
        """Mark the session as used now."""
        session.last_used = now
        if self._by_id.get(session.session_id) is session:
            self._by_id.move_to_end(session.session_id)

    def make(self, request: Request, now: float) -> tuple[Session, Session | None]:
        """Make the session of a request's id.

        Returns:
            The session, and the one evicted for it (least recently used, hint, without work) or None.

        Raises:
            SessionQuotaExceeded: The table is full and nothing may be evicted; raised here.
        """
        evicted = None
        if len(self._by_id) >= self._limit:
            evicted = next(
                (s for s in self._by_id.values() if not (s.pinned or s.unsettled or s.blocked)), None
            )
            if evicted is None:
                raise SessionQuotaExceeded(
                    f"no room for session {request.session_id!r}: {len(self._by_id)} sessions are bound"
                    f" (max_sessions={self._limit}); end some with end_session() or raise the limit"
                )
            del self._by_id[evicted.session_id]
        return self._new(request, now), evicted

    def succeed(self, old: Session, request: Request, now: float) -> Session:
        """Replace a session that is ending by a new one of the same id, which begins after it."""
        self._ending[old] = None
        session = self._new(request, now)
        session.predecessor, old.successor = old, session
        return session

    def _new(self, request: Request, now: float) -> Session:
        assert request.session_id is not None
        session = Session(request.session_id, "", (), 0.0, now, self._tally)
        self.adopt(session, request)
        self._by_id[session.session_id] = session
        return session

    def adopt(self, session: Session, request: Request) -> None:
        """Let this request say what the session is."""
        session.mode = request.affinity
        session.setup = request.setup
        session.ttl_s = self._ttl_s if request.ttl_s is None else request.ttl_s

    def remove(self, session: Session) -> None:
        """Forget a session; those before and after it become neighbours."""
        before, after = session.predecessor, session.successor
        session.predecessor = session.successor = None
        if before is not None:
            before.successor = after
        if after is not None:
            after.predecessor = before
            del self._ending[session]
        elif before is not None:
            # The newest again, and found by its id: who comes next succeeds it.
            del self._ending[before]
            self._by_id[session.session_id] = before
        elif self._by_id.get(session.session_id) is session:
            # Unless it was evicted, and has lost its place already.
            del self._by_id[session.session_id]
