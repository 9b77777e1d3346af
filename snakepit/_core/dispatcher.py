"""Which request goes to which worker, and when one may be sent ahead of its turn.

Pure; a part of the scheduler, on the manager's thread.
"""

from __future__ import annotations

import math

from ..errors import InternalError, QueueTimeout
from .affinity import Session
from .board import Board, fresh
from .lanes import Entry
from .model import (
    Cancel,
    Dispatch,
    Outcome,
    Request,
    RequestKind,
    RequestState,
    Resolve,
    TakeBack,
    Worker,
    WorkerState,
)
from .portions import is_light, is_tiny, most_ahead, note_haste, note_time, part_size
from .session_rules import SessionRules

__all__ = ("Dispatcher",)

class Dispatcher:
    """Matches queued requests with idle workers and keeps busy pipes filled."""

    def __init__(self, board: Board, rules: SessionRules) -> None:
        self._board = board
        self._rules = rules

    def match(self) -> None:
        """Give the oldest queued requests to idle workers until one of the two runs out."""
        board = self._board
        idle = board.workers.idle
        while idle:
            request = board.queue.pop()
            if request is None:
                if board.ahead:
                    self._take_back()
                return
            self._start(self._choose(request), request)
        # Those that retire come last, so that they are idle when they may go.
        for worker in list(board.workers.retiring):
            self.serve(worker)

    def _choose(self, request: Request) -> Worker:
        idle = self._board.workers.idle
        session = request.session
        if session is None:
            return next(reversed(idle))
        if session.worker is None:
            return min(idle, key=lambda worker: len(worker.sessions))
        return session.worker if session.worker in idle else next(reversed(idle))

    def serve(self, worker: Worker) -> None:
        """Find work for one worker, if it is idle: its own lane's or the common queue's oldest request."""
        while worker.state is WorkerState.IDLE:
            entry = self._next_entry(worker)
            if entry is None:
                return
            request: Request = entry[4]
            assert request.lane is not None
            request.lane.pop()
            self._start(worker, request)

    def _next_entry(self, worker: Worker) -> Entry | None:
        if worker.closed:
            return None
        board = self._board
        own = worker.lane.peek()
        # A session that began on a worker which is about to go would be lost soon.
        common = board.queue.peek(openers=worker.retire is None or board.workers.all_retiring)
        if own is None or common is None:
            return own or common
        return own if own < common else common

    def _start(self, worker: Worker, request: Request) -> None:
        """Send a request, which is in no lane, to an idle worker."""
        session = request.session
        if session is not None:
            if session.worker is None and session.setup and request.kind is RequestKind.USER:
                # Claimed after its set-up only: until then its caller may cancel it.
                self._rules.bind(session, worker, request)
                self.serve(worker)
                return
            if self._rules.park(request):
                return
        if request.splits:
            self._start_part(worker, request)
            return
        if not request.claim():
            # RACE: 1. the caller cancels (its thread), 2. the manager picks the request before it has seen
            # Cancelled.  The future's state decides; the request ends here and the event finds it DONE.
            # (tests/integration/test_races.py::test_cancel_between_the_choice_and_the_claim)
            self._rules.end(request)
            return
        if session is not None and request.kind is RequestKind.USER:
            if session.worker is None:
                self._rules.bind(session, worker, request)
            self._visit(session, worker)
        self.send(worker, [request])
        self._feed(worker)

    def _start_part(self, worker: Worker, bulk: Request) -> None:
        """Send the first items of a bulk, which is in no lane, to an idle worker; the rest goes back to its place."""
        share = part_size(worker, bulk.weight, self._board.workers.size)
        part = bulk.split(int(max(1, min(share, self._allowance(worker)))))
        if part is None or not bulk.weight:
            self._rules.end(bulk)
        else:
            self._board.queue.push(bulk)
        if part is not None:
            self.send(worker, [part])

    def _visit(self, session: Session, worker: Worker) -> None:
        """Note that the worker may hold state of the session."""
        if len(session.visited) > 2 * self._board.size:
            session.visited = {w for w in session.visited if w.state is not WorkerState.CONDEMNED}
        session.visited.add(worker)

    def send(self, worker: Worker, requests: list[Request]) -> None:
        """Put claimed requests into a worker's pipe; an idle worker becomes busy (or is being checked)."""
        board = self._board
        for request in requests:
            if request.timer is not None:
                board.timers.clear(request)
            request.state = RequestState.SENT
            request.worker = worker
            request.sent_at = board.now
            request.started_at = None
            request.token = bool(worker.sent)
            if worker.sent:
                request.ahead = True
                board.ahead += 1
            worker.sent.append(request)
            if len(worker.sent) == 1:
                check = request.kind is RequestKind.PING
                board.workers.move(worker, WorkerState.CHECKING if check else WorkerState.BUSY)
                board.begin(worker, request)
        worker.used = True
        board.act(Dispatch(worker, tuple(requests)))

    def adopted(self, worker: Worker, request: Request) -> None:
        """Take up a request that its caller has sent to an idle worker."""
        request.state = RequestState.SENT
        request.worker = worker
        worker.sent.append(request)
        worker.used = True
        # The caller may still hold the pipe: nothing follows before the answer.
        worker.recalling = True
        self._board.workers.move(worker, WorkerState.BUSY)
        self._board.begin(worker, request, since=request.sent_at)

    # Sending ahead ----------------------------------------------------------------------------------

    def _feed(self, worker: Worker) -> None:
        """Send queued requests ahead to a busy worker whose recent service time is tiny."""
        # Only to a worker from which a request can be taken back: whatever the estimate says, the
        # request may otherwise wait behind a call that never ends (docs/design.md, "Sent ahead").
        if not worker.can_claim or worker.skips or worker.recalling:
            return
        # Nor to one that retires, which is to go as soon as it may, or that reads no more.
        if worker.retire is not None or worker.closed:
            return
        last = worker.sent[-1]
        if last.kind is not RequestKind.USER or last.answers is not None:
            return
        board = self._board
        limit = most_ahead(worker)
        if len(worker.sent) * 2 > limit:
            return
        room = self._allowance(worker)
        batch: list[Request] = []
        if room == math.inf and not len(worker.lane):
            # The same as below, for many at once.
            spare = len(board.queue) - board.workers.busy - board.workers.available + 1
            for request in board.queue.pop_while(is_tiny, min(limit - len(worker.sent), spare)):
                if request.claim():
                    batch.append(request)
                else:
                    self._rules.end(request)
        while len(worker.sent) + len(batch) < limit:
            entry = self._next_entry(worker)
            if entry is None or entry[4].weight > room or not self._may_go_ahead(worker, entry[4]):
                break
            request = entry[4]
            assert request.lane is not None
            request.lane.pop()
            if not request.claim():
                self._rules.end(request)
                continue
            room -= request.weight
            batch.append(request)
        if batch:
            self.send(worker, batch)

    def _allowance(self, worker: Worker) -> float:
        """Return how much more may be sent to a worker before it has to be replaced."""
        most = self._board.config.max_requests_per_worker
        if most is None:
            return math.inf
        # Up to where it is lined up first, or its pipe would hold all that it may answer before it has its turn.
        limit = worker.lined_up_at if worker.requests < worker.lined_up_at else most
        return limit - worker.requests - sum(r.weight for r in worker.sent)

    def _may_go_ahead(self, worker: Worker, request: Request) -> bool:
        board = self._board
        session = request.session
        if request.lane is worker.lane and session is not None:
            # A set-up session that moves has to begin with its oldest request, which is in order only
            # when none of them has to be taken back first.
            return is_light(request) and session.mode == "strict" and not session.setup
        if not is_tiny(request):
            return False
        deep = len(board.queue) >= board.workers.busy + board.workers.available
        return deep or (request.chunk is not None and worker.sent[-1].chunk is request.chunk)

    def _take_back(self) -> None:
        """Let an idle worker have half of what was sent ahead to the one with most of it."""
        victim, most = None, 0
        for worker in self._board.workers.by_id.values():
            # Again and again, also while frames taken back lie unread behind a call that may never end:
            # nothing was sent after them, so the tokens that are left belong to the requests before them.
            if worker.state is WorkerState.BUSY and not worker.recalling:
                movable = self._movable(worker)
                if movable > most:
                    victim, most = worker, movable
        if victim is not None:
            victim.recalling = True
            self._board.act(TakeBack(victim, self._reach(victim, (most + 1) // 2)))

    @staticmethod
    def _is_movable(request: Request) -> bool:
        return request.ahead and (request.session is None or not request.session.pinned)

    def _movable(self, worker: Worker) -> int:
        """Return how many requests in the pipe are bound to no worker and not yet the oldest."""
        return sum(map(self._is_movable, worker.sent))

    def _reach(self, worker: Worker, wanted: int) -> int:
        """Return how many of the last requests have to be taken back to get so many movable ones.

        Those of a strict session among them go back to the worker's lane, so that they keep no others in
        its pipe.
        """
        count = 0
        for request in reversed(worker.sent):
            if not wanted or not request.ahead:
                break
            count += 1
            wanted -= self._is_movable(request)
        return count

    def taken_back(self, worker: Worker, count: int) -> None:
        """Put the last ``count`` requests of a pipe back into the queue, in order."""
        # With none the worker has begun them all, and its replies are on their way: asking again before
        # they are read would find the same.
        worker.recalling = not count
        worker.skips += count
        if count > len(worker.sent):
            raise InternalError(f"{count} requests taken back of {len(worker.sent)} from {worker!r}")
        for _ in range(count):
            request = worker.sent.pop()
            if request.state is RequestState.SENT:
                if request.ahead:
                    request.ahead = False
                    self._board.ahead -= 1
                self._rules.requeue(request)
        if worker.sent and worker.sent[0].started_at is None:
            # The worker was condemned, and this one it had begun: nobody could take it back.
            self._board.begin(worker, worker.sent[0])

    def skipped(self, worker: Worker) -> None:
        """Note that the worker has stepped over one frame that was taken back."""
        if worker.skips <= 0:
            raise InternalError(f"{worker!r} skipped a request that nobody took back")
        worker.skips -= 1
        self.settle_idle(worker)

    # Replies ----------------------------------------------------------------------------------------

    def replied(self, worker: Worker, count: int, error: BaseException | None) -> None:
        """Take the oldest requests, which were answered, out of a worker's pipe."""
        board = self._board
        worker.recalling = False
        oldest = worker.sent[0]
        if oldest.kind is RequestKind.USER:
            assert oldest.started_at is not None
            items = count if oldest.answers is None else oldest.weight
            note_time(worker, (board.now - oldest.started_at) / items)
            if count == len(worker.sent) and oldest.sent_at >= board.looked_at:
                note_haste(worker, count)
        for _ in range(count):
            request = worker.sent.popleft()
            if request.kind is RequestKind.USER:
                worker.requests += request.weight
                if request.started_at is None:
                    # Answered together with the one before it, which it ran after.
                    request.started_at = board.now
            if request.state is RequestState.SENT:
                self._rules.end(request)
                if request.kind is RequestKind.USER:
                    board.act(Resolve(request))
                elif request.kind is RequestKind.SETUP:
                    self._rules.setup_replied(request, error)
        if worker.sent:
            board.begin(worker, worker.sent[0])

    def settle_idle(self, worker: Worker) -> None:
        """Make a worker idle when its pipe is empty."""
        if not worker.sent and not worker.skips and worker.state in (WorkerState.BUSY, WorkerState.CHECKING):
            if worker.state is WorkerState.BUSY:
                worker.idle_since = self._board.now
            self._board.workers.move(worker, WorkerState.IDLE)

    def refill(self, worker: Worker) -> None:
        """Give a worker that has just answered its next work."""
        if worker.state is WorkerState.IDLE:
            self.serve(worker)
        elif worker.sent:
            self._feed(worker)

    # Withdrawal -------------------------------------------------------------------------------------

    def cancelled(self, request: Request) -> Worker | None:
        """Withdraw a request that its caller cancelled; return the worker to end when it is running."""
        if request.state is RequestState.DONE:
            return None
        worker = request.worker if request.state is RequestState.SENT else None
        self._rules.end(request)
        if worker is None:
            return None
        place = worker.sent.index(request)
        if place and worker.state is WorkerState.BUSY:
            # What follows it goes back to its place; begun already, it ends its worker at its turn.
            worker.recalling = True
            self._board.act(TakeBack(worker, len(worker.sent) - place))
        return None if place else worker

    def timed_out(self, request: Request) -> None:
        """End a request that has waited as long as it may."""
        board = self._board
        if not request.claim():
            self._rules.end(request)
            return
        error = QueueTimeout(f"{request.command!r} {board.times(request)} ({board.numbers()})")
        board.emit(
            "pool.queue_timeout",
            {"queue_s": board.now - request.accepted_at},
            command=request.command,
            session=request.session_id,
        )
        self._rules.fail(request, error, Outcome.QUEUE_TIMEOUT)

    def cancel_queued(self) -> None:
        """Cancel everything that waits in a lane, on the pool's behalf."""
        for request in self.waiting():
            if request.kind is RequestKind.USER:
                self._rules.end(request)
                self._board.act(Cancel(request))
        self._rules.drop_setups()

    def waiting(self) -> list[Request]:
        """Return every request that stands in a lane."""
        board = self._board
        requests = board.queue.requests()
        for worker in board.workers.by_id.values():
            requests += worker.lane.requests()
        for session in self._rules.table.values():
            requests += session.waiting.requests()
        return requests

    def fail_all(self, error: BaseException) -> None:
        """Fail every request of the pool, queued and running, each with a copy of the error."""
        for request in self.waiting():
            if request.kind is RequestKind.USER:
                self._rules.fail(request, fresh(error))
        for worker in self._board.workers.by_id.values():
            for request in worker.sent:
                if request.kind is RequestKind.USER and request.state is RequestState.SENT:
                    self._rules.fail(request, fresh(error))
