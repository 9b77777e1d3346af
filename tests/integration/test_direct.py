"""Calls on their callers' own threads: what is quick stays right, whatever happens in its middle."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import logging
import os
import random
import select
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from integration import callables_lib as lib
from integration import scripts
from integration.workers.pools import (
    HANDLERS,
    LIMIT_S,
    balance,
    config,
    handler_pool,
    lines,
    manager_held,
    recorded,
    saboteur_pool,
)

from snakepit import (
    CommandError,
    CommandTimeout,
    ProtocolError,
    PythonAdapter,
    QueueFull,
    SnakepitExecutor,
    WorkerDied,
    telemetry,
)
from snakepit._pool import direct, manager
from snakepit._pool.loans import REST_S, Lender, Loan

import gates
from gates import Gate
from leaks import is_gone, wait_until

BURST = 20


@pytest.fixture(autouse=True)
def lending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lend whatever the service time, and let callers wait: what happens does not depend on the machine's load."""
    monkeypatch.setenv("SNAKEPIT_DIRECT_CALLS", "on")
    monkeypatch.setattr(direct._collect, "__defaults__", (LIMIT_S * 1000,))
    # What rests is not recalled between two steps of a test.
    monkeypatch.setattr(manager, "REST_S", 2 * LIMIT_S)


@pytest.fixture
def resting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recall what has rested for as long as it may."""
    monkeypatch.setattr(manager, "REST_S", REST_S)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every answer come too late for the caller itself."""
    monkeypatch.setattr(direct._collect, "__defaults__", (0.0,))


@pytest.fixture
def direct_ends(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the commands of the calls that ended on their callers' own threads, oldest first."""
    ended: list[str] = []
    finish = Lender.finish

    def counted(self: Lender, loan: Loan, reply: Any) -> bool:
        done = finish(self, loan, reply)
        if done:
            ended.append(reply.request.command)
        return done

    monkeypatch.setattr(Lender, "finish", counted)
    return ended


class Stop:
    """The place where a caller's thread, with a worker in its hands, waits once for the test."""

    def __init__(self, moment: str) -> None:
        self.moment = moment
        self._armed = False
        self._reached, self._go = threading.Event(), threading.Event()

    def here(self) -> None:
        if self._armed:
            self._armed = False
            self._reached.set()
            assert self._go.wait(LIMIT_S)

    def arm(self) -> None:
        self._armed = True

    def wait(self) -> None:
        assert self._reached.wait(LIMIT_S)

    def open(self) -> None:
        self._armed = False
        self._go.set()


@pytest.fixture(params=["admitted", "sent", "read"])
def stop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stop]:
    """Stop a caller after its request was admitted, or after it was sent, or after its answer was read."""
    stop = Stop(request.param)
    admit, has_arrivals, finish = Lender.admit, Loan.has_arrivals, Lender.finish

    def stopping_admit(self: Lender, loan: Loan, request: Any) -> bool:
        done = admit(self, loan, request)
        stop.here()
        return done

    def stopping_has_arrivals(self: Loan, limit_ms: float) -> bool:
        if limit_ms:
            stop.here()
        return has_arrivals(self, limit_ms)

    def stopping_finish(self: Lender, loan: Loan, reply: Any) -> bool:
        stop.here()
        return finish(self, loan, reply)

    if stop.moment == "admitted":
        monkeypatch.setattr(Lender, "admit", stopping_admit)
    elif stop.moment == "sent":
        monkeypatch.setattr(Loan, "has_arrivals", stopping_has_arrivals)
    else:
        monkeypatch.setattr(Lender, "finish", stopping_finish)
    yield stop
    stop.open()


@contextmanager
def in_hands(ex: SnakepitExecutor, stop: Stop, *call: Any, **options: Any) -> Iterator[Future[Any]]:
    """Let another thread execute a call up to the stop, and yield what becomes of it; at the end it goes on."""
    warm(ex)
    with ThreadPoolExecutor(1) as threads:
        try:
            stop.arm()
            caller = threads.submit(ex.execute, *(call or ("run", {"value": "direct"})), **options)
            stop.wait()
            yield caller
        finally:
            stop.open()


def warm(ex: SnakepitExecutor) -> None:
    """Make a worker answer, so that it is lent."""
    is_saboteur = "saboteur" in str(getattr(ex._adapter, "argv", ""))
    ex.execute(*(("do", {"value": 0}) if is_saboteur else ("run", {"value": 0})))
    assert ex._manager.lender.has_resting


def the_link(ex: SnakepitExecutor) -> Any:
    (link,) = ex._manager._links
    return link


def pending_future(ex: SnakepitExecutor) -> Any:
    (request,) = ex._ledger.pending()
    return request.future


