"""Pools that nobody shuts down: collected, or left to the end of the interpreter."""

from __future__ import annotations

import gc
import signal
import subprocess
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from integration import callables_lib as lib
from integration import scripts

from snakepit import SnakepitExecutor

from gates import Gate
from leaks import is_gone, wait_until

BOUND_S = 20.0


# ------------------------------------------------------------------------------------------- collection


def test_dropped_executor_finishes_its_work(gate: Gate) -> None:
    """Results of accepted work arrive after the executor is gone; then everything of it goes."""
    executor = SnakepitExecutor(1, name="dropped")
    futures = [executor.submit(lib.held, gate.path, n) for n in range(3)]
    pid = gate.wait_started()[0].pid
    gone = weakref.ref(executor)

    del executor
    gc.collect()
    released = gone() is None
    gate.open()

    assert released
    assert [0, 1, 2] == [future.result(BOUND_S) for future in futures]
    wait_until(lambda: is_gone(pid), what="the worker ends")
    wait_until(
        lambda: not [thread for thread in threading.enumerate() if "snakepit-dropped" in thread.name],
        what="the threads end",
    )


def test_dropped_idle_executor_ends_its_workers() -> None:
    """An executor that is dropped while idle leaves no worker, thread or descriptor."""
    executor = SnakepitExecutor(2)
    pid = executor.submit(lib.pid_of_worker).result(BOUND_S)

    del executor

    wait_until(lambda: is_gone(pid), what="the worker ends")


def test_dropped_executor_in_a_cycle() -> None:
    """An executor that refers to itself is collected like any object, also from the pool's own thread."""
    executor = SnakepitExecutor(1)
    executor.me = executor  # type: ignore[attr-defined]
    gone = weakref.ref(executor)
    collected = threading.Event()

    def collect(_: Future[object]) -> None:
        gc.collect()
        collected.set()

    future = executor.submit(lib.add, 1)
    future.add_done_callback(collect)
    del executor
    assert collected.wait(BOUND_S)
    gc.collect()

    assert gone() is None
    assert 1 == future.result(BOUND_S)


def test_executor_collected_while_its_lock_is_held() -> None:
    """The collector may strike anywhere, also where the pool's own lock is held: nothing hangs."""
    executor = SnakepitExecutor(1)
    future = executor.submit(lib.add, 1)
    lock, finalizer = executor._ledger.lock, executor._finalizer

    def collect() -> None:
        with lock:
            finalizer()

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(BOUND_S)

    assert not thread.is_alive()
    assert 1 == future.result(BOUND_S)


def test_map_of_a_dropped_executor() -> None:
    """A map's iterator works on after its executor is gone."""
    results = SnakepitExecutor(2).map(lib.add, range(5))
    gc.collect()

    assert list(range(5)) == list(results)


def test_future_of_a_dropped_executor_can_be_cancelled(gate: Gate) -> None:
    """A queued future can be cancelled after its executor is gone."""
    executor = SnakepitExecutor(1)
    held = executor.submit(lib.held, gate.path)
    gate.wait_started()
    queued = executor.submit(lib.add, 1)
    del executor
    gc.collect()

    assert queued.cancel()
    gate.open()
    held.result(BOUND_S)


# --------------------------------------------------------------------------------------------- the exit

WITHOUT_SHUTDOWN = """
import atexit
from snakepit import SnakepitExecutor
from gates import pass_gate

def work(n):
    print(f"worker {n}", flush=True)
    return n

def late():
    try:
        executor.submit(work, 9)
    except RuntimeError as error:
        print(error)
    try:
        SnakepitExecutor(1)
    except RuntimeError as error:
        print(error)

atexit.register(late)
executor = SnakepitExecutor(1)
for n in range(4):
    executor.submit(work, n).add_done_callback(lambda f: print(f"result {f.result()}", flush=True))
"""


def test_script_that_ends_without_shutdown(tmp_path: Path) -> None:
    """All accepted work is done before the interpreter ends; what comes later is refused."""
    status, out, err = scripts.text_of(scripts.run(tmp_path, WITHOUT_SHUTDOWN))

    lines = out.splitlines()
    assert (0, "") == (status, err)
    assert [f"worker {n}" for n in range(4)] == [line for line in lines if line.startswith("worker")]
    assert [f"result {n}" for n in range(4)] == [line for line in lines if line.startswith("result")]
    assert [
        "cannot schedule new futures after interpreter shutdown",
        "cannot start a pool after interpreter shutdown",
    ] == lines[-2:]


