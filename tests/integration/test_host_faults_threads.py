"""The pool's own threads fail, wherever and with whatever: nobody is left waiting, no process is left."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, balance, config, handler_pool, saboteur_pool

from snakepit import PoolBroken, SessionLost, SnakepitExecutor, WorkerDied
from snakepit._core import model as m
from snakepit._supervision.reports import Exited, Spawned
from snakepit.errors import InternalError

from gates import Gate
from leaks import is_gone, wait_until

ERRORS = [ZeroDivisionError("injected"), MemoryError("injected"), KeyboardInterrupt("injected"), SystemExit("injected")]


def raise_once(owner: Any, name: str, error: BaseException, when: Callable[..., bool] = lambda *_: True) -> list[int]:
    """Let a method raise at its first call that fits; returns a list that holds 1 from then on."""
    real = getattr(owner, name)
    raised: list[int] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if not raised and when(*args):
            raised.append(1)
            raise error
        return real(*args, **kwargs)

    setattr(owner, name, call)
    return raised


def is_a(kind: type) -> Callable[..., bool]:
    return lambda event, *_: type(event) is kind


class Scene:
    """A pool of two in the middle of everything, beside another one.

    Running in each worker, queued, of a session, a ``map`` in progress, a caller that waits for room.
    """

    def __init__(self, ex: SnakepitExecutor, make_gate: Callable[[], Gate]) -> None:
        self.ex = ex
        self.manager = ex._manager
        ex.wait_ready(LIMIT_S, 2)
        list(ex.map("run", ({"value": n} for n in range(100))))
        self.session = ex.session("s")
        self.session.execute("put", {"key": "k", "value": 1})
        self.gates = [make_gate(), make_gate()]
        self.futures = [
            ex.submit("hold", {"gate": self.gates[0].path}),
            ex.submit("hold", {"gate": self.gates[1].path}),
        ]
        self.pids = [self.gates[n].wait_started()[0].pid for n in range(2)]
        self.futures += [ex.submit("run", {"value": 1}) for _ in range(3)]
        self.futures += [self.session.submit("run", {"value": 1}), ex.submit("run", priority=1, queue_timeout=600)]
        self.moved = False
        self.failures: list[BaseException] = []
        self._threads = [self._catch(lambda: list(ex.map("run", ({"value": n} for n in range(50)), buffersize=5)))]
        wait_until(lambda: ex.stats().queued >= 10, LIMIT_S, "the map's requests")
        self._threads.append(self._catch(lambda: ex.submit("run", {"value": 2})))
        wait_until(lambda: ex._ledger._blocked, LIMIT_S, "the caller that waits for room")

    def _catch(self, call: Callable[[], Any]) -> threading.Thread:
        def run() -> None:
            try:
                call()
            except BaseException as error:
                self.failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def provoke(self, what: str) -> None:
        """Make something happen."""
        self.moved = self.moved or what in ("death", "cancel running", "end session")
        if what == "recycle":
            self.manager.post(m.RecycleRequested())
        elif what == "reply":
            self.gates[0].open()
        elif what == "death":
            with contextlib.suppress(ProcessLookupError):  # the failure provoked before has ended it already
                os.kill(self.pids[0], signal.SIGKILL)
        elif what == "cancel":
            self.futures[-2].cancel()
        elif what == "cancel running":
            self.futures[0].cancel(running=True)
        elif what == "end session":
            self.ex.end_session("s")
            self.futures[-2].cancel()
            for gate in self.gates:
                gate.open()
        else:
            raise AssertionError(what)

    def check(self, error: BaseException) -> None:
        """Everybody has been told why, in bounded time; nothing is left."""
        for thread in self._threads:
            thread.join(LIMIT_S)
        assert [False, False] == [thread.is_alive() for thread in self._threads]
        told = [future.exception(LIMIT_S) for future in self.futures if not future.cancelled()]
        told = [answer for answer in told if answer is not None] + self.failures
        if self.moved:
            # What ended before the failure has told the truth of then.
            told = [answer for answer in told if not isinstance(answer, (WorkerDied, SessionLost))]
        assert len(told) >= (1 if self.moved else 5)
        for answer in told:
            assert isinstance(answer, PoolBroken)
            assert repr(error) in str(answer)
            assert error in (answer.__cause__, answer.__cause__ and answer.__cause__.__cause__)
        calls: list[Callable[[], Any]] = [
            lambda: self.ex.submit("run"),
            lambda: self.ex.execute("run"),
            lambda: list(self.ex.map("run", [{}, {}])),
            lambda: self.session.submit("run"),
            lambda: self.session.execute("run"),
            lambda: self.ex.wait_ready(None, 2),
        ]
        for call in calls:
            with pytest.raises(PoolBroken, match="injected"):
                call()
        assert self.manager.join(LIMIT_S)
        assert () == self.ex.workers()
        self.ex.recycle()
        self.ex.end_session("s")
        with pytest.raises(LookupError):
            self.ex.restart_worker("pool-0-1")
        stats = self.ex.stats()
        assert (0, 0, 0, 0, 0) == (stats.workers, stats.busy, stats.starting, stats.queued, stats.running)
        assert balance(stats) == stats.requests
        assert [True, True] == [is_gone(pid) for pid in self.pids]
        self.ex.shutdown()
        self.ex.shutdown(cancel_futures=True, timeout=1)
        self.ex.kill_workers()


@pytest.fixture
def scene(make_gate: Callable[[], Gate]) -> Iterator[Scene]:
    """A busy pool; another pool of the host serves before and after."""
    with handler_pool(1, name="other") as other:
        pid = other.execute("pid")
        with handler_pool(2, max_queue_size=10, queue_full="block") as ex:
            yield Scene(ex, make_gate)
        assert pid == other.submit("pid").result(LIMIT_S)
        assert 0 == other.stats().restarts


# The manager ----------------------------------------------------------------------------------------

HANDLED = [
    (m.Replied, "reply"),
    (m.Exited, "death"),
    (m.PipeClosed, "death"),
    (m.Started, "death"),
    (m.Ready, "death"),
    (m.Cancelled, "cancel"),
    (m.SessionEnded, "end session"),
    (m.RecycleRequested, "recycle"),
]


@pytest.mark.parametrize(("kind", "what"), HANDLED, ids=lambda value: getattr(value, "__name__", None))
def test_the_scheduler_raises(scene: Scene, kind: type, what: str) -> None:
    """Whatever event it was asked about."""
    error = ERRORS[0]
    raised = raise_once(scene.manager._scheduler, "handle", error, is_a(kind))

    scene.provoke(what)

    wait_until(lambda: raised, LIMIT_S, f"{kind.__name__} is handled")
    scene.check(error)


ACTIONS = [
    (m.Dispatch, "reply"),
    (m.Condemn, "cancel running"),
    (m.Forget, "death"),
    (m.Spawn, "death"),
    (m.EndSession, "end session"),
]


@pytest.mark.parametrize(("kind", "what"), ACTIONS, ids=lambda value: getattr(value, "__name__", None))
def test_an_action_raises(scene: Scene, kind: type, what: str) -> None:
    """In the middle of what the scheduler has decided; what follows it in the list is lost to nobody."""
    error = ERRORS[0]
    act = scene.manager._acts[kind]
    raised = []

    def fail(action: Any) -> None:
        if raised:
            act(action)
        raised.append(1)
        raise error

    scene.manager._acts[kind] = fail

    scene.provoke(what)

    wait_until(lambda: raised, LIMIT_S, f"{kind.__name__} is performed")
    scene.check(error)


SEAMS = [
    ("_links", "poll"),
    ("_inbox", "drain"),
    ("_inbox", "may_sleep"),
    ("_settler", "settle"),
    ("_settler", "resolve"),
    ("_ledger", "publish"),
    ("_ledger", "sent"),
    ("_watchdog", "spawn"),
    ("_launcher", "spec_for"),
]


@pytest.mark.parametrize(("owner", "name"), SEAMS, ids=[f"{owner[1:]}.{name}" for owner, name in SEAMS])
def test_a_part_raises(scene: Scene, owner: str, name: str) -> None:
    """The poller, the inbox, the settling, the counting, the request for a process."""
    error = ERRORS[0]
    raised = raise_once(getattr(scene.manager, owner), name, error)

    scene.provoke("reply")
    scene.provoke("death")

    wait_until(lambda: raised, LIMIT_S, f"{owner}.{name} is called")
    scene.check(error)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_is_raised(scene: Scene, error: BaseException) -> None:
    """Also what is no Exception: the thread ends, and everybody is told."""
    raise_once(scene.manager._scheduler, "handle", error, is_a(m.Replied))

    scene.provoke("reply")

    scene.check(error)


def test_every_step_of_the_end_is_taken_whatever_fails(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log's handler, the counting of one request and the closing of the links raise as well."""
    error = ERRORS[0]

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError("a handler of the user's")

    handler = Raising()
    logger = logging.getLogger("snakepit.pool")
    logger.addHandler(handler)
    close = scene.manager._links.close

    def close_badly() -> None:
        close()
        raise OSError("the links")

    scene.manager._links.close = close_badly  # type: ignore[method-assign]
    settle, failed = scene.manager._ledger.settle, []

    def settle_badly(request: Any, outcome: Any) -> bool:
        if scene.futures[0]._request is request and not failed:
            failed.append(settle(request, outcome))
            raise ZeroDivisionError("counted, and not told")
        return settle(request, outcome)

    try:
        raise_once(scene.manager._scheduler, "handle", error, is_a(m.Cancelled))
        scene.provoke("cancel")
        scene.check(error)
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize("where", ["in the scheduler", "before it", "after it"])
def test_who_waits_for_workers_is_told(where: str) -> None:
    """A waiter without a time-out ends, however far the question for workers or their readiness had come."""
    error = ERRORS[0]
    outcome: list[BaseException] = []
    with saboteur_pool(1, env={"SABOTEUR_START": "silent"}, config=config(min_workers=0)) as ex:
        scheduler = ex._manager._scheduler
        if where == "before it":
            raise_once(scheduler, "handle", error, is_a(m.WorkersWanted))
        elif where == "in the scheduler":
            raise_once(scheduler, "_notify", error)
        else:
            ex._manager._acts[m.Spawn] = lambda _: 1 // 0

        def wait_ready() -> None:
            try:
                ex.wait_ready(timeout=None)
            except BaseException as raised:
                outcome.append(raised)

        thread = threading.Thread(target=wait_ready)
        thread.start()
        thread.join(LIMIT_S)

    assert not thread.is_alive()
    assert [PoolBroken] == [type(told) for told in outcome]