# Calls that go well -----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["execute", "submit"])
@pytest.mark.parametrize("mode", ["on", "off"])
def test_sequential_calls_are_direct(
    mode: str, how: str, direct_ends: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call after another never changes threads; without direct calls the results and the counters are the same."""
    monkeypatch.setenv("SNAKEPIT_DIRECT_CALLS", mode)
    with handler_pool(1) as commands, SnakepitExecutor(1) as callables:
        commands.execute("run")
        callables.execute(lib.add, 0)

        def call(ex: SnakepitExecutor, *call: Any) -> Any:
            return ex.execute(*call) if how == "execute" else ex.submit(*call).result()

        values = [call(commands, "run", {"value": n}) for n in range(BURST)]
        sums = [call(callables, lib.add, n, 1) for n in range(BURST)]
        stats = commands.stats(), callables.stats()

    assert (list(range(BURST)), list(range(1, BURST + 1))) == (values, sums)
    assert [(BURST + 1, BURST + 1, 0, 0)] * 2 == [(s.requests, s.completed, s.running, s.queued) for s in stats]
    if mode == "off":
        assert [] == direct_ends
    else:
        # Of calls laid down the manager may be the first to read some.
        assert (2 * BURST if how == "execute" else 1) <= len(direct_ends)


def test_a_direct_call_needs_no_turn_of_the_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two calls the pool's own thread sleeps."""
    with handler_pool(1) as ex:
        warm(ex)
        with manager_held(ex):
            assert not ex._manager.lender.has_resting
        warm(ex)
        turns: list[int] = []
        drain = ex._manager._inbox.drain
        monkeypatch.setattr(ex._manager._inbox, "drain", lambda: turns.append(1) or drain())

        assert list(range(5)) == [ex.execute("run", {"value": n}) for n in range(5)]

        assert [] == turns


@pytest.mark.parametrize("how", ["execute", "submit"])
def test_errors_are_direct_too(how: str, direct_ends: list[str]) -> None:
    """A command's and a callable's error is raised, counted, and costs nothing else."""
    with handler_pool(1) as commands, SnakepitExecutor(1) as callables:
        commands.execute("run")
        callables.execute(lib.add, 0)
        for _ in range(3):
            with pytest.raises(CommandError, match="boom"):
                commands.execute("fail") if how == "execute" else commands.submit("fail").result()
            with pytest.raises(ValueError, match="no such key") as raised:
                call = lib.fail_with_cause
                callables.execute(call) if how == "execute" else callables.submit(call).result()
            assert raised.value.__cause__ is not None
        stats = commands.stats(), callables.stats()

    assert [(4, 1, 3, 0)] * 2 == [(s.requests, s.completed, s.errors, s.restarts) for s in stats]
    assert 6 == len(direct_ends) or how == "submit"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("how", ["execute", "submit"])
def test_an_answer_that_comes_late_is_the_managers(how: str, direct_ends: list[str]) -> None:
    """A caller that has waited for long enough leaves the rest to the manager."""
    with handler_pool(1) as ex:
        warm(ex)
        values = [
            ex.execute("run", {"value": n}) if how == "execute" else ex.submit("run", {"value": n}).result()
            for n in range(BURST)
        ]
        stats = ex.stats()

    assert list(range(BURST)) == values
    assert (BURST + 1, BURST + 1, 0) == (stats.requests, stats.completed, stats.running)


def test_what_nobody_asks_for_is_read_by_the_manager(direct_ends: list[str]) -> None:
    """A future that is only looked at, watched or forgotten ends all the same."""
    with handler_pool(1) as ex:
        called: list[Any] = []

        def submitted(value: int) -> Any:
            warm(ex)
            return ex.submit("run", {"value": value})

        polled = submitted(1)
        wait_until(polled.done)
        waited = submitted(2)
        assert {waited} == wait([waited], LIMIT_S).done
        completed = submitted(3)
        assert [completed] == list(as_completed([completed], LIMIT_S))
        called_back = submitted(4)
        called_back.add_done_callback(called.append)
        wait([called_back], LIMIT_S)
        limited = submitted(5)
        limited.result(LIMIT_S)
        submitted(6)
        failed = submitted(7)
        assert failed.exception() is None
        awaited = submitted(8)

        async def await_it() -> Any:
            return await asyncio.wait_for(asyncio.wrap_future(awaited), LIMIT_S)

        assert 8 == asyncio.run(await_it())
        futures = [polled, waited, completed, called_back, limited, failed]

        assert [1, 2, 3, 4, 5, 7] == [future.result(0) for future in futures]
        wait_until(lambda: called == [called_back])
        assert {the_link(ex).pid} == {future.pid for future in futures}
    assert 16 == ex.stats().completed


def test_two_pools(direct_ends: list[str]) -> None:
    """Calls of one pool in turn with those of another are direct in both."""
    with handler_pool(1) as one, handler_pool(1) as two:
        warm(one)
        warm(two)
        pids = [(one.execute("pid"), two.execute("pid")) for _ in range(5)]

    assert 1 == len(set(pids))
    assert len(set(pids[0])) == 2
    assert ["pid"] * 10 == direct_ends[-10:]


class Shaping(PythonAdapter):
    """Shapes results on the pool's own thread."""

    def process_response(self, command: str, value: Any) -> Any:
        return command, value, threading.current_thread().name


def test_an_adapter_that_shapes_results_does_so_on_the_pools_thread(direct_ends: list[str]) -> None:
    """Its ``process_response`` is promised that thread, so nothing is lent."""
    shaping = Shaping(HANDLERS, env={"PYTHONPATH": gates.DIRECTORY})
    with handler_pool(1, name="shapes", adapter=shaping) as ex:
        results = {ex.execute("run", {"value": 1}) for _ in range(5)}

    assert {("run", 1, "snakepit-shapes-manager")} == results
    assert [] == direct_ends


def test_a_worker_with_a_most_of_requests_is_not_lent(direct_ends: list[str]) -> None:
    """Every worker answers at most what it may."""
    with handler_pool(1, config=config(max_requests_per_worker=2)) as ex:
        pids = [ex.execute("pid") for _ in range(6)]

    assert [2, 2, 2] == list(Counter(pids).values())
    assert [] == direct_ends


def test_sessions_go_through_the_manager(direct_ends: list[str]) -> None:
    """Calls of a session and direct calls take turns on the same worker, each in its order."""
    with handler_pool(1) as ex:
        session = ex.session("s")
        seen = []
        for n in range(5):
            assert n == ex.execute("run", {"value": n})
            seen.append(session.execute("append", {"value": n})[1])

    assert [list(range(n + 1)) for n in range(5)] == seen
    assert {"run"} >= set(direct_ends)


def test_a_large_request_is_the_managers(direct_ends: list[str]) -> None:
    """What a pipe may not take at once is written by who can wait for room."""
    with handler_pool(1) as ex:
        warm(ex)
        assert [0, 1 << 20, 5] == [ex.execute("size", {"data": "x" * size}) for size in (0, 1 << 20, 5)]

    assert 2 == direct_ends.count("size")


@pytest.mark.parametrize("how", ["execute", "submit"])
def test_a_pipe_that_takes_a_part_only(how: str) -> None:
    """The rest of a request is written as soon as there is room, though nobody asks for the result."""
    with handler_pool(1) as ex:
        warm(ex)
        fcntl.fcntl(the_link(ex).channel.request_fd, fcntl.F_SETPIPE_SZ, 4096)

        call = "size", {"data": "x" * 20000}
        done = ex.submit(*call)
        size = ex.execute(*call) if how == "execute" else next(iter(wait([done], LIMIT_S).done)).result(0)

        assert 20000 == size == done.result(LIMIT_S)


def test_a_large_reply_is_finished_by_the_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that has read a part of the reply when its time is over hands the part on."""
    monkeypatch.setattr(direct._collect, "__defaults__", (20.0,))
    with handler_pool(1) as ex:
        warm(ex)
        text = "x" * (8 << 20)
        for _ in range(3):
            assert text == ex.execute("give", {"value": text})
            warm(ex)
            assert "x" * 30000 == ex.execute("give", {"value": "x" * 30000})


@pytest.mark.parametrize("how", ["execute", "submit"])
def test_logs_come_before_the_reply(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a worker logs before it answers is logged, on whatever thread reads it."""
    with handler_pool(1) as ex:
        warm(ex)
        with caplog.at_level(logging.WARNING, "snakepit.worker"):
            for n in range(3):
                call = "shout", {"text": f"text {n}"}
                assert f"text {n}" == (ex.execute(*call) if how == "execute" else ex.submit(*call).result())

    assert ["logged text 0", "logged text 1", "logged text 2"] == [
        record.getMessage().partition("] ")[2] for record in caplog.records if "logged" in record.getMessage()
    ]


# Workers that misbehave -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["execute", "submit", "wait"])
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(
    ("args", "kind", "text"),
    [
        ({"how": "print"}, ProtocolError, "debug: here I am"),
        ({"how": "bad_json"}, ProtocolError, "oops"),
        ({"how": "zero"}, ProtocolError, "0 bytes"),
        ({"how": "half_exit"}, WorkerDied, "exit code 0"),
        ({"how": "unknown_id"}, ProtocolError, "never issued"),
        ({"how": "close_out"}, ProtocolError, "closed its reply pipe"),
        ({"how": "exit", "code": 9, "text": "no disk"}, WorkerDied, "no disk"),
        ({"how": "signal", "number": int(signal.SIGSEGV)}, WorkerDied, "SIGSEGV"),
    ],
    ids=lambda value: value["how"] if isinstance(value, dict) else None,
)
def test_sabotage_fails_its_call_only(
    level: int, args: dict[str, Any], kind: type[Exception], text: str, how: str
) -> None:
    """The call fails with the cause, as if the manager had sent it; the worker is replaced."""
    with saboteur_pool(level=level) as ex:
        warm(ex)

        with pytest.raises(kind, match=text):
            if how == "execute":
                ex.execute("do", args)
            else:
                future = ex.submit("do", args)
                _ = wait([future], LIMIT_S) if how == "wait" else None
                future.result()

        assert 2 == ex.execute("do", {"value": 2})
        stats = ex.stats()
    assert (3, 2, 1, 1) == (stats.requests, stats.completed, stats.errors, stats.restarts)


@pytest.mark.parametrize("deed", ["twice", "late"])
def test_replies_to_settled_ids_are_dropped(deed: str) -> None:
    """A second or a late reply changes no result, and the worker stays."""
    with saboteur_pool() as ex:
        warm(ex)
        results = [ex.execute("do", {"how": deed, "value": n}) for n in range(1, 6)]
        results += [ex.execute("do", {"value": n}) for n in range(6, 11)]
        stats = ex.stats()

    assert list(range(1, 11)) == results
    assert (11, 0, 0) == (stats.completed, stats.errors, stats.restarts)


@pytest.mark.parametrize("how", ["execute", "wait"])
def test_a_worker_that_reads_no_more(how: str) -> None:
    """A request that cannot be written fails with its worker, also when nobody asks for the result."""
    with saboteur_pool() as ex:
        warm(ex)
        ex.execute("do", {"how": "close_in"})

        future = ex.submit("do", {"value": 1})
        if how == "execute":
            with pytest.raises((ProtocolError, WorkerDied)):
                future.result()
        assert isinstance(future.exception(LIMIT_S), (ProtocolError, WorkerDied))

        assert 2 == ex.execute("do", {"value": 2})


@pytest.mark.parametrize("deed", ["hang", "half_hang"])
@pytest.mark.parametrize("how", ["execute", "submit", "wait"])
@pytest.mark.parametrize("timeout_s", [0.001, 0.2])
def test_time_outs(deed: str, how: str, timeout_s: float) -> None:
    """A call ends with its time-out whoever reads, and whether or not the caller itself waits for that long."""
    with saboteur_pool() as ex:
        warm(ex)
        began = ex._manager._scheduler.board.now

        with pytest.raises(CommandTimeout, match=f"time-out of {timeout_s} s"):
            if how == "execute":
                ex.execute("do", {"how": deed}, timeout=timeout_s)
            else:
                future = ex.submit("do", {"how": deed}, timeout=timeout_s)
                _ = wait([future], LIMIT_S) if how == "wait" else None
                future.result()

        assert began < ex._manager._scheduler.board.now
        assert 2 == ex.execute("do", {"value": 2})
        assert 1 == ex.stats().command_timeouts


@pytest.mark.usefixtures("resting")
def test_the_time_out_of_what_was_laid_down_is_not_late() -> None:
    """A short time-out is kept though the manager sleeps, and the caller only waits for the future's end."""
    with saboteur_pool() as ex:
        for timeout_s in (0.05, 1.2):
            warm(ex)
            future = ex.submit("do", {"how": "hang"}, timeout=timeout_s)
            with pytest.raises(CommandTimeout) as raised:
                future.result(LIMIT_S)

            ran_s = float(str(raised.value).partition("and ran for ")[2].partition(" s")[0])
            assert timeout_s <= ran_s < timeout_s + 0.7, raised.value


def test_a_stopped_worker_costs_the_time_out() -> None:
    """A worker that was stopped is waited for by the manager, and by nobody after its time."""
    with handler_pool(1) as ex:
        warm(ex)
        os.kill(the_link(ex).pid, signal.SIGSTOP)

        with pytest.raises(CommandTimeout):
            ex.execute("run", timeout=0.3)

        assert 1 == ex.execute("run", {"value": 1})


def test_what_a_lent_worker_writes_uncalled_for(gate: Gate) -> None:
    """Garbage of a resting worker is not taken for the next answer: the call goes to another worker."""
    with saboteur_pool() as ex:
        ex.execute("do", {"how": "arm", "at": gate.path, "deed": {"how": "bad_json"}})
        gate.wait_started()
        (before,) = ex.workers()
        warm(ex)
        reply_fd = the_link(ex).channel.reply_fd
        gate.release()
        assert select.select([reply_fd], [], [], LIMIT_S)[0]

        assert 1 == ex.execute("do", {"value": 1})
        (after,) = ex.workers()

    assert before.pid != after.pid
    assert (0, 1) == (ex.stats().errors, ex.stats().restarts)


@pytest.mark.usefixtures("resting")
@pytest.mark.parametrize("deed", ["bad_json", "exit"])
def test_what_becomes_of_a_lent_worker_is_noticed_without_a_call(deed: str, gate: Gate) -> None:
    """Its end is noticed at once, its garbage when the loan has rested for long enough."""
    with saboteur_pool() as ex:
        ex.execute("do", {"how": "arm", "at": gate.path, "deed": {"how": deed, "code": 3}})
        gate.wait_started()
        (before,) = ex.workers()
        warm(ex)
        gate.release()

        wait_until(lambda: is_gone(before.pid or 0), LIMIT_S)
        wait_until(lambda: ex.stats().restarts == 1, LIMIT_S)

        assert 1 == ex.execute("do", {"value": 1})


def test_the_end_of_a_worker_in_hands_does_not_keep_the_manager_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a caller is slow to load the last reply of a worker, the manager sleeps."""
    with saboteur_pool() as ex:
        warm(ex)
        pid, polls = the_link(ex).pid, 0
        poll, finish = ex._manager._links.poll, Lender.finish

        def counting_poll(timeout_s: float | None) -> Any:
            nonlocal polls
            polls += 1
            return poll(timeout_s)

        def slow_finish(self: Lender, loan: Loan, reply: Any) -> bool:
            wait_until(lambda: is_gone(pid), LIMIT_S)
            threading.Event().wait(0.2)
            return finish(self, loan, reply)

        monkeypatch.setattr(ex._manager._links, "poll", counting_poll)
        monkeypatch.setattr(Lender, "finish", slow_finish)
        assert 5 == ex.execute("do", {"how": "reply_exit", "value": 5})

        assert polls < 50


# In the middle of a call ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2])
def test_another_call_in_the_middle(stop: Stop, size: int, tmp_path: Path) -> None:
    """Who calls while another one reads neither waits for nothing nor overtakes."""
    log = str(tmp_path / "log")
    with handler_pool(size) as ex:
        ex.wait_ready(workers=size)
        with in_hands(ex, stop, "run", {"value": 1, "log": log}) as caller:
            others = [ex.submit("run", {"value": n, "log": log}) for n in (2, 3)]
            if size == 2:
                assert [2, 3] == [future.result(LIMIT_S) for future in others]
            else:
                assert not any(future.done() for future in others)
            stop.open()

            assert 1 == caller.result(LIMIT_S)
            assert [2, 3] == [future.result(LIMIT_S) for future in others]
        stats = ex.stats()

    assert size == 2 or ["1", "2", "3"] == lines(log)
    assert stats.completed == stats.requests == 4


def test_numbers_in_the_middle(stop: Stop) -> None:
    """The call runs and its worker is busy, whether or not the manager has heard of it."""
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        with in_hands(ex, stop):
            before = ex.stats()
            infos = ex.workers()
            after = ex.stats()

    for stats in (before, after):
        assert (2, 1, 1, 1, 0) == (stats.workers, stats.busy, stats.available, stats.running, stats.queued)
        assert stats.requests == balance(stats) == 2
    assert ["busy", "idle"] == sorted(info.state for info in infos)


def test_numbers_while_others_are_dispatched(stop: Stop, gate: Gate) -> None:
    """A worker in hands is counted once, also when the manager counts another one as busy."""
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        seen: list[Any] = []
        with in_hands(ex, stop):
            get = ex._manager._links.get
            # Asked for when the request is about to be sent.
            ex._manager._links.get = lambda name: (seen.append(ex.stats()), get(name))[1]  # type: ignore[method-assign]
            held = ex.submit("hold", {"gate": gate.path})
            gate.wait_started()
            ex._manager._links.get = get  # type: ignore[method-assign]
            seen.append(ex.stats())
            gate.open()
            held.result(LIMIT_S)

    assert 2 == len(seen)
    for stats in seen:
        assert (0, 2) == (stats.available, stats.busy), stats


def test_numbers_at_the_moment_of_the_loan(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that begins while the manager is still in the turn in which it lends is counted once."""
    with handler_pool(1) as ex, ThreadPoolExecutor(1) as others:
        lend, calls, seen = Lender.lend, [], []

        def slow_lend(self: Lender, links: Any) -> None:
            lend(self, links)
            if not calls and self.has_resting:
                calls.append(others.submit(ex.execute, "hold", {"gate": gate.path, "value": 1}))
                gate.wait_started()
                seen.append(ex.stats())
                gate.open()

        monkeypatch.setattr(Lender, "lend", slow_lend)
        ex.execute("run")
        assert 1 == calls[0].result(LIMIT_S)

    assert [(0, 1, 1, 0)] == [(stats.available, stats.busy, stats.running, stats.queued) for stats in seen]


def test_cancel_in_the_middle(stop: Stop) -> None:
    """The call is cancelled once, its worker replaced or not, and the next call served."""
    with handler_pool(1) as ex:
        with in_hands(ex, stop) as caller:
            future = pending_future(ex)
            assert not future.cancel()
            assert future.cancel(running=True)
            assert future.cancelled()
            stop.open()
            with pytest.raises(CancelledError):
                caller.result(LIMIT_S)

        assert 1 == ex.execute("run", {"value": 1})
        stats = ex.stats()
    assert (3, 2, 1, 0) == (stats.requests, stats.completed, stats.cancelled, stats.errors)


def test_a_callback_added_in_the_middle(stop: Stop) -> None:
    """It is called once, with the result there."""
    called: list[Any] = []
    with handler_pool(1) as ex:
        with in_hands(ex, stop) as caller:
            pending_future(ex).add_done_callback(lambda future: called.append(future.result(0)))
            stop.open()
            assert "direct" == caller.result(LIMIT_S)
        wait_until(lambda: called)
        assert 1 == ex.execute("run", {"value": 1})
    assert ["direct"] == called


def test_two_threads_wait_for_one_future(stop: Stop) -> None:
    """The one that came later is told by the manager."""
    with handler_pool(1) as ex:
        with in_hands(ex, stop) as caller, ThreadPoolExecutor(2) as others:
            future = pending_future(ex)
            waiting = [others.submit(future.result) for _ in range(2)]
            assert future.running()
            stop.open()
            assert ["direct"] * 3 == [waiter.result(LIMIT_S) for waiter in (caller, *waiting)]
        assert 2 == ex.stats().completed


@pytest.mark.parametrize("cancel", [False, True])
def test_shutdown_in_the_middle(stop: Stop, cancel: bool) -> None:
    """What runs is finished, and then the pool ends."""
    ex = handler_pool(1)
    with in_hands(ex, stop) as caller:
        ex.shutdown(wait=False, cancel_futures=cancel)
        with pytest.raises(RuntimeError, match="after shutdown"):
            ex.execute("run")
        stop.open()
        assert "direct" == caller.result(LIMIT_S)
    ex.shutdown()

    assert (2, 2, 0) == (ex.stats().requests, ex.stats().completed, ex.stats().workers)


@pytest.mark.parametrize("how", ["recycle", "restart_worker"])
def test_replaced_in_the_middle(stop: Stop, how: str) -> None:
    """The call ends on the old worker, the next one begins on a new one."""
    with handler_pool(1) as ex:
        with in_hands(ex, stop, "pid") as caller:
            (worker,) = ex.workers()
            ex.recycle() if how == "recycle" else ex.restart_worker(worker.worker_id)
            stop.open()
            assert worker.pid == caller.result(LIMIT_S)
        wait_until(lambda: ex.stats().recycled == 1)

        assert worker.pid != ex.execute("pid")


@pytest.mark.parametrize("how", ["kill_workers", "terminate_workers"])
def test_ended_in_the_middle(stop: Stop, how: str) -> None:
    """The call fails at once with its worker, and the pool ends."""
    ex = handler_pool(1)
    with in_hands(ex, stop) as caller:
        getattr(ex, how)()
        stop.open()
        assert isinstance(caller.exception(LIMIT_S), WorkerDied)
    ex.shutdown()

    assert (1, 1, 0) == (ex.stats().completed, ex.stats().errors, ex.stats().running)


@pytest.mark.parametrize("answered", [False, True])
def test_killed_in_the_middle(stop: Stop, answered: bool, gate: Gate) -> None:
    """A worker that is killed fails what it had not answered, and nothing else."""
    # What is read was answered.
    answered = answered or stop.moment == "read"
    with handler_pool(1) as ex:
        call = ("run", {"value": "direct"}) if answered else ("hold", {"gate": gate.path})
        with in_hands(ex, stop, *call) as caller:
            link = the_link(ex)
            if stop.moment == "sent":
                # Either it has written its answer, or it is in the middle.
                assert select.select([link.channel.reply_fd], [], [], LIMIT_S)[0] if answered else gate.wait_started()
            os.kill(link.pid, signal.SIGKILL)
            wait_until(lambda: is_gone(link.pid), LIMIT_S)
            stop.open()
            if answered and stop.moment != "admitted":
                assert "direct" == caller.result(LIMIT_S)
            else:
                error = caller.exception(LIMIT_S)
                assert isinstance(error, WorkerDied)
                assert signal.SIGKILL == error.signal

        # Until its end is seen, a worker that has answered is as good as any.
        wait_until(lambda: ex.stats().restarts == 1)
        assert 1 == ex.execute("run", {"value": 1})
        assert ex.stats().requests == balance(ex.stats()) == 3


def test_a_handler_attached_in_the_middle(stop: Stop) -> None:
    """A call is told of to who listens at its end."""
    with handler_pool(1) as ex:
        with in_hands(ex, stop) as caller, recorded("snakepit.worker.request") as seen:
            stop.open()
            caller.result(LIMIT_S)
            ex.execute("run")
            # What is told, is told before the future's end.
            assert ["ok", "ok"] == [metadata["result"] for _, _, metadata in seen]
            assert {ex.workers()[0].worker_id} == {metadata["worker_id"] for _, _, metadata in seen}
        before = len(seen)
        warm(ex)
        ex.execute("run")
    assert before == len(seen)


def test_a_handler_hears_of_the_very_next_call(direct_ends: list[str]) -> None:
    """Who attaches a handler to a pool that lends its worker misses nothing."""
    with handler_pool(1) as ex:
        warm(ex)
        seen: list[Any] = []
        telemetry.attach("me", "snakepit.worker.request", lambda *emission: seen.append(emission))
        try:
            assert 1 == ex.execute("run", {"value": 1})
            assert 2 == ex.submit("run", {"value": 2}).result()
            assert 2 == len(seen)
        finally:
            telemetry.detach("me")


def test_a_full_pool_in_the_middle(stop: Stop) -> None:
    """A direct call takes its room as any other."""
    with handler_pool(1, max_queue_size=0) as ex:
        with in_hands(ex, stop) as caller:
            with pytest.raises(QueueFull):
                ex.execute("run")
            with pytest.raises(QueueFull):
                ex.submit("run")
            stop.open()
            assert "direct" == caller.result(LIMIT_S)
        assert 1 == ex.execute("run", {"value": 1})
        assert (3, 2) == (ex.stats().requests, ex.stats().pool_saturated)


def test_who_waits_for_room_gets_it(stop: Stop) -> None:
    """A blocked call has its turn though another thread goes on calling."""
    with (
        handler_pool(1, max_queue_size=0, queue_full="block") as ex,
        in_hands(ex, stop) as caller,
        ThreadPoolExecutor(1) as others,
    ):
        blocked = others.submit(ex.execute, "run", {"value": "blocked"})
        wait_until(lambda: ex._ledger._blocked == 1)
        stop.open()
        caller.result(LIMIT_S)
        for _ in range(10_000):
            ex.execute("run")
            if blocked.done():
                break
        assert "blocked" == blocked.result(0)


def test_a_session_in_the_middle(stop: Stop) -> None:
    """A session's call waits for the worker in hands, or takes another one."""
    with handler_pool(1) as ex:
        session = ex.session("s")
        session.execute("put", {"key": "k", "value": 1})
        with in_hands(ex, stop) as caller:
            fetched = session.submit("fetch", {"key": "k"})
            assert not fetched.done()
            stop.open()
            assert ("direct", 1) == (caller.result(LIMIT_S), fetched.result(LIMIT_S))


def test_an_end_of_a_session_in_the_middle(stop: Stop) -> None:
    """The worker is told of it after its caller has let it go."""
    with handler_pool(1) as ex:
        session = ex.session("s")
        session.execute("put", {"key": "k", "value": 1})
        with in_hands(ex, stop) as caller:
            session.end()
            stop.open()
            assert "direct" == caller.result(LIMIT_S)
        assert ex.session("s").execute("fetch", {"key": "k"}) is None


def test_the_executor_is_dropped() -> None:
    """What was sent is answered, and then the pool is gone."""
    ex = handler_pool(1)
    warm(ex)
    futures = [ex.submit("run", {"value": 1})]
    gone = weakref.ref(ex)
    del ex
    gc.collect()
    assert gone() is None

    assert 1 == futures[0].result()


def test_the_manager_fails_in_the_middle(stop: Stop, caplog: pytest.LogCaptureFixture) -> None:
    """The call fails as any other, and what its caller holds is closed."""
    ex = handler_pool(1)
    with in_hands(ex, stop) as caller:
        reply_fd = the_link(ex).channel.reply_fd

        def fail(_: object) -> None:
            raise SystemError("of the manager")

        with pytest.raises(BaseException, match="of the manager"), manager_fails(ex):
            ex._manager.ask(fail, LIMIT_S)
        ex._manager.join(LIMIT_S)
        stop.open()
        error = caller.exception(LIMIT_S)
    ex.shutdown()

    assert "of the manager" in str(error)
    with pytest.raises(OSError) as closed:
        os.fstat(reply_fd)
    assert errno.EBADF == closed.value.errno
    stats = ex.stats()
    assert (2, 0, 0, 0) == (stats.requests, stats.running, stats.busy, stats.available)


@contextmanager
def manager_fails(ex: SnakepitExecutor) -> Iterator[None]:
    """Let the next turn of the pool's own thread fail."""

    def fail() -> Any:
        raise SystemError("of the manager")

    ex._manager._scheduler.next_deadline = fail  # type: ignore[method-assign]
    yield
    raise SystemError("of the manager")


def test_nobody_overtakes_what_the_manager_has_taken_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A request that was posted first begins first, also when the manager has it in hands already."""
    log = str(tmp_path / "log")
    with handler_pool(1) as ex, ThreadPoolExecutor(1) as others:
        warm(ex)
        inbox = ex._manager._inbox
        taken, go, drain = threading.Event(), threading.Event(), inbox.drain

        def stopping_drain() -> Any:
            items = drain()
            if any(getattr(item, "command", "") == "run" for item in items) and not taken.is_set():
                taken.set()
                assert go.wait(LIMIT_S)
            return items

        monkeypatch.setattr(inbox, "drain", stopping_drain)
        # Too large to be sent by its caller.
        first = ex.submit("run", {"value": "1" * direct.MOST_BYTES, "log": log})
        assert taken.wait(LIMIT_S)
        second = others.submit(ex.execute, "run", {"value": "2", "log": log})
        wait_until(lambda: ex.stats().requests == 3)
        go.set()
        wait([first, second], LIMIT_S)

    assert ["1", "2"] == [line[0] for line in lines(log)]


# Users' code ------------------------------------------------------------------------------------------


_pool: SnakepitExecutor | None = None


class Nested:
    """Calls the pool when it is loaded in the host."""

    def __reduce__(self) -> Any:
        return _load_nested, ()


def _load_nested() -> Any:
    return None if _pool is None else _pool.execute(lib.add, 1, 2)


def make_nested() -> Nested:
    return Nested()


@pytest.mark.parametrize("how", ["execute", "submit", "wait"])
def test_a_reply_whose_loading_waits_for_the_pool(how: str) -> None:
    """It cannot have what it waits for, so it is refused, on whatever thread it is loaded."""
    global _pool
    with SnakepitExecutor(1) as ex:
        ex.execute(lib.add, 0)
        _pool = ex
        try:
            with pytest.raises(RuntimeError, match="would deadlock"):
                if how == "execute":
                    ex.execute(make_nested)
                else:
                    future = ex.submit(make_nested)
                    _ = wait([future], LIMIT_S) if how == "wait" else None
                    future.result()
        finally:
            _pool = None
        assert 3 == ex.execute(lib.add, 1, 2)


_load_late: Callable[[], None] = int


class Late:
    """Loads in the host when the test lets it."""

    def __reduce__(self) -> Any:
        return _finish_late, ()


def _finish_late() -> str:
    _load_late()
    return "loaded"


def make_late(path: str = "") -> Late:
    if path:
        lib.held(path)
    return Late()


@pytest.mark.parametrize("how", ["execute", "submit"])
def test_an_answer_that_loads_for_long_beats_its_deadline(
    how: str, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What users' code does with an answer that came in time does not count as the worker's time."""
    global _load_late
    # The shortest with which a caller sends by itself what it submits.
    limit_s = REST_S + 0.1
    pick_up = Lender.pick_up

    def picking_up(*call: Any) -> bool:
        picked = pick_up(*call)
        gate.open()
        return picked

    # An answer that comes before the caller wants it is loaded by the manager.
    monkeypatch.setattr(Lender, "pick_up", picking_up)
    if how == "execute":
        gate.open()
    with SnakepitExecutor(1) as ex, ThreadPoolExecutor(1) as others:
        ex.execute(make_late)
        pid = ex.execute(os.getpid)
        wait_until(lambda: ex._manager.lender.has_resting)
        began, loaded_by = time.monotonic(), []

        def load() -> None:
            loaded_by.append(threading.get_ident())
            # The manager takes the worker back, and then finds that the time is over.
            others.submit(ex.wait_ready, LIMIT_S).result(LIMIT_S)
            threading.Event().wait(max(0.0, began + limit_s + 0.1 - time.monotonic()))
            others.submit(ex.wait_ready, LIMIT_S).result(LIMIT_S)

        _load_late = load
        try:
            calls = ex.options(timeout=limit_s)
            call = calls.execute if how == "execute" else lambda *work: calls.submit(*work).result()
            value = call(make_late, gate.path)
        finally:
            _load_late = int

        assert [threading.get_ident()] == loaded_by
        assert ("loaded", pid) == (value, ex.execute(os.getpid))
        assert 0 == ex.stats().command_timeouts


def test_a_log_handler_that_raises_system_exit() -> None:
    """It ends neither the pool nor the call."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise SystemExit(record.getMessage())

    handler = Handler()
    logging.getLogger("snakepit.worker").addHandler(handler)
    try:
        with handler_pool(1) as ex:
            pid = ex.execute("pid")
            assert [ex.execute("shout", {"text": "x"}) for _ in range(3)] == ["x", "x", "x"]
            assert pid == ex.execute("pid")
    finally:
        logging.getLogger("snakepit.worker").removeHandler(handler)


@pytest.mark.parametrize("how", ["execute", "wait"])
def test_a_log_handler_that_calls_the_pool(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """It cannot wait for the worker that logs, so it is refused."""
    errors: list[BaseException] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                ex.execute("run")
            except RuntimeError as error:
                errors.append(error)

    handler = Handler()
    logging.getLogger("snakepit.worker").addHandler(handler)
    try:
        with handler_pool(1) as ex:
            warm(ex)
            with caplog.at_level(logging.WARNING, "snakepit.worker"):
                if how == "execute":
                    ex.execute("shout", {"text": "x"})
                else:
                    wait([ex.submit("shout", {"text": "x"})], LIMIT_S)
    finally:
        logging.getLogger("snakepit.worker").removeHandler(handler)

    assert ["would deadlock"] == [str(error)[:14] for error in errors]


@pytest.mark.parametrize("how", ["result", "done"])
def test_a_settled_future_is_freed_at_once(how: str) -> None:
    """What a future held, it lets go of at its end: no cycle keeps the result for the collector."""
    with handler_pool(1) as ex:
        warm(ex)
        gc.disable()
        try:
            future = ex.submit("run", {"value": 1})
            _ = future.result() if how == "result" else wait_until(future.done)
            ex.stats()
            gone = weakref.ref(future)
            del future
            wait_until(lambda: gone() is None)
        finally:
            gc.enable()


FORK = """
import os, sys, threading
from integration.workers.pools import LIMIT_S, handler_pool
from snakepit._pool import direct
from snakepit._pool.loans import Loan
from snakepit.errors import PoolBroken

os.environ["SNAKEPIT_DIRECT_CALLS"] = "on"
direct._collect.__defaults__ = (LIMIT_S * 1000,)
reached, go = threading.Event(), threading.Event()
has_arrivals = Loan.has_arrivals

def stopping(self, limit_ms):
    if limit_ms and not reached.is_set():
        reached.set()
        go.wait(LIMIT_S)
    return has_arrivals(self, limit_ms)

if __name__ == "__main__":
    ex = handler_pool(1)
    ex.execute("run")
    Loan.has_arrivals = stopping
    results = []
    thread = threading.Thread(target=lambda: results.append(ex.execute("run", {"value": 1})))
    thread.start()
    assert reached.wait(LIMIT_S)
    (request,) = ex._ledger.pending()
    pid = os.fork()
    if pid == 0:
        error = request.future.exception(LIMIT_S)
        assert isinstance(error, PoolBroken) and "forked" in str(error), error
        try:
            ex.execute("run")
        except PoolBroken:
            with handler_pool(1) as own:
                if [1, 2, 3] == [own.execute("run", {"value": n}) for n in (1, 2, 3)]:
                    os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    go.set()
    thread.join(LIMIT_S)
    print(results, ex.execute("run", {"value": 2}), ex.stats().completed)
    ex.shutdown()
"""


def test_a_fork_in_the_middle(tmp_path: Path) -> None:
    """The child has no part in the call; the parent goes on with it."""
    done = scripts.run(tmp_path, FORK)

    # On a starved machine a warning may be there, but no traceback.
    assert (0, "[1] 2 3\n") == (done.returncode, done.stdout), done.stderr
    assert "Traceback" not in done.stderr


# Everything at once -----------------------------------------------------------------------------------


class Caller(threading.Thread):
    """A thread that calls in all ways, with counts of its own."""

    def __init__(self, ex: SnakepitExecutor, seed: str, kill: Callable[[random.Random], None]) -> None:
        super().__init__(name=seed)
        self.ex, self.kill = ex, kill
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.wrong: list[Any] = []

    def run(self) -> None:
        for number in range(60):
            try:
                self.step(f"{self.name}.{number}")
            except BaseException as error:
                self.wrong.append(error)
                return

    def step(self, value: str) -> None:
        ex, counts, choice = self.ex, self.counts, self.random.random()
        if choice < 0.05:
            self.kill(self.random)
            return
        options = {"timeout": 20.0} if choice < 0.2 else {}
        counts["requests"] += 1
        try:
            if choice < 0.4:
                got = ex.execute("run", {"value": value}, **options)
            elif choice < 0.7:
                got = ex.submit("run", {"value": value}, **options).result()
            elif choice < 0.8:
                future = ex.submit("run", {"value": value}, **options)
                wait([future], LIMIT_S)
                got = future.result(0)
            elif choice < 0.9:
                future = ex.submit("run", {"value": value})
                future.cancel(running=True)
                got = future.result(LIMIT_S)
            else:
                ex.execute("fail")
                got = "no error"
        except CancelledError:
            counts["cancelled"] += 1
        except (CommandError, WorkerDied):
            counts["errors"] += 1
        else:
            counts["completed"] += 1
            if got != value:
                self.wrong.append((value, got))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("limit_ms", [direct.LIMIT_MS, LIMIT_S * 1000])
def test_everything_at_once(seed: int, limit_ms: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads call while workers are killed: each gets its own answers, and the counters are the callers'."""
    print(f"seed {seed}")
    monkeypatch.setattr(direct._collect, "__defaults__", (limit_ms,))
    broken: list[Any] = []
    with handler_pool(3, config=config(restart_budget=1000)) as ex:
        ex.wait_ready(workers=3)

        def kill(rng: random.Random) -> None:
            victims = [worker.pid for worker in ex.workers() if worker.pid and worker.state in ("idle", "busy")]
            if victims:
                try:
                    os.kill(rng.choice(victims), signal.SIGKILL)
                except ProcessLookupError:
                    return

        stop = threading.Event()

        def read() -> None:
            while not stop.is_set():
                stats = ex.stats()
                fine = stats.requests == balance(stats) and min(stats.queued, stats.running) >= 0
                fine = fine and min(stats.busy, stats.available) >= 0 and stats.busy + stats.available <= stats.workers
                if not fine:
                    broken.append(stats)

        callers = [Caller(ex, f"{seed}.{n}", kill) for n in range(8)]
        reader = threading.Thread(target=read)
        for thread in (reader, *callers):
            thread.start()
        for thread in callers:
            thread.join(LIMIT_S * 3)
        stop.set()
        reader.join(LIMIT_S)
        stats = ex.stats()

    assert [] == broken
    assert [] == [wrong for caller in callers for wrong in caller.wrong]
    total: Counter[str] = sum((caller.counts for caller in callers), Counter())
    assert total == Counter({name: getattr(stats, name) for name in total})
    assert (0, 0) == (stats.queued, stats.running)
