"""The pool's own thread: reads and writes the pipes, asks the scheduler, acts, settles futures.

THREAD: ``snakepit-<pool>-manager``.  Owns the scheduler, the links and the poller; shares only the
inbox and the ledger.  Must not import the executor, and holds no reference to one.

    caller   encode -> ledger.admit -> inbox
    manager  inbox -> scheduler.handle -> actions -> link.send                -> worker
    manager  link.receive -> scheduler.handle -> actions: feed the worker, then settle the future
    watchdog Spawned / Exited / ... -> inbox

A turn has two steps.  First everything that is not seen by users, for all that has happened:
counters, pipes, processes.  Then futures, waiters and telemetry, where users' code may run; it finds
the pool's numbers up to date and the workers at work already.  After a future is settled nothing is
left to do but to wait, so that its caller gets the interpreter lock at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from .._clock import monotonic_s
from .._core import model as m
from .._core.model import Request
from .._core.scheduler import Scheduler
from .._inbox import Inbox
from .._supervision import reports as r
from .._supervision.watchdog import Watchdog
from .._threads import PatientThread
from ..adapters import Adapter
from ..config import PoolConfig
from ..errors import InternalError
from .arrivals import Garbled, Refused, Reply, Shaken, SteppedOver, take_answers
from .collapse import collapse
from .exits import refused_start, warn_of_exit, warn_of_garbage
from .launch import Launcher
from .ledger import Errand, Ledger
from .lending import Lending
from .link import Link
from .links import Links, unreachable
from .loans import REST_S, Lender, Returned
from .pacing import Pace
from .performer import Performer
from .queries import Query, refuse_late
from .quiet import QuietLogger, quietly
from .settling import Settler

__all__ = ("Manager",)

_log = QuietLogger("snakepit.pool")


class Manager:
    """Runs one pool.

    Args:
        scheduler: Its decisions.
        inbox: What other threads post.
        ledger: Admission and counters.
        launcher: How a worker is started.
        adapter: What the workers are.
        config: The pool's settings.
        name: The pool's name.
        on_end: Called last, on this thread.
        watchdog_factory: Makes the watchdog; a seam for fault injection.

    Attributes:
        announced: What the worker that became ready last has said of itself; to be read from any thread.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        inbox: Inbox,
        ledger: Ledger,
        launcher: Launcher,
        adapter: Adapter,
        config: PoolConfig,
        name: str,
        on_end: Callable[[Manager], None],
        watchdog_factory: Callable[..., Watchdog] = Watchdog,
    ) -> None:
        self._on_end = on_end
        self._scheduler = scheduler
        self._inbox = inbox
        self._ledger = ledger
        self._launcher = launcher
        self._adapter = adapter
        self._config = config
        self._name = name
        self.announced: Mapping[str, Any] = {}
        self._links = Links()
        self._answers: deque[m.TakenBack | m.Unheard] = deque()
        # INVARIANT: what was drained and not handled to its end; whoever waits for it is told at the end.
        self._posted: deque[Any] = deque()
        self._current: tuple[Any, ...] = ()
        self._undone: Iterator[m.Action] = iter(())
        # Only events move it, so what a turn finds at its end holds until the next one.
        self._deadline: float | None = None
        self._pace = Pace(scheduler.board)
        self._closed = False
        self._settler = Settler(adapter, ledger, config, name, self._answers.append)
        self.lender = Lender(ledger, inbox, self._links.pause)
        shapes = type(adapter).process_response is not Adapter.process_response
        self._lending = Lending(
            self.lender, self._links, scheduler, self._handle, self._take_arrivals, self._receive, shapes
        )
        self._watchdog = watchdog_factory(
            name, inbox.post, kill_grace_s=config.kill_grace_s, stderr_tail_bytes=config.stderr_tail_bytes
        )
        self._thread = PatientThread(target=self._run, name=f"snakepit-{name}-manager", daemon=True)
        self._handlers: dict[type, Callable[[Any], None]] = {
            r.Spawned: self._spawned,
            r.SpawnFailed: self._spawn_failed,
            r.Exited: self._exited,
            r.RssMeasured: lambda event: self._handle(m.RssMeasured(event.worker_id, event.rss_bytes)),
            r.WatchdogFailed: self._watchdog_failed,
            Query: lambda query: query.answer(self._scheduler),
            Errand: lambda errand: quietly(errand.do),
            m.Cancelled: self._cancelled,
            Returned: self._lending.returned,
        }
        self._performer = Performer(
            scheduler,
            self._links,
            ledger,
            inbox,
            launcher,
            self._watchdog,
            self._answers.append,
            config.shutdown_grace_s,
        )
        self._acts = self._performer.acts() | {m.Close: lambda _: setattr(self, "_closed", True)}

    # Other threads ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start both threads.

        Raises:
            RuntimeError: The system has no thread to give; raised here, and nothing is left running.
            BaseException: An interrupt, as for the rest; but where the pool `is_running`, it has to be closed.
        """
        try:
            self._edges = self._links.watch_wake(self._inbox.fd, edges=self._inbox.edges)
            self._watchdog.start()
            if self._config.max_worker_rss_bytes is not None:
                self._watchdog.set_rss_probe(1.0)
            self._thread.start()
        except BaseException:
            if not self.is_running:
                self._watchdog.stop()
                self._watchdog.join()
                self._links.close()
            raise
        self._ledger.threads = frozenset((self._thread.ident, self._watchdog.ident))

    @property
    def is_running(self) -> bool:
        """Whether the pool's thread has begun its work; it ends when the pool is closed."""
        return self._thread.is_wanted

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the pool; False when the time ran out first."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def request(self, event: object, *, wait: bool = True) -> None:
        """Hand an event to the scheduler; with ``wait``, return when it was handled (or the pool is gone)."""
        self._inbox.post(event)
        if wait and not self._ledger.on_own_thread:
            self.ask(lambda _: None)

    def post(self, event: object) -> bool:
        """Hand an event to the scheduler; False when the pool is gone."""
        return self._inbox.post(event)

    def ask(self, question: Callable[[Scheduler], Any], timeout_s: float | None = None) -> Any:
        """Return the answer to a question about the scheduler's state, or None when the pool is gone."""
        if threading.get_ident() == self._thread.ident:
            return question(self._scheduler)
        query = Query(question)
        return query.wait(timeout_s) if self._inbox.post(query) else None

    def abandon(self) -> None:
        """THREAD: the only one of a forked child.  Let go of every descriptor; the parent goes on."""
        self._links.abandon()

    # The loop ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._act(self._scheduler.start(monotonic_s()))
            self._deadline = self._scheduler.next_deadline()
            self._publish()
            self._settler.settle()
            while not self._closed:
                self._turn()
        except BaseException as error:
            collapse(
                self._name, error, self._undone, self._scheduler, self._ledger, self._settler, self._watchdog
            )
        finally:
            self._end()

    def _turn(self) -> None:
        """Wait for something to happen, and handle all that has."""
        self._pace.gather()
        timeout_s: float | None = 0.0
        began = monotonic_s()
        if self._inbox.may_sleep():
            deadline = self._deadline
            timeout_s = None if deadline is None else max(0.0, deadline - began)
        ready = self._links.poll(timeout_s)
        self._pace.looked(began, may_sleep=timeout_s != 0.0)
        # RACE: 1. a request is posted, 2. the manager takes up what was posted, 3. a caller finds nothing posted, and
        # sends its own.  Nobody has a loan by then, so that it cannot overtake
        # (tests/integration/test_direct.py::test_nobody_overtakes_what_the_manager_has_taken_up).
        if self.lender:
            self._lending.recall()
        # RACE: 1. requests are accepted, 2. a worker replies.  What was posted comes first, so the worker's
        # next request is chosen among all of them
        # (tests/integration/test_races.py::test_what_was_accepted_comes_before_a_reply).
        posted = self._posted = self._inbox.drain()
        while posted:
            item = posted.popleft()
            self._current = (item,)
            if type(item) is Request:
                # A burst is one event: what follows from it is worked out once.
                burst = [item]
                while posted and type(posted[0]) is Request:
                    burst.append(posted.popleft())
                self._handle(m.Submitted(*burst))
            else:
                self._handlers.get(type(item), self._handle)(item)
            self._current = ()
        for link, writable in ready:
            if link is None:
                if not self._edges:
                    self._inbox.clear_wake()
            elif link not in self._links or link.away is not None:
                continue
            elif writable:
                link.channel.flush()
                self._links.watch_writes(link)
                if link.channel.request_fd is None:
                    self._handle(unreachable(link))
            else:
                self._receive(link)
        deadline = self._scheduler.next_deadline()
        if deadline is not None and deadline <= monotonic_s():
            # RACE: 1. the worker replies, 2. its time-out passes before the reply was read.  The pipes
            # are read first, so the reply wins (tests/integration/test_timeouts.py::test_reply_beats_deadline).
            for link in self._links:
                self._receive(link)
            self._handle(m.DeadlinePassed())
            deadline = self._scheduler.next_deadline()
        self._deadline = deadline
        # Before anything is lent: a direct call counts on numbers that hold its worker for idle.
        self._publish()
        if self._lending.lend():
            rest = monotonic_s() + REST_S
            self._deadline = rest if deadline is None else min(deadline, rest)
        self._settler.settle()

    def _handle(self, event: object, replies: Iterable[Reply] = ()) -> None:
        """Let the scheduler decide about one event, and act."""
        scheduler = self._scheduler
        scheduler.board.horizon = self._ledger.seq
        self._act(scheduler.handle(event, monotonic_s()), replies)

    def _act(self, actions: list[m.Action], replies: Iterable[Reply] = ()) -> None:
        answered = [action for action in actions if type(action) is m.Resolve]
        if answered:
            self._settler.resolve(answered, replies)
        self._undone = iter(actions)
        for action in self._undone:
            act = self._acts.get(type(action))
            if act is not None:
                act(action)
            elif type(action) is not m.Resolve:
                self._settler.take(action)
        while self._answers:
            self._act(self._scheduler.handle(self._answers.popleft(), monotonic_s()))

    def _publish(self) -> None:
        self._ledger.publish(self._performer.numbers(), anew=self.lender.has_untold)

    # Workers ----------------------------------------------------------------------------------------

    def _spawned(self, event: r.Spawned) -> None:
        self._current = ()  # its descriptors are closed with the link, or in its place
        worker = self._scheduler.worker(event.worker_id)
        link = failure = None
        try:
            link = self._links.open(event, self._adapter, self._config)
        except Exception as error:
            failure = error
        preparation = self._launcher.first_pickle(event.worker_id)
        self._handle(m.Started(event.worker_id, event.pid, *self._launcher.started_with(event.worker_id)))
        if worker is None or worker.state is not m.WorkerState.STARTING:
            return
        if link is not None:
            try:
                link.begin(self._adapter.start_args, preparation)
                self._links.watch_writes(link)
            except Exception as error:
                failure = error
        if failure is not None:
            self._handle(m.StartFailed(event.worker_id, failure))

    def _spawn_failed(self, event: r.SpawnFailed) -> None:
        self._launcher.first_pickle(event.worker_id)
        argv, _ = self._launcher.started_with(event.worker_id)
        worker = self._scheduler.worker(event.worker_id)
        self._handle(m.SpawnRefused(event.worker_id, refused_start(argv, event.error)))
        warn_of_exit(worker, event, self._scheduler.lifecycle.policy)

    def _exited(self, event: r.Exited) -> None:
        link = self._links.get(event.worker_id)
        if link is not None and link.put_off(self._exited, event):
            return
        worker = self._scheduler.worker(event.worker_id)
        if link is not None and worker is not None:
            # RACE: 1. the worker writes its reply and exits, 2. the exit is seen before the reply was read.
            # The pipe is read empty first, so the reply wins; and it counts as closed before, so that no reply
            # earns the dead process new work (tests/integration/test_crash.py::test_the_exit_is_seen_before_the_reply).
            self._handle(m.PipeClosed(event.worker_id))
            self._take_arrivals(link, link.receive(drain=True))
            self._act([m.TakeBack.everything(worker)])
        cut = "" if link is None else str(link.finish() or "")
        self._handle(m.Exited(event.worker_id, event.code, event.signal, event.stderr_tail, cut))
        warn_of_exit(worker, event, self._scheduler.lifecycle.policy)

    def _cancelled(self, event: m.Cancelled) -> None:
        self._handle(event)
        # The caller has settled it; what is left is to tell.
        self._settler.take(event)

    def _watchdog_failed(self, event: r.WatchdogFailed) -> None:
        raise InternalError(f"the watchdog failed: {event.error!r}") from event.error

    def _receive(self, link: Link) -> None:
        if link.away is not None:
            return
        arrivals = link.receive()
        if arrivals:
            self._take_arrivals(link, arrivals)
        if link.channel.closed_by_worker and link in self._links:
            self._links.stop_reading(link)
            self._handle(m.PipeClosed(link.worker_id))

    def _take_arrivals(self, link: Link, arrivals: list[Any]) -> None:
        worker_id = link.worker_id
        worker = self._scheduler.worker(worker_id)
        if len(arrivals) > 1 and isinstance(arrivals[-1], Garbled):
            # The answers before the garbage count, but nothing more is sent to a worker that cannot be understood.
            self._handle(m.PipeClosed(worker_id))
        left = deque(arrivals)
        while left:
            replies = [] if worker is None else take_answers(worker, left)
            if replies:
                self._lending.answered(link)
                self._handle(m.Replied(worker_id, replies[0].error, len(replies)), replies)
                continue
            arrival = left.popleft()
            if isinstance(arrival, SteppedOver):
                self._handle(m.Skipped(worker_id))
            elif isinstance(arrival, Shaken):
                self.announced = arrival.announced
                known = (arrival.can_claim, arrival.can_end_session, arrival.can_batch)
                self._handle(m.Ready(worker_id, *known))
            elif isinstance(arrival, Refused):
                self._handle(m.StartFailed(worker_id, arrival.error, arrival.fatal))
            elif isinstance(arrival, Garbled) and worker is not None:
                self._act([m.TakeBack.everything(worker)])
                warn_of_garbage(worker, arrival.error)
                self._handle(m.Misbehaved(worker_id, arrival.error))

    # The end ----------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Release everything; the watchdog ends once its last process is gone."""
        quietly(self._watchdog.stop)
        quietly(self._watchdog.join)
        quietly(self._lending.close)
        quietly(self._links.close)
        lifecycle = self._scheduler.lifecycle
        quietly(self._ledger.publish, (0, 0, 0, 0, lifecycle.restarts, lifecycle.recycled))
        for item in (*self._current, *self._posted, *self._inbox.close()):
            quietly(refuse_late, item, self._ledger.refusal())
        # The system gives their numbers to other threads from now on.
        self._ledger.threads = frozenset()
        self._on_end(self)