def test_a_ready_worker_is_told_although_an_action_before_raises() -> None:
    """The waiter whose answer was decided, in the list behind the action that raised, gets the failure."""
    outcome: list[BaseException] = []
    with saboteur_pool(1, config=config(min_workers=0)) as ex:
        handle = ex._manager._scheduler.handle

        def act(_: object) -> None:
            raise ERRORS[0]

        class Failing:
            """An action of a kind that is known, before all others."""

        def handle_and_add(event: object, now: float) -> list[Any]:
            actions: list[Any] = handle(event, now)
            if any(isinstance(action, m.Notify) for action in actions):
                actions.insert(0, Failing())
            return actions

        ex._manager._acts[Failing] = act
        ex._manager._scheduler.handle = handle_and_add  # type: ignore[method-assign]

        def wait_ready() -> None:
            try:
                ex.wait_ready(timeout=None)
            except BaseException as raised:
                outcome.append(raised)

        thread = threading.Thread(target=wait_ready)
        thread.start()
        thread.join(LIMIT_S)

    assert not thread.is_alive()
    assert [PoolBroken] == [type(told) for told in outcome]


@pytest.mark.parametrize("kind", [m.Break, m.Heal])
def test_breaking_and_healing_raise(kind: type) -> None:
    """A pool whose budget is spent, or that is healed, fails as any other."""
    with saboteur_pool(1, env={"SABOTEUR_START": "exit"}, config=config(restart_budget=1)) as ex:
        if kind is m.Heal:
            assert isinstance(ex.submit("do", {}).exception(LIMIT_S), PoolBroken)

        def fail(_: object) -> None:
            raise ERRORS[0]

        ex._manager._acts[kind] = fail
        try:
            future = ex.submit("do", {})
        except PoolBroken:
            future = None
        ex.recycle()

        assert ex._manager.join(LIMIT_S)
        with pytest.raises(PoolBroken, match="injected"):
            ex.submit("do", {})
    assert future is None or isinstance(future.exception(0), PoolBroken)


