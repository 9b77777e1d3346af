"""Ctrl-C in the middle of a cancellation, and cancellations by the garbage collector: nothing hangs or is lost."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest
from integration import scripts

from snakepit import SnakepitExecutor

from leaks import wait_until

LIMIT_S = 20.0

PREPARE = """
import signal, sys, threading
from integration.steps import interrupted
from leaks import wait_until
from snakepit import SnakepitExecutor

LIMIT_S = 10.0
FUTURES = ("threading.py", "_base.py")


def is_free(future):
    '''Whether another thread can have the condition of a future.'''
    results = []
    condition = future._condition

    def take():
        results.append(condition.acquire(timeout=LIMIT_S))
        if results[0]:
            condition.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return results[0]
"""

CANCEL = (
    PREPARE
    + """
def main(how):
    called = []
    with SnakepitExecutor(1) as ex:
        busy = ex.submit(signal.pause)
        wait_until(busy.running, LIMIT_S)

        def call():
            if how == "cancel":
                future.cancel()
            else:
                try:
                    future.result(0.001)
                except TimeoutError:
                    pass

        # The first two are whole; of these the first makes what later ones find.
        problems, steps, place = [], 1, -1
        while place <= steps:
            future = ex.submit(abs, -1)
            called.clear()
            future.add_done_callback(called.append)
            made, caught, _ = interrupted(call, place, FUTURES)
            if place == 0:
                steps = made
            # Not begun, or done to its end.
            stats, before = ex.stats(), future.cancelled()
            ends = [
                caught == (0 < place <= made),
                stats.queued == (0 if before else 1),
                len(called) == before,
                is_free(future),
                future.cancel(),
                len(called) == 1,
                ex.stats().queued == 0,
            ]
            if not all(ends):
                problems.append((place, before, ends))
            place += 1
        busy.cancel(running=True)
        print(problems[:5], steps > 3, ex.stats().cancelled == steps + 3)


if __name__ == "__main__":
    main(sys.argv[1])
"""
)


@pytest.mark.parametrize("how", ["cancel", "result"])
def test_ctrl_c_between_any_two_steps(how: str, tmp_path: Path) -> None:
    """Wherever it comes, the call is as if it had not begun, or is done; the pool's thread can end the future."""
    done = scripts.run(tmp_path, CANCEL, how)

    assert ("[] True True\n", 0) == (done.stdout, done.returncode), done.stderr


SHUTDOWN = (
    PREPARE
    + """
def attempt(place):
    with SnakepitExecutor(1) as ex:
        busy = ex.submit(signal.pause)
        ex.wait_ready()
        queued = [ex.submit(abs, -1) for _ in range(2)]
        steps, _, _ = interrupted(lambda: ex.shutdown(wait=False, cancel_futures=True), place, FUTURES)
        ex.kill_workers()
    stats = ex.stats()
    fine = all(future.done() for future in (busy, *queued)) and not ex._ledger.pending()
    # Whatever was interrupted: what was not cancelled ends with the worker, or by the pool.
    return steps, fine and stats.requests == 3 == stats.cancelled + stats.errors and stats.queued == stats.running == 0


if __name__ == "__main__":
    steps, fine = attempt(0)
    assert fine and steps > 20, (steps, fine)
    print([place for place in range(1, steps + 1, 4) if not attempt(place)[1]])
"""
)


def test_ctrl_c_in_a_shutdown_that_cancels(tmp_path: Path) -> None:
    """Every future ends, and so does the pool."""
    done = scripts.run(tmp_path, SHUTDOWN)

    assert ("[]\n", 0) == (done.stdout, done.returncode), done.stderr


def test_an_iterator_closed_under_the_ledgers_lock() -> None:
    """The garbage collector may close a map wherever an object is made: it waits for no lock that another has."""
    with SnakepitExecutor(1) as ex:
        blocker = ex.submit(signal.pause)
        pending = ex.submit(signal.alarm, 0)
        has_condition, has_lock = threading.Event(), threading.Event()

        def shut_down() -> None:
            with pending._condition:
                has_condition.set()
                assert has_lock.wait(LIMIT_S)
                with ex._ledger.lock:
                    pass

        other = threading.Thread(target=shut_down)
        other.start()
        assert has_condition.wait(LIMIT_S)
        with ex._ledger.lock:
            has_lock.set()
            pending.drop()
            dropped = pending.cancelled()
        other.join(LIMIT_S)

        assert not dropped
        wait_until(pending.cancelled, LIMIT_S)
        blocker.cancel(running=True)
