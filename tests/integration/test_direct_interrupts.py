"""Ctrl-C and other exceptions that come from outside, in the middle of a call on its caller's own thread."""

from __future__ import annotations

import ctypes
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from integration import scripts
from integration.workers.pools import LIMIT_S, balance, config, handler_pool

from snakepit._pool import direct
from snakepit._pool.loans import Lender

PREPARE = """
import os, signal, sys, threading
os.environ["SNAKEPIT_DIRECT_CALLS"] = "on"
from integration.steps import interrupted
from integration.workers.pools import LIMIT_S, balance, handler_pool
from leaks import wait_until
from snakepit._pool import direct
from snakepit._pool.loans import Lender, Loan
direct._collect.__defaults__ = (LIMIT_S * 1000,)
"""

STEPS = (
    PREPARE
    + """
def rest(ex):
    while True:
        ex.execute("run")
        if ex._manager.lender.has_resting:
            return


def main(how):
    finished = []
    finish = Lender.finish

    def counting(self, loan, reply):
        finished.append(finish(self, loan, reply))
        return finished[-1]

    Lender.finish = counting
    with handler_pool(1) as ex:
        pid = ex.execute("pid")

        def call():
            if how == "execute":
                return ex.execute("run", {"value": 7})
            return ex.submit("run", {"value": 7}).result()

        rest(ex)
        steps, caught, value = interrupted(call, 0)
        assert (0, 7) == (caught, value) and steps > 50, (steps, caught, value)
        problems = []
        for place in range(1, steps + 1):
            rest(ex)
            made, caught, value = interrupted(call, place)
            handler = signal.getsignal(signal.SIGINT)
            after = ex.execute("pid")
            wait_until(lambda: ex.stats().running == ex.stats().queued == 0, LIMIT_S)
            stats = ex.stats()
            fine = caught == (place <= made) and value in (None, 7) and (value is None) == bool(caught)
            fine = fine and handler is signal.default_int_handler and after == pid
            fine = fine and stats.requests == balance(stats) == stats.completed and not ex._ledger.pending()
            if not fine:
                problems.append((place, made, caught, value, handler, after == pid, stats))
        print(problems[:5], ex.stats().restarts, any(finished))


if __name__ == "__main__":
    main(sys.argv[1])
"""
)


def check_output(done: subprocess.CompletedProcess[str], text: str) -> None:
    """Assert what a host program has printed; on a starved machine a warning may be there, but no traceback."""
    assert (0, text) == (done.returncode, done.stdout), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["execute", "submit"])
def test_ctrl_c_between_any_two_steps(how: str, tmp_path: Path) -> None:
    """Wherever it comes: one KeyboardInterrupt, the worker lives, and no answer is lost or given to another call."""
    check_output(scripts.run(tmp_path, STEPS, how), "[] 0 True\n")


FORKING = (
    PREPARE
    + """
reached, go = threading.Event(), threading.Event()
has_arrivals = Loan.has_arrivals

def stopping(self, limit_ms):
    if limit_ms:
        reached.set()
        go.wait(LIMIT_S)
    return has_arrivals(self, limit_ms)

def fork():
    assert reached.wait(LIMIT_S)
    assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    pid = os.fork()
    if pid == 0:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass
            os._exit(1)
        except KeyboardInterrupt:
            pass
        Loan.has_arrivals = has_arrivals
        with handler_pool(1) as own:
            fine = [1, 2, 3] == [own.execute("run", {"value": n}) for n in (1, 2, 3)]
        os._exit(42 if fine and signal.getsignal(signal.SIGINT) is signal.default_int_handler else 2)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    go.set()

if __name__ == "__main__":
    statuses = []
    with handler_pool(1) as ex:
        ex.execute("run")
        Loan.has_arrivals = stopping
        thread = threading.Thread(target=fork)
        thread.start()
        value = ex.execute("run", {"value": 7})
        thread.join(LIMIT_S)
    print(statuses, value, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
)


def test_a_child_of_another_thread_hears_ctrl_c(tmp_path: Path) -> None:
    """A child that is forked while the main thread defers Ctrl-C does not inherit that."""
    check_output(scripts.run(tmp_path, FORKING), "[42] 7 True\n")


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lend whatever the service time; return the threads on which direct calls have ended."""
    monkeypatch.setenv("SNAKEPIT_DIRECT_CALLS", "on")
    monkeypatch.setattr(direct._collect, "__defaults__", (LIMIT_S * 1000,))
    names: list[str] = []
    finish = Lender.finish

    def noting(self: Lender, *call: Any) -> bool:
        names.append(threading.current_thread().name)
        return finish(self, *call)

    monkeypatch.setattr(Lender, "finish", noting)
    return names


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGTERM, signal.SIGINT])
def test_other_handlers_of_signals(number: signal.Signals, finished: list[str]) -> None:
    """Where a handler of the user's might raise in the middle, the main thread has its calls done by the manager."""
    with handler_pool(1) as ex, ThreadPoolExecutor(1, "other") as other:
        before = signal.signal(number, lambda *_: None)
        try:
            assert list(range(5)) == [ex.execute("run", {"value": n}) for n in range(5)]
            assert [5, 6] == [ex.submit("run", {"value": n}).result() for n in (5, 6)]
            assert [] == finished
            assert 7 == other.submit(ex.execute, "run", {"value": 7}).result(LIMIT_S)
            assert ["other_0"] == finished
        finally:
            signal.signal(number, before)
        finished.clear()

        assert 8 == ex.execute("run", {"value": 8})
        assert ["MainThread"] == finished


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_silent_handler_stays(handler: Any, finished: list[str]) -> None:
    """Where Ctrl-C is ignored, or ends the process, it goes on doing so in the middle of a call."""
    seen: list[Any] = []
    with handler_pool(1) as ex:
        ex.execute("run")
        with pytest.MonkeyPatch.context() as patch:
            original = Lender.finish
            patch.setattr(
                Lender, "finish", lambda *call: seen.append(signal.getsignal(signal.SIGINT)) or original(*call)
            )
            before = signal.signal(signal.SIGINT, handler)
            try:
                assert 1 == ex.execute("run", {"value": 1})
                assert handler is signal.getsignal(signal.SIGINT)
            finally:
                signal.signal(signal.SIGINT, before)

    assert [handler] == seen
    assert ["MainThread"] == finished


