"""A poorer system: no pidfds, no /proc, no eventfd, no epoll, children reaped by others; what matters works."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from integration import scripts
from integration.workers.pools import LIMIT_S, balance, handler_pool, saboteur_pool

from snakepit import CommandTimeout, WorkerDied
from snakepit._supervision import procfs as _procfs
from snakepit._supervision import spawn as _spawn
from snakepit._supervision.guardian import GUARDIAN

from gates import Gate
from leaks import is_gone, wait_until

MODES = ["no pidfd", "no /proc", "no eventfd", "no epoll", "no setpriv", "none of them"]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Take something away from the host that every pool uses."""
    wanted = request.param
    if wanted in ("no pidfd", "none of them"):
        monkeypatch.delattr(os, "pidfd_open")
        monkeypatch.setattr(_spawn, "USE_PIDFD", False)
    if wanted in ("no /proc", "none of them"):
        monkeypatch.setattr(_procfs, "PROC", "/nonexistent")
    if wanted in ("no eventfd", "none of them"):
        monkeypatch.delattr(os, "eventfd")
    if wanted in ("no epoll", "none of them"):
        monkeypatch.delattr(select, "epoll")
    if wanted in ("no setpriv", "none of them"):
        monkeypatch.setattr(_spawn, "find_setpriv", lambda: None)
    assert wanted in MODES
    return str(wanted)


def test_the_mode_is_in_force(mode: str) -> None:
    """A pool made under it does without what was taken away, and with the rest."""
    with handler_pool(1) as ex:
        ex.wait_ready(LIMIT_S)
        manager = ex._manager
        (ward,) = manager._watchdog._custody.wards.values()
        found = {
            "no pidfd": ward.child.exit_fd is None,
            "no /proc": ward.start == 0,
            "no eventfd": manager._inbox.fd != manager._inbox._write_fd,
            "no epoll": type(manager._links._poller).__name__ == "_Selector",
        }
        pid = ex.execute("pid")
        with open(f"/proc/{pid}/status") as file:
            assert f"PPid:\t{os.getpid()}" in file.read()

    assert {name: mode in (name, "none of them") for name in found} == found


def test_work_is_done(mode: str) -> None:
    """Requests, sessions and a map of thousands; then a shutdown that finishes what was accepted."""
    with handler_pool(2) as ex:
        session = ex.session("s")
        pids = {session.execute("put", {"key": "k", "value": 1}) for _ in range(10)}
        results = list(ex.map("run", ({"value": n} for n in range(3000))))
        late = [ex.submit("run", {"value": n}) for n in range(50)]

    assert 1 == len(pids)
    assert list(range(3000)) == results
    assert list(range(50)) == [future.result(0) for future in late]
    assert 0 == ex.stats().restarts


def test_a_crash(mode: str, gate: Gate) -> None:
    """Only the running request fails, with the facts; the next incarnation serves."""
    with handler_pool(1) as ex:
        running = ex.submit("hold", {"gate": gate.path})
        (arrival,) = gate.wait_started()
        queued = ex.submit("run", {"value": 1})

        os.kill(arrival.pid, signal.SIGKILL)

        error = running.exception(LIMIT_S)
        assert 1 == queued.result(LIMIT_S)
    assert isinstance(error, WorkerDied)
    assert (arrival.pid, signal.SIGKILL) == (error.pid, error.signal)
    assert is_gone(arrival.pid)


def test_a_time_out_and_a_cancellation(mode: str, make_gate: Callable[[], Gate]) -> None:
    """Workers that ignore TERM are ended and replaced when they had their time, or are not wanted any more."""
    gate = make_gate()
    with handler_pool(1) as ex:
        first = ex.execute("ignore_term")
        late = ex.submit("hold", {"gate": gate.path}, timeout=1.0)
        assert isinstance(late.exception(LIMIT_S), CommandTimeout)
        second = ex.execute("pid")
        running = ex.submit("hold", {"gate": gate.path})
        gate.wait_started(2)
        running.cancel(running=True)

        assert 1 == ex.submit("run", {"value": 1}).result(LIMIT_S)
        assert balance(ex.stats()) == ex.stats().requests
    assert [True, True] == [is_gone(pid) for pid in (first, second)]