def test_closing_raises() -> None:
    """The last step of a shutdown raises: shutdown returns all the same."""
    ex = saboteur_pool(1)
    assert 1 == ex.execute("do", {"value": 1})

    def fail(_: object) -> None:
        raise ERRORS[0]

    ex._manager._acts[m.Close] = fail

    ex.shutdown()

    assert 0 == ex.stats().workers


# The watchdog ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_watchdogs_loop_raises(scene: Scene, error: BaseException) -> None:
    """Its failure is the pool's, with its cause."""
    raise_once(scene.manager._watchdog._custody, "do_due", error)

    scene.manager._watchdog.kill("nobody")

    scene.check(error)


@pytest.mark.parametrize("name", ["settle", "spawn", "_finish", "stderr.drain"])
def test_the_watchdog_raises_while_it_reaps_or_spawns(scene: Scene, name: str) -> None:
    """In the middle of a worker's end, or of the start of the next one."""
    error = ERRORS[0]
    custody = scene.manager._watchdog._custody
    owner = custody.stderr if "." in name else custody
    raised = raise_once(owner, name.rpartition(".")[2], error)

    scene.provoke("death")

    wait_until(lambda: raised, LIMIT_S, f"{name} is called")
    scene.check(error)


@pytest.mark.parametrize("error", [KeyboardInterrupt("injected"), MemoryError("injected")])
def test_the_spawn_raises_what_is_no_exception(scene: Scene, error: BaseException) -> None:
    """A MemoryError is a failed start like any other; a KeyboardInterrupt ends the watchdog."""
    raised = raise_once(scene.manager._watchdog._custody, "_spawner", error)

    scene.provoke("death")

    wait_until(lambda: raised, LIMIT_S, "a spawn")
    if isinstance(error, Exception):
        died = scene.futures[0].exception(LIMIT_S)
        for gate in scene.gates:
            gate.open()
        assert isinstance(died, WorkerDied)
        for future in scene.futures[1:]:
            assert isinstance(future.exception(LIMIT_S), (type(None), SessionLost))
        wait_until(lambda: scene.ex.stats().available == 2, LIMIT_S, "another start")
        assert () == tuple(scene.failures)
    else:
        scene.check(error)


