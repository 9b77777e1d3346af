"""How sessions bind to workers, wait, are set up, lose their state and end.

Pure; a part of the scheduler, on the manager's thread.  Owns the session table.
"""

from __future__ import annotations

from ..errors import CommandTimeout, SessionBusy, SessionLost, SessionQuotaExceeded, WorkerDied
from .affinity import Session, SessionTable
from .board import Board
from .model import (
    EndSession,
    Fail,
    Outcome,
    PoolState,
    Request,
    RequestKind,
    RequestState,
    Worker,
    WorkerState,
)

__all__ = ("SessionRules",)


class SessionRules:
    """Everything about a request that has to do with its session, and the end of every request."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.table = SessionTable(board.config.max_sessions, board.config.session_ttl_s, board.tally)

    # The end of a request ---------------------------------------------------------------------------

    def end(self, request: Request) -> None:
        """Take a request out of every place; its Resolve, Fail or Cancel is the caller's business."""
        board = self._board
        request.state = RequestState.DONE
        if request.timer is not None:
            board.timers.clear(request)
        if request.ahead:
            request.ahead = False
            board.ahead -= 1
        if request.lane is not None:
            request.lane.withdraw(request)
        session = request.session
        if session is None or request.kind is not RequestKind.USER:
            return
        session.unsettled -= 1
        self.table.touch(session, board.now)
        if session.head is request:
            session.head = None
            self._advance(session)
        if not session.unsettled:
            self._rest(session)

    def fail(self, request: Request, error: BaseException, outcome: Outcome = Outcome.ERROR) -> None:
        """End a request with an error."""
        self.end(request)
        self._board.act(Fail(request, error, outcome))

    def _rest(self, session: Session) -> None:
        """A session without work ends, or begins its time to live."""
        # INVARIANT: a session that has ended and has no work is not in the table, blocked or not: whoever tries again
        # and again while the first session of an id is at work would leave one each time.
        self._forget_rank(session)
        if session.ended:
            self._finish(session)
        elif not session.blocked and session.timer is None:
            # One that is there from an earlier rest is too early, and will be set anew when it has passed: sessions
            # rest after nearly every request.
            self._board.timers.set(session, self._board.now + session.ttl_s, "session")

    @staticmethod
    def _forget_rank(session: Session) -> None:
        # INVARIANT: whoever comes while a session is set up for nobody stands behind its set-up commands.
        if not (session.unsettled or session.steps):
            session.rank = None

    # Before dispatch --------------------------------------------------------------------------------

    def enqueue(self, request: Request) -> Worker | None:
        """Put a session's request where it has to wait; return the worker it waits for, if one is bound."""
        board = self._board
        session = self._session_of(request)
        if session is None:
            return None
        if session.lost:
            self._tell_lost(session, [])
        if request.seq <= session.lost_until:
            self._fail_lost(session, request)
            self.table.touch(session, board.now)
            if not session.unsettled:
                self._rest(session)
            return None
        if session.told and not session.unsettled:
            self.table.adopt(session, request)
            # It was set by the former time to live, and may be later than what this request asks for.
            board.timers.clear(session)
        request.session = session
        session.unsettled += 1
        self.table.touch(session, board.now)
        if session.rank is not None:
            request.rank = max(request.rank, session.rank)
        session.rank = request.rank
        worker = session.worker if session.pinned else None
        if (
            worker is not None
            and session.mode == "fail_fast"
            and (worker.state is WorkerState.BUSY or len(worker.lane))
        ):
            self.fail(request, self._busy(session, worker))
            return None
        self._place(request)
        return worker

    def _session_of(self, request: Request) -> Session | None:
        """Return the request's session, made if need be; None: no room, and the request has failed."""
        board = self._board
        assert request.session_id is not None
        session = self.table.get(request.session_id)
        if session is not None:
            return self.table.succeed(session, request, board.now) if session.ended else session
        try:
            session, evicted = self.table.make(request, board.now)
        except SessionQuotaExceeded as error:
            self.fail(request, error)
            return None
        if evicted is not None:
            self._finish(evicted)
        return session

    def _place(self, request: Request) -> None:
        """Put a request of a session where it belongs."""
        session = request.session
        assert session is not None
        if session.pinned and session.worker is not None:
            session.worker.lane.push(request)
        else:
            session.waiting.push(request)
            self._advance(session)

    def _advance(self, session: Session) -> None:
        """Let waiting requests into the common queue: of an unbound strict session only the first."""
        if session.blocked:
            return
        if not session.pinned:
            while session.ready and (request := session.waiting.pop()) is not None:
                self._board.queue.push(request)
        elif session.worker is None and session.head is None:
            session.head = session.waiting.pop()
            if session.head is not None:
                self._board.queue.push(session.head, opener=True)

    def park(self, request: Request) -> bool:
        """Hold a hint session's request back while the session is set up: it must not overtake the first."""
        session = request.session
        if session is None or session.ready or request.kind is not RequestKind.USER:
            return False
        if request is session.head and not session.steps:
            session.head = None
            self._advance(session)
            return False
        session.waiting.push(request)
        return True

    # Binding ----------------------------------------------------------------------------------------

    def bind(self, session: Session, worker: Worker, request: Request) -> bool:
        """Bind a session to the worker that its first request was given to.

        Returns:
            True when the request may be sent; False when it stands behind set-up commands in that lane.
        """
        board = self._board
        session.worker = worker
        session.head = None
        session.told = False
        session.hearers = 0
        session.visited.add(worker)
        worker.sessions[session.session_id] = session
        event = "session.moved" if session.moved else "session.created"
        board.emit(event, {}, session=session.session_id, worker_id=worker.worker_id, affinity=session.mode)
        while session.pinned and (follower := session.waiting.pop()) is not None:
            if session.mode == "fail_fast":
                self.fail(follower, self._busy(session, worker))
            else:
                worker.lane.push(follower)
        if not session.setup:
            return True
        session.steps = len(session.setup)
        for place, (command, content) in enumerate(session.setup):
            step = Request(content, command, kind=RequestKind.SETUP, timeout_s=request.timeout_s)
            step.accepted_at = board.now
            step.session_id, step.session = session.session_id, session
            step.rank, step.seq = request.rank, request.seq
            worker.lane.push(step, place - len(session.setup))
        worker.lane.push(request)
        if not session.pinned:
            session.head = request
        return False

    def setup_replied(self, step: Request, error: BaseException | None) -> None:
        """Go on after a set-up command: with the next one, or without the request that needed it."""
        session, worker = step.session, step.worker
        if session is None or worker is None or session.worker is not worker:
            return
        if error is None:
            session.steps -= 1
            self._forget_rank(session)
            self._advance(session)
            return
        users = self._unbind(session, worker, worker.lane.requests())
        session.told = True
        session.visited.discard(worker)
        self._tell_end(session, worker)
        if users:
            error.add_note(f"raised by {step.command!r}, a set-up step of session {session.session_id!r}")
            outcome = Outcome.DIED if isinstance(error, WorkerDied) else Outcome.ERROR
            self.fail(users[0], error, Outcome.COMMAND_TIMEOUT if isinstance(error, CommandTimeout) else outcome)
        self._wait_again(session, users[1:])

    def _unbind(self, session: Session, worker: Worker, queued: list[Request]) -> list[Request]:
        """Undo a binding; withdraw the session's requests among ``queued`` and return those of users."""
        worker.sessions.pop(session.session_id, None)
        session.worker = None
        session.head = None
        session.steps = 0
        self._forget_rank(session)
        users = []
        for request in queued:
            if request.session is session:
                worker.lane.withdraw(request)
                if request.kind is RequestKind.USER:
                    users.append(request)
                else:
                    request.state = RequestState.DONE
        return users

    def _wait_again(self, session: Session, users: list[Request]) -> None:
        for request in users:
            self._place(request)
        self._advance(session)

    # Loss -------------------------------------------------------------------------------------------

    def worker_lost(self, worker: Worker) -> None:
        """Release every session of a worker that is condemned or gone."""
        board = self._board
        queued: dict[Session, list[Request]] = {}
        for request in worker.lane.requests():
            assert request.session is not None
            queued.setdefault(request.session, []).append(request)
        for session in list(worker.sessions.values()):
            users = self._unbind(session, worker, queued.get(session, []))
            session.visited.discard(worker)
            if not session.pinned or session.setup:
                session.moved = True
                self._wait_again(session, users)
                continue
            if board.state is PoolState.OPEN or session.unsettled:
                board.emit("session.lost", {}, session=session.session_id, worker_id=worker.worker_id)
            if users:
                self._tell_lost(session, users)
            elif not session.ended:
                session.lost = True

    def requeue(self, request: Request) -> None:
        """Put back a request that was sent ahead and is certain not to start."""
        # INVARIANT: a request with a session was sent ahead only for a strict session without set-up.
        session = request.session
        request.state = RequestState.QUEUED
        if request.started_at is not None:
            # The oldest of a worker that has ended, but not begun: its token was still there.
            request.started_at = None
            self._board.timers.clear(request)
        worker, request.worker = request.worker, None
        if session is None:
            self._board.queue.push(request)
        elif session.worker is worker:
            self._place(request)
        else:
            self._tell_lost(session, [request])

    def _tell_lost(self, session: Session, users: list[Request]) -> None:
        session.lost = False
        session.told = True
        session.lost_until = self._board.horizon
        for request in users:
            self._fail_lost(session, request)

    def _fail_lost(self, session: Session, request: Request) -> None:
        session.hearers += 1
        self.end(request)
        self._board.act(Fail(request, self._lost(session), Outcome.ERROR, session))

    def unheard(self, session: Session) -> None:
        """Let the next request tell a loss of which nobody has heard."""
        # RACE: 1. the worker of a session is lost, 2. a caller cancels the request that is to tell it (its
        # thread), 3. the manager has not seen Cancelled and fails the request: the ledger drops that.  Were
        # the loss taken for told, the next request would begin anew as if nothing had happened.
        # (tests/unit/test_scheduler_sessions.py::test_a_cancelled_request_hears_of_no_loss)
        session.hearers -= 1
        if not session.hearers and session.worker is None and not session.ended:
            session.lost = True

    def _lost(self, session: Session) -> SessionLost:
        return SessionLost(
            f"the worker that held session {session.session_id!r} is gone, and its state with it;"
            f" the next request begins anew (a session with set-up commands is restored instead)"
            f" ({self._board.numbers()})"
        )

    def _busy(self, session: Session, worker: Worker) -> SessionBusy:
        return SessionBusy(
            f"worker {worker.worker_id} of session {session.session_id!r} has work (affinity fail_fast)"
            f" ({self._board.numbers()})"
        )

    # The end of a session ---------------------------------------------------------------------------

    def end_session(self, session_id: str) -> None:
        """End a session after the requests that were accepted so far."""
        session = self.table.get(session_id)
        if session is not None and not session.ended:
            session.ended = True
            if not session.unsettled:
                self._rest(session)

    def expire(self, session: Session) -> None:
        """End a binding that was idle for its time to live."""
        if session.unsettled:
            return
        due = session.last_used + session.ttl_s
        if due > self._board.now:
            self._board.timers.set(session, due, "session")
            return
        self._board.emit(
            "session.expired", {"idle_s": self._board.now - session.last_used}, session=session.session_id
        )
        self._finish(session)

    def _finish(self, session: Session) -> None:
        """Forget a session without work; its successor begins."""
        self._board.timers.clear(session)
        for worker in session.visited:
            self._tell_end(session, worker)
        session.visited.clear()
        if session.worker is not None:
            queued = session.worker.lane.requests() if session.steps else []
            self._unbind(session, session.worker, queued)
        successor = session.successor
        self.table.remove(session)
        if successor is not None and not successor.blocked:
            self._advance(successor)
            if not successor.unsettled:
                self._rest(successor)

    def _tell_end(self, session: Session, worker: Worker) -> None:
        if worker.can_end_session and not worker.closed and worker.state is not WorkerState.CONDEMNED:
            self._board.act(EndSession(worker, session.session_id))

    def drop_setups(self) -> None:
        """Undo the bindings whose set-up nobody waits for any more."""
        for session in self.table.values():
            if session.worker is not None and session.steps and not session.unsettled:
                self._unbind(session, session.worker, session.worker.lane.requests())