ENDS = """
import os, signal, sys, threading
from snakepit import SnakepitExecutor
from integration import callables_lib as lib

end = sys.argv[1]
executor = SnakepitExecutor(2)
running = executor.submit(lib.held, sys.argv[2], 5)
if end == "callback_exit":
    running.add_done_callback(lambda _: sys.exit(3))
sys.stdin.readline()
if end == "exception":
    raise ValueError("mine")
if end == "sys.exit":
    sys.exit(3)
if end == "thread":
    thread = threading.Thread(target=sys.exit, args=(3,))
    thread.start()
    thread.join()
if end == "closed_stdout":
    os.close(1)
if end == "closed_all":
    os.closerange(0, 3)
if end == "os._exit":
    os._exit(4)
if end == "sigterm":
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
if end == "with_exit":
    with executor:
        sys.exit(3)
"""


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        ("return", 0, ""),
        ("exception", 1, "ValueError: mine"),
        ("sys.exit", 3, ""),
        ("thread", 0, ""),
        ("closed_stdout", 0, ""),
        ("closed_all", 0, ""),
        ("os._exit", 4, ""),
        ("sigterm", -signal.SIGTERM, ""),
        ("with_exit", 3, ""),
        ("callback_exit", 0, "SystemExit: 3"),
    ],
)
def test_exit_keeps_status_and_leaves_nothing(
    tmp_path: Path, gate: Gate, end: str, status: int, error: str
) -> None:
    """However a host ends: its status is its own, stderr has nothing of ours, no process is left."""
    host = scripts.start(tmp_path, ENDS, end, gate.path, stdin=subprocess.PIPE)
    pid = gate.wait_started(1, scripts.BOUND_S)[0].pid
    if end not in ("os._exit", "sigterm", "with_exit"):
        gate.open()

    _, err = host.communicate("end\n", timeout=scripts.BOUND_S)

    assert status == host.returncode
    assert err.rstrip().endswith(error)
    assert bool(error) == err.count("Traceback")
    assert bool(error) == bool(err)
    wait_until(lambda: is_gone(pid), 2.0, "the worker ends")


TWO_STAGES = """
import sys
from snakepit import SnakepitExecutor
from integration import callables_lib as lib

executor = SnakepitExecutor(1)

def more(future):
    try:
        executor.submit(lib.add, 1)
    except RuntimeError as error:
        print(error)

executor.submit(lib.held, sys.argv[1]).add_done_callback(more)
"""


def test_callback_at_exit_cannot_submit(tmp_path: Path, gate: Gate) -> None:
    """A done-callback that runs while the interpreter ends gets the refusal, not a hang."""
    host = scripts.start(tmp_path, TWO_STAGES, gate.path)
    gate.wait_started(1, scripts.BOUND_S)
    # The host's main thread is at its end once it no longer has the program's text to run: it prints
    # the refusal only then; a submit that was still allowed prints nothing, and the work is done.
    gate.open()

    out, err = host.communicate(timeout=scripts.BOUND_S)

    assert (0, "") == (host.returncode, err)
    assert out in ("", "cannot schedule new futures after interpreter shutdown\n")


PIPELINE = """
import sys
from snakepit import SnakepitExecutor
from integration import callables_lib as lib

executor = SnakepitExecutor(1)
executor.submit(lib.add, 1).result()
for n in range(100000):
    print(n, flush=True)
"""


def test_pipeline_ends_with_its_reader(tmp_path: Path) -> None:
    """`host | head` ends: neither a worker nor the guardian holds the user's pipe."""
    host = scripts.start(tmp_path, PIPELINE)
    assert host.stdout is not None
    head = subprocess.Popen(("head", "-n", "1"), stdin=host.stdout, stdout=subprocess.PIPE, text=True)
    host.stdout.close()
    host.stdout = None

    out, _ = head.communicate(timeout=scripts.BOUND_S)
    _, err = host.communicate(timeout=scripts.BOUND_S)

    assert "0\n" == out
    assert "BrokenPipeError" in err


DAEMON = """
import sys, threading
from snakepit import SnakepitExecutor
from integration import callables_lib as lib

executor = SnakepitExecutor(2)

def feed():
    n = 0
    while True:
        executor.submit(lib.add, n).result()
        n += 1
        if n == 20:
            fed.set()

fed = threading.Event()
threading.Thread(target=feed, daemon=True).start()
fed.wait()
"""


def test_daemon_thread_that_submits_to_the_end(tmp_path: Path) -> None:
    """A daemon thread that keeps the pool busy does not keep the interpreter alive."""
    done = scripts.run(tmp_path, DAEMON)

    assert 0 == done.returncode
    assert "" == done.stdout
    # The thread itself may die of the refusal, as with the standard pools.
    assert "Traceback" not in done.stderr or "after interpreter shutdown" in done.stderr


MULTIPROCESSING_CHILD = """
import multiprocessing
from snakepit import SnakepitExecutor
from integration import callables_lib as lib

def child(queue):
    with SnakepitExecutor(1) as executor:
        queue.put(executor.submit(lib.add, 20, 22).result())

if __name__ == "__main__":
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.SimpleQueue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        print(queue.get(), flush=True)
        process.join()
        print(process.exitcode, flush=True)
"""


def test_pool_in_a_child_of_multiprocessing(tmp_path: Path) -> None:
    """Children of multiprocessing, which end without atexit hooks, can use a pool of their own."""
    assert (0, "42\n0\n42\n0\n", "") == scripts.text_of(scripts.run(tmp_path, MULTIPROCESSING_CHILD))


NESTED = """
from snakepit import SnakepitExecutor
from integration import callables_lib as lib

def nested(n):
    with SnakepitExecutor(1) as inner:
        return inner.submit(lib.add, n, 1).result(), inner.submit(lib.pid_of_worker).result()

with SnakepitExecutor(1) as outer:
    print(outer.submit(nested, 1).result()[0])
    print(outer.submit(nested, 2).result()[0])
"""


def test_pool_inside_a_worker(tmp_path: Path) -> None:
    """A callable may open a pool of its own."""
    assert (0, "2\n3\n", "") == scripts.text_of(scripts.run(tmp_path, NESTED))


def test_helpers_are_used(make_gate: Callable[[], Gate]) -> None:
    """A gate that was opened holds nobody: the programs above rely on it."""
    gate = make_gate()
    gate.open()

    lib.held(gate.path)