def test_the_watchdogs_log_raises(scene: Scene) -> None:
    """A handler of the user's that raises does not keep the processes alive."""
    error = ERRORS[0]

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ZeroDivisionError("a handler of the user's")

    handler = Raising()
    logger = logging.getLogger("snakepit.watchdog")
    logger.addHandler(handler)
    try:
        raise_once(scene.manager._watchdog._custody, "do_due", error)
        scene.manager._watchdog.kill("nobody")
        scene.check(error)
    finally:
        logger.removeHandler(handler)


def test_the_cause_of_a_failed_watchdog_is_told(scene: Scene) -> None:
    """The message names the watchdog, and what it has failed with."""
    raise_once(scene.manager._watchdog._custody, "do_due", ERRORS[0])

    scene.manager._watchdog.kill("nobody")

    told = scene.futures[0].exception(LIMIT_S)
    assert isinstance(told, PoolBroken)
    assert isinstance(told.__cause__, InternalError)
    assert "the watchdog failed" in str(told)
    assert ERRORS[0] is told.__cause__.__cause__


@pytest.mark.parametrize("kind", [Spawned, Exited])
def test_a_report_that_cannot_be_taken(scene: Scene, kind: type) -> None:
    """The manager fails on what the watchdog tells; the descriptors of a new worker are closed once."""
    error = ERRORS[0]
    handler = scene.manager._handlers[kind]

    def fail(event: Any) -> None:
        handler(event)
        raise error

    scene.manager._handlers[kind] = fail

    scene.provoke("death")

    scene.check(error)
