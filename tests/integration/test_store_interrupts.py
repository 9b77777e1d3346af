"""Ctrl-C in the middle of the session store: whatever it interrupts, no lock is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from integration import scripts

STEPS = """
import faulthandler, os, sys, threading
from integration.steps import interrupted
from snakepit import SessionError, SessionStore

LIMIT_S = 10.0
LOCKS = ("threading.py",)


def elsewhere(call):
    '''Call on another thread and return what came of it.'''
    results = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    if not results:
        faulthandler.dump_traceback(file=sys.stderr)
        os._exit(3)
    return results[0]


def main(operation, path):
    store = SessionStore.open(path) if path else SessionStore()
    store.create("a")
    count = lambda: store.update("a", lambda data: {"n": data.get("n", 0) + 1}).data["n"]
    call = {"exists": lambda: store.exists("a"), "get": lambda: store.get("a"), "update": count}[operation]
    call()
    steps, caught, _ = interrupted(call, 0, LOCKS)
    assert caught == 0 and steps > 5, (steps, caught)
    problems = []
    for place in range(1, steps + 1):
        try:
            _, caught, _ = interrupted(call, place, LOCKS)
            before = elsewhere(count)
            fine = caught == 1 and count() == before + 1 and elsewhere(lambda: store.exists("a"))
        except SessionError as error:
            fine, caught = False, error
        if not fine:
            problems.append((place, caught))
    print(problems[:5])


if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize("operation", ["exists", "get", "update"])
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_ctrl_c_between_any_two_steps(operation: str, kind: str, tmp_path: Path) -> None:
    """Wherever it comes, the store serves this thread and others afterwards."""
    path = str(tmp_path / "sessions.sqlite") if kind == "file" else ""

    done = scripts.run(tmp_path, STEPS, operation, path)

    assert ("[]\n", 0) == (done.stdout, done.returncode), done.stderr


FORKS = """
import os, signal, sys, threading, warnings
from snakepit import SessionStore
from snakepit._store import locks

warnings.simplefilter("ignore", DeprecationWarning)
LIMIT_S = 10.0


def fork(place):
    '''Fork; at the step of this number of the hooks of a store send SIGINT.  Return (steps, the child's status).'''
    steps = 0

    def profile(frame, event, _):
        nonlocal steps
        if "/_store/" in frame.f_code.co_filename and event in ("call", "c_return"):
            steps += 1
            if steps == place:
                os.kill(os.getpid(), signal.SIGINT)

    sys.setprofile(profile)
    try:
        pid = os.fork()
        sys.setprofile(None)
        if pid == 0:
            shut = not any(type(thing).__name__ == "SQLiteBackend" and thing._connection for thing in things)
            try:
                file.create("child %d" % place)
                memory.create("child")
            finally:
                os._exit(0 if shut else 1)
    except KeyboardInterrupt:
        sys.setprofile(None)
        raise AssertionError("an interrupt came out of a fork hook")
    return steps, os.waitpid(pid, 0)[1]


def served():
    done = []
    thread = threading.Thread(target=lambda: done.append((SessionStore(), file.ids(), memory.ids())), daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    return bool(done) and not locks._taken and not locks._stopped


file, memory = SessionStore.open(sys.argv[1]), SessionStore()
things = list(locks._fork_aware)
steps, status = fork(0)
assert status == 0 and steps > 10, (steps, status)
problems = []
for place in range(1, steps + 1):
    file.ids()
    _, status = fork(place)
    if status or not served():
        problems.append((place, status))
print(problems[:5], len(file.ids()) == steps + 1)
"""


def test_ctrl_c_around_a_fork(tmp_path: Path) -> None:
    """Wherever it comes in the hooks: the child has no connection, and neither it nor the parent finds a lock taken."""
    done = scripts.run(tmp_path, FORKS, str(tmp_path / "sessions.sqlite"))

    assert ("[] True\n", 0) == (done.stdout, done.returncode), done.stderr


WAITING = """
import os, sqlite3, sys, threading, warnings
from snakepit import SessionStore
from snakepit._store import locks

warnings.simplefilter("ignore", DeprecationWarning)
path = sys.argv[1]
store = SessionStore.open(path)
other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
other.execute("BEGIN IMMEDIATE")
inside = threading.Event()
prepare = type(store._backend)._transact

def transact(self, *args):
    inside.set()
    return prepare(self, *args)

type(store._backend)._transact = transact
writer = threading.Thread(target=store.create, args=("b",))
writer.start()
assert inside.wait(30)


class Interrupted:
    '''The lock of the store, for which the first wait ends by Ctrl-C, as it may; then the other process is done.'''

    def __init__(self, lock):
        self.lock = lock
        self.waits = 0

    def acquire(self):
        self.waits += 1
        if self.waits == 1:
            raise KeyboardInterrupt
        other.execute("ROLLBACK")
        return self.lock.acquire()

    def __getattr__(self, name):
        return getattr(self.lock, name)


def hold_interrupted(lock):
    return hold(interrupted if lock is store._backend.lock else lock)


interrupted, hold, locks._hold = Interrupted(store._backend.lock), locks._hold, hold_interrupted
pid = os.fork()
if pid == 0:
    os._exit(0 if store._backend._connection is None else 1)
writer.join(30)
status = os.waitpid(pid, 0)[1]
print(status, store.ids(), locks._taken, interrupted.waits)
"""


def test_ctrl_c_while_a_fork_waits_for_a_store(tmp_path: Path) -> None:
    """Another process writes and the fork has to wait: the child has no connection all the same."""
    done = scripts.run(tmp_path, WAITING, str(tmp_path / "sessions.sqlite"))

    assert ("0 ('b',) [] 2\n", 0) == (done.stdout, done.returncode), done.stderr
    assert "KeyboardInterrupt" in done.stderr
