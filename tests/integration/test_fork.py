"""A host that forks: the child lets go of the pool, the parent keeps it."""

from __future__ import annotations

from pathlib import Path

import pytest
from integration import scripts

from gates import Gate

FORK = """
import os, sys, threading
from concurrent.futures.process import BrokenProcessPool
from snakepit import SnakepitExecutor, PythonAdapter
from snakepit.errors import PoolBroken
from integration import callables_lib as lib

held_path = sys.argv[1]
executor = SnakepitExecutor(1)
running = executor.submit(lib.held, held_path, 5)
while not running.running():
    threading.Event().wait(0.005)
queued = executor.submit(lib.add, 1, 2)
called = []
queued.add_done_callback(called.append)

def targets():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink("/proc/self/fd/" + name))
        except OSError:
            pass
    return found

def anonymous():
    return [t for t in targets() if t.startswith(("anon_inode", "socket"))]

pid = os.fork()
if pid == 0:
    failures = []
    try:
        for future in (running, queued):
            error = future.exception(timeout=5)
            if not isinstance(error, PoolBroken) or "forked" not in str(error):
                failures.append(f"future: {error!r}")
        if called != [queued]:
            failures.append("no callback")
        for attempt in (
            lambda: executor.submit(lib.add, 1),
            lambda: list(executor.map(lib.add, [1])),
            lambda: executor.execute(lib.add, 1),
        ):
            try:
                attempt()
                failures.append("no refusal")
            except PoolBroken as error:
                if "forked" not in str(error):
                    failures.append(f"refusal: {error!r}")
        failures += anonymous()
        pipes = [t for t in targets() if t.startswith("pipe")]
        # What is left: stdout and stderr.
        if len(pipes) > 2:
            failures.append(f"pipes: {pipes}")
        executor.stats()
        executor.workers()
        queued.cancel()
        executor.shutdown()
        if sys.argv[2] == "own_pool":
            with SnakepitExecutor(1) as own:
                if own.submit(lib.add, 40, 2).result(20) != 42:
                    failures.append("own pool")
    except BaseException as error:
        failures.append(repr(error))
    print("child", failures, flush=True)
    if sys.argv[2] == "os._exit":
        os._exit(0)
    sys.exit(0)

_, status = os.waitpid(pid, 0)
print("status", status, flush=True)
print(running.result(20), queued.result(20), executor.submit(lib.add, 3, 4).result(20))
print(executor.stats().completed, executor.stats().restarts)
executor.shutdown()
"""


@pytest.mark.parametrize("end", ["exit", "os._exit", "own_pool"])
def test_fork(tmp_path: Path, gate: Gate, end: str) -> None:
    """In the child all is refused and closed; the parent's results arrive, also those submitted later."""
    host = scripts.start(tmp_path, FORK, gate.path, end)
    gate.wait_started(1, scripts.BOUND_S)
    assert host.stdout is not None
    lines = [host.stdout.readline(), host.stdout.readline()]

    gate.open()
    out, err = host.communicate(timeout=scripts.BOUND_S)

    assert ["child []\n", "status 0\n"] == lines
    assert "5 3 7\n3 0\n" == out
    assert "" == err
    assert 0 == host.returncode


BUSY = """
import os, sys, threading
from snakepit import SnakepitExecutor
from integration import callables_lib as lib

executor = SnakepitExecutor(2)
stop = threading.Event()
results = []

def feed():
    n = 0
    while not stop.is_set():
        results.append(executor.submit(lib.add, n, 1).result(20) == n + 1)
        n += 1

threads = [threading.Thread(target=feed) for _ in range(4)]
for thread in threads:
    thread.start()
while len(results) < 50:
    stop.wait(0.005)
statuses = []
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        # Locks of threads that are gone must hold up nobody, not even at the interpreter's end.
        try:
            executor.submit(lib.add, 1)
        except Exception:
            sys.exit(0)
        sys.exit(9)
    statuses.append(os.waitpid(pid, 0)[1])
stop.set()
for thread in threads:
    thread.join()
print(set(statuses), set(results), executor.stats().restarts)
executor.shutdown()
"""


@pytest.mark.timeout(60)
def test_forks_under_load(tmp_path: Path) -> None:
    """Forks at any moment of a busy pool end cleanly and disturb nothing."""
    assert (0, "{0} {True} 0\n", "") == scripts.text_of(scripts.run(tmp_path, BUSY))


PENDING_COMMANDS = """
import os, sys
from snakepit import SnakepitExecutor, PythonAdapter
from snakepit.errors import PoolBroken

with SnakepitExecutor(PythonAdapter(), 1) as executor:
    executor.wait_ready(20)
    pid = os.fork()
    if pid == 0:
        try:
            executor.execute("echo", {"a": 1})
        except PoolBroken as error:
            print("refused", flush=True)
        # Leaves the `with` block like any code that was forked inside it.
    else:
        print("status", os.waitpid(pid, 0)[1], flush=True)
        print(executor.execute("echo", {"a": 1})["echoed"], flush=True)
"""


def test_fork_inside_the_block(tmp_path: Path) -> None:
    """A child that leaves the parent's `with` block does not end the parent's workers."""
    expected = "refused\nstatus 0\n{'a': 1}\n"

    assert (0, expected, "") == scripts.text_of(scripts.run(tmp_path, PENDING_COMMANDS))
