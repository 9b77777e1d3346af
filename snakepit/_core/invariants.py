"""The scheduler's invariants as assertions; for tests, after every event.

Pure; reads the scheduler's state and changes nothing.
"""

from __future__ import annotations

from .board import Board
from .dispatcher import Dispatcher
from .lifecycle import Lifecycle
from .model import PoolState, Request, RequestKind, RequestState, WorkerState
from .session_rules import SessionRules

__all__ = ("check_invariants",)


def check_invariants(board: Board, rules: SessionRules, dispatcher: Dispatcher, lifecycle: Lifecycle) -> None:
    """Raise AssertionError, naming the invariant, when one does not hold."""
    board.workers.check()
    workers = list(board.workers.by_id.values())
    queued = dispatcher.waiting()
    sent = [request for worker in workers for request in worker.sent]

    seen: set[Request] = set()
    for request in [*queued, *sent]:
        assert request not in seen, f"I1 {request!r} is in two places"
        seen.add(request)
    for request in queued:
        assert request.state is RequestState.QUEUED, f"I1 {request!r} in a lane"
        assert request.entry is not None and request.lane is not None, f"I7 {request!r}"
    for request in sent:
        assert request.state is not RequestState.QUEUED, f"I1 {request!r} in a pipe"
        assert request.lane is None, f"I1 {request!r} in a pipe and a lane"

    ahead = 0
    for worker in workers:
        if worker.state is WorkerState.BUSY:
            assert worker.sent or worker.skips, f"I2 {worker!r}"
        elif worker.state is not WorkerState.CONDEMNED:
            pinging = worker.state is WorkerState.CHECKING
            assert bool(worker.sent) == pinging, f"I2 {worker!r} has {list(worker.sent)}"
        for place, request in enumerate(worker.sent):
            ahead += request.ahead
            if place == 0 and worker.state is not WorkerState.CONDEMNED:
                assert request.started_at is not None and not request.ahead, f"I2 {request!r} not begun"
    assert ahead == board.ahead, "ahead"

    for session in rules.table.values():
        if session.worker is not None:
            assert session.worker.state is not WorkerState.CONDEMNED, f"I4 {session.session_id}"
            assert session.worker.sessions.get(session.session_id) is session, f"I4 {session.session_id}"
            if session.pinned or session.ready:
                assert not len(session.waiting), f"I4 {session.session_id} waits although bound"
        members = [r for r in seen if r.session is session and r.state is not RequestState.DONE]
        users = sum(r.kind is RequestKind.USER for r in members)
        assert users == session.unsettled, f"I1 {session.session_id}: {users} != {session.unsettled}"
        if session.pinned and session.worker is not None:
            for request in members:
                here = request.lane is session.worker.lane or request.worker is session.worker
                ending = request.worker is not None and request.worker.state is WorkerState.CONDEMNED
                assert here or ending, f"I4 {request!r} of {session.session_id} is elsewhere"

    for session in rules.table.values():
        assert session.unsettled or not session.ended, f"{session.session_id} has ended"
        if session.successor is not None:
            assert session.successor.predecessor is session, f"{session.session_id} is succeeded by a stranger"
        if not (session.unsettled or session.blocked):
            assert session.timer is not None, f"{session.session_id} never expires"
        if session.pinned and session.worker is None and not session.blocked:
            assert session.head or not len(session.waiting), f"{session.session_id} is not in the queue"

    retiring = {w for w in workers if w.retire is not None and w.state is not WorkerState.CONDEMNED}
    assert retiring == set(lifecycle.retiring), "retiring"
    for worker in workers:
        if worker.state is WorkerState.CONDEMNED:
            assert not len(worker.lane) and not worker.sessions, f"I4 {worker!r} still has a lane or sessions"
        elif worker.state is WorkerState.IDLE and not worker.closed:
            assert not len(worker.lane), f"I6 {worker!r} idles with {len(worker.lane)} of its own waiting"
    assert not (board.workers.idle and len(board.queue)), "I6 idle workers beside a common queue"
    for worker in retiring:
        if worker.state is WorkerState.IDLE and not worker.closed:
            eligible = board.queue.peek(openers=board.workers.all_retiring)
            assert eligible is None, f"I6 {worker!r}, which retires, idles beside a common queue"
            free = worker.overdue or not any(session.pinned for session in worker.sessions.values())
            assert not free or lifecycle.replacing, f"{worker!r} may go and stays"
    if lifecycle.patient is not None:
        assert lifecycle.patient in retiring, "a patient worker retires"
    for worker in lifecycle._line:
        assert worker in workers and worker.retire is None, f"{worker!r} stands in the line and retires, or is gone"
    assert board.tally.count == len(queued), "tally"
    if board.broken_by is not None or board.state is PoolState.CLOSED:
        assert not queued, "a pool that serves no more has queued requests"
    if board.state is PoolState.CLOSED:
        assert not workers, "a closed pool has workers"