def test_stubborn_workers_and_their_children_end(mode: str, tmp_path: Path) -> None:
    """Shutdown ends workers that ignore TERM, and what is left of their groups."""
    path = tmp_path / "pid"
    with saboteur_pool(2) as ex:
        ex.wait_ready(LIMIT_S, 2)
        pids = [worker.pid for worker in ex.workers()]
        ex.execute("do", {"how": "grandchild", "path": str(path), "own_session": False, "reply": True})
        pids.append(int(path.read_text()))

    for pid in pids:
        wait_until(lambda pid=pid: is_gone(pid or 0), LIMIT_S, f"{pid} ends")


def test_the_guardian_is_killed(mode: str) -> None:
    """It is replaced at once, or, where its exit cannot be watched, by the next spawn at the latest."""
    with handler_pool(1) as ex:
        pid = ex.execute("pid")
        guardian = GUARDIAN.pid
        assert guardian is not None
        os.kill(guardian, signal.SIGKILL)
        if mode in ("no pidfd", "none of them"):
            ex.submit("die", {"code": 1}).exception(LIMIT_S)
            pid = ex.submit("pid").result(LIMIT_S)

        wait_until(lambda: GUARDIAN.pid not in (None, guardian), LIMIT_S, "another guardian")

        assert pid == ex.submit("pid").result(LIMIT_S)


# A host that is killed ------------------------------------------------------------------------------

PRELUDES = {
    "no pidfd": "del os.pidfd_open",
    "no setpriv": "spawn.find_setpriv = lambda: None",
    "neither": "del os.pidfd_open; spawn.find_setpriv = lambda: None",
    "no descriptor for /proc": """
process_start, asked = procfs.process_start, []
guardian.process_start = lambda pid: asked.append(pid) or 0
""",
}

HOST = """
import json, os, sys
from snakepit._supervision import guardian, procfs, spawn
{prelude}
from snakepit._supervision.guardian import GUARDIAN
from integration import callables_lib as lib
from snakepit import SnakepitExecutor

executor = SnakepitExecutor(2)
pids = [executor.submit(os.getpid).result()]
executor.submit(lib.held, sys.argv[1])
print(json.dumps([*pids, GUARDIAN.pid]), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("prelude", PRELUDES)
def test_a_killed_host_leaves_nothing(tmp_path: Path, gate: Gate, prelude: str) -> None:
    """Workers, busy and idle, and the guardian end with their host; before, the guardian lets them work."""
    source = HOST.replace("{prelude}", PRELUDES[prelude])
    host = scripts.start(tmp_path, source, gate.path, stdin=subprocess.PIPE)
    try:
        assert host.stdout is not None
        line = host.stdout.readline()
        pids = [int(word) for word in line.strip("[]\n").split(",")]
        pids += [arrival.pid for arrival in gate.wait_started(1, scripts.BOUND_S)]
        alive = [psutil.pid_exists(pid) for pid in pids]

        host.kill()
        host.wait(scripts.BOUND_S)

        assert [True] * len(pids) == alive
        for pid in pids:
            wait_until(lambda pid=pid: is_gone(pid), LIMIT_S, f"{pid} of {pids} ends")
    finally:
        host.kill()
        host.communicate()


# Children that somebody else reaps ------------------------------------------------------------------

REAPERS = {
    "SIGCHLD ignored": "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    "a handler that reaps everything": """
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
""",
    "a thread that waits for any child": """
def reap():
    while True:
        try:
            os.wait()
        except ChildProcessError:
            threading.Event().wait(0.001)
threading.Thread(target=reap, daemon=True).start()
""",
}

REAPED = """
import os, signal, sys, threading
from integration.workers.pools import saboteur_pool, LIMIT_S
from snakepit import WorkerDied, CommandTimeout
from snakepit._supervision import spawn, procfs
from snakepit._supervision.guardian import GUARDIAN
{prelude}
{reaper}
# A signal is sent only to a group that is still ours: its leader is our child, ended or not.
killpg, wrong = os.killpg, []
def checked(pgid, number):
    # One look, since others may reap it between two; while it is being reaped its parent is 0.
    fields = procfs._stat(pgid)
    parent = int(fields[1]) if fields else 0
    if parent not in (0, os.getpid()):
        wrong.append((pgid, number))
    killpg(pgid, number)