class Ended(BaseException):
    """What another thread sets in the one that calls."""


def _ended_at(place: int, call: Callable[[], Any]) -> tuple[int, Any]:
    """Execute a call on this thread; at its step of this number another's exception comes."""
    steps, value = 0, None

    def profile(frame: Any, event: str, _: Any) -> None:
        nonlocal steps
        # Where the interpreter looks for such: at the entries of functions, and after calls of its own.
        if "/snakepit/" in frame.f_code.co_filename and event in ("call", "c_return"):
            steps += 1
            if steps == place:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(threading.get_ident()), ctypes.py_object(Ended)
                )

    try:
        sys.setprofile(profile)
        value = call()
    except Ended:
        value = Ended
    finally:
        sys.setprofile(None)
    return steps, value


@pytest.mark.parametrize("how", ["execute", "submit"])
def test_exceptions_set_by_other_threads(
    how: str, finished: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever one comes: the next calls are served, at worst by another worker, and the pool ends in time."""
    with (
        handler_pool(1, config=config(restart_budget=10_000)) as ex,
        ThreadPoolExecutor(1) as threads,
    ):

        def call() -> Any:
            return ex.execute("run", {"value": 7}) if how == "execute" else ex.submit("run", {"value": 7}).result()

        def rest() -> None:
            for n in range(100):
                assert n == ex.submit("run", {"value": n}).result(LIMIT_S)
                if ex._manager.lender.has_resting:
                    return

        rest()
        steps, value = threads.submit(_ended_at, 0, call).result(LIMIT_S)
        assert 7 == value
        assert steps > 50
        # What is laid down the manager may read first.
        assert finished or how == "submit"

        for place in range(1, steps + 1):
            rest()
            _, value = threads.submit(_ended_at, place, call).result(LIMIT_S)
            assert value in (7, Ended), place
            assert place == ex.submit("run", {"value": place}).result(LIMIT_S)
    stats = ex.stats()
    assert 0 == stats.workers
    assert stats.requests == balance(stats)
    assert [] == [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_ctrl_c_while_others_call(tmp_path: Path) -> None:
    """Ctrl-C in the main thread is none of the other threads' business."""
    source = (
        PREPARE
        + """
if __name__ == "__main__":
    stop = threading.Event()
    results = []

    def others():
        while not stop.is_set():
            results.append(ex.execute("run", {"value": 5}) == 5)

    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        pids = {w.pid for w in ex.workers()}
        threads = [threading.Thread(target=others) for _ in range(2)]
        for thread in threads:
            thread.start()
        ready = threading.Event()

        def send():
            for _ in range(50):
                ready.wait(LIMIT_S)
                ready.clear()
                os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=send)
        sender.start()
        caught = 0
        for _ in range(50):
            try:
                ready.set()
                while True:
                    ex.execute("run")
            except KeyboardInterrupt:
                caught += 1
        stop.set()
        for thread in (sender, *threads):
            thread.join(LIMIT_S)
        stats = ex.stats()
        print(caught, all(results), stats.requests == balance(stats), pids == {w.pid for w in ex.workers()})
"""
    )
    check_output(scripts.run(tmp_path, source), "50 True True True\n")