os.killpg = checked
with saboteur_pool(2) as ex:
    for n in range(10):
        died = ex.submit("do", {"how": "exit", "code": 3}).exception(LIMIT_S)
        assert isinstance(died, WorkerDied), died
        assert (died.exit_code, died.signal) in ((None, None), (3, None)), died
        assert ex.submit("do", {"value": n}).result(LIMIT_S) == n
    late = ex.submit("do", {"how": "hang", "ignore_term": True}, timeout=0.1).exception(LIMIT_S)
    assert isinstance(late, CommandTimeout), late
    guardian = GUARDIAN.pid
    os.kill(guardian, signal.SIGKILL)
    assert ex.submit("do", {"value": 1}).result(LIMIT_S) == 1
    ex.submit("do", {"how": "exit", "code": 3}).exception(LIMIT_S)
    assert ex.submit("do", {"value": 1}).result(LIMIT_S) == 1
    ex.submit("do", {"how": "stubborn"}).result(LIMIT_S)
    assert GUARDIAN.pid not in (None, guardian), GUARDIAN.pid
    pids = [worker.pid for worker in ex.workers()] + [GUARDIAN.pid]
left = [pid for pid in pids if (record := procfs.process_record(pid)) and not record.ended]
print(wrong, left, [t.name for t in threading.enumerate() if "snakepit" in t.name])
"""


@pytest.mark.parametrize("prelude", ["", "spawn.USE_PIDFD = False; del os.pidfd_open"], ids=["pidfd", "no pidfd"])
@pytest.mark.parametrize("reaper", REAPERS)
def test_children_are_reaped_by_the_host(tmp_path: Path, reaper: str, prelude: str) -> None:
    """Exit codes may be unknown; nothing hangs, nothing stays, and no signal goes to a pid that is not ours."""
    source = REAPED.replace("{prelude}", prelude).replace("{reaper}", REAPERS[reaper])

    done = scripts.run(tmp_path, source)

    assert (0, "[] [] []\n") == (done.returncode, done.stdout), done.stderr[-3000:]


# The guardian under fire ----------------------------------------------------------------------------


def test_the_guardian_is_killed_again_and_again_while_workers_are_spawned() -> None:
    """Nobody notices: every start succeeds, and the last guardian knows all that live."""
    killed = []
    with saboteur_pool(3) as ex:
        ex.wait_ready(LIMIT_S, 3)
        for n in range(15):
            guardian = GUARDIAN.pid
            assert guardian is not None
            os.kill(guardian, signal.SIGKILL)
            killed.append(guardian)
            # The next spawn meets a guardian that is dying, dead, or new.
            assert isinstance(ex.submit("do", {"how": "exit", "code": 1}).exception(LIMIT_S), WorkerDied)
            assert n == ex.submit("do", {"value": n}).result(LIMIT_S)
            wait_until(lambda old=guardian: GUARDIAN.pid not in (None, old), LIMIT_S, "another guardian")
        wait_until(lambda: ex.stats().available == 3, LIMIT_S, "all workers")
        stats = ex.stats()
        groups = sorted(GUARDIAN._groups)
        pids = sorted(worker.pid or 0 for worker in ex.workers())

    assert 15 == len(set(killed))
    assert pids == groups
    assert (15, 15) == (stats.errors, stats.restarts)
    assert [True] * 15 == [is_gone(pid) for pid in killed]


def test_a_stopped_guardian_blocks_nobody() -> None:
    """More than its lifeline holds is told while it does not read; starts, ends and the shutdown go on."""
    with saboteur_pool(2) as ex:
        ex.wait_ready(LIMIT_S, 2)
        stopped = GUARDIAN.pid
        assert stopped is not None
        os.kill(stopped, signal.SIGSTOP)
        for n in range(5):
            assert isinstance(ex.submit("do", {"how": "exit", "code": 1}).exception(LIMIT_S), WorkerDied)
            assert n == ex.submit("do", {"value": n}).result(LIMIT_S)
        for number in range(200_000):
            if GUARDIAN.pid != stopped:
                break
            GUARDIAN.register(2**22 + 1, number)
            GUARDIAN.unregister(2**22 + 1)

        assert stopped != GUARDIAN.pid
        assert is_gone(stopped)
        second = GUARDIAN.pid
        assert second is not None
        os.kill(second, signal.SIGSTOP)

    assert is_gone(second)
    assert None is GUARDIAN.pid
