"""What a host leaves that was killed together with its guardian, the next start ends: that, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from integration import scripts
from integration.workers import pools

from snakepit._supervision.procfs import RUN_VARIABLE, process_start, run_token

from leaks import is_gone, wait_until

HOST = """
import ctypes, json, os, sys
from snakepit._supervision import spawn
spawn.find_setpriv = lambda: None  # no parent-death signal: without a guardian the workers stay
from snakepit import SnakepitExecutor
from snakepit._supervision.guardian import GUARDIAN
from snakepit._supervision.registry import REGISTRY
from integration.workers import pools

folder, workers, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
executor = pools.saboteur_pool(workers, env={"SABOTEUR_START": "stubborn"})
executor.wait_ready(30, workers)
told = {"workers": [info.pid for info in executor.workers()], "others": []}
if kind == "family":
    for own_session in (False, True):
        path = os.path.join(folder, f"grandchild-{os.getpid()}-{own_session}")
        executor.execute("do", {"how": "grandchild", "path": path, "own_session": own_session, "reply": True})
        told["others"].append(int(open(path).read()))
if kind == "c_fork":
    forked = ctypes.CDLL(None).fork()
    while not forked:
        ctypes.CDLL(None).pause()
    told["others"].append(forked)
if kind == "load":
    for _ in range(4 * workers):
        executor.submit("do", {"how": "hang", "ignore_term": True})
print(json.dumps({**told, "guardian": GUARDIAN.pid, "file": REGISTRY.path}), flush=True)
sys.stdin.read()
if kind != "load":
    executor.shutdown()
"""


class Host:
    """A host program that has started its workers, which ignore the end of their input and SIGTERM."""

    def __init__(self, folder: Path, workers: int, kind: str) -> None:
        self.process = scripts.start(folder, HOST, folder, workers, kind, stdin=subprocess.PIPE)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        told = json.loads(line)
        self.workers: list[int] = told["workers"]
        self.others: list[int] = told["others"]
        self.guardian: int = told["guardian"]
        self.file = Path(told["file"])

    def die_with_its_guardian(self) -> None:
        """Kill both; the guardian is stopped first, so that it does nothing any more."""
        guardian = psutil.Process(self.guardian)
        guardian.suspend()
        wait_until(lambda: guardian.status() == psutil.STATUS_STOPPED, scripts.BOUND_S, "the guardian stops")
        self.process.kill()
        self.process.wait(scripts.BOUND_S)
        guardian.kill()
        wait_until(lambda: is_gone(self.guardian), scripts.BOUND_S, "the guardian's end")

    def shut_down(self) -> tuple[int, str]:
        """Let it end as it should; return its status and what it wrote to stderr."""
        _, err = self.process.communicate("", timeout=scripts.BOUND_S)
        return self.process.returncode, err

    def close(self) -> None:
        """Make sure that nothing of it is left."""
        self.process.kill()
        for pid in (*self.workers, *self.others, self.guardian):
            with contextlib.suppress(ProcessLookupError):
                if not is_gone(pid):
                    os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=scripts.BOUND_S)


Starter = Callable[..., Host]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the registry's directory of this test, not yet made."""
    path = tmp_path / "registry"
    monkeypatch.setenv("SNAKEPIT_REGISTRY", str(path))
    return path


@pytest.fixture
def start(tmp_path: Path, directory: Path) -> Iterator[Starter]:
    """Return a function that starts a host; whatever is left of it is ended after the test."""
    made: list[Host] = []

    def start_host(workers: int = 1, kind: str = "plain") -> Host:
        made.append(Host(tmp_path, workers, kind))
        return made[-1]

    yield start_host
    for host in made:
        host.close()


@pytest.fixture
def strangers() -> Iterator[Callable[..., int]]:
    """Return a function that starts a process like a worker, which nobody's registry knows; it returns the pid."""
    started = []

    def start_stranger(**env: str) -> int:
        argv = (sys.executable, "-I", "-S", pools.SABOTEUR)
        started.append(subprocess.Popen(argv, stdin=subprocess.PIPE, env={**os.environ, **env}, start_new_session=True))
        pid = started[-1].pid
        wait_until(lambda: run_token(pid) == env.get(RUN_VARIABLE, ""), scripts.BOUND_S, "the exec")
        return pid

    yield start_stranger
    for process in started:
        process.kill()
        process.communicate()


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if not is_gone(pid)]


def doctor(*words: str) -> tuple[int, Any]:
    """Return the exit status of ``snakepit doctor``, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "snakepit", "doctor", *words],
        capture_output=True,
        text=True,
        timeout=scripts.BOUND_S,
        check=False,
    )
    assert "" == done.stderr
    return done.returncode, json.loads(done.stdout) if "--json" in words else done.stdout


def test_the_next_start_ends_exactly_what_a_dead_host_left(
    directory: Path, start: Starter, strangers: Callable[..., int]
) -> None:
    """Workers (one of them stopped), a grandchild and one that left the session go; everybody else stays."""
    living, dead = start(2), start(3, "family")
    orphans = [*dead.workers, *dead.others]
    os.kill(dead.workers[0], signal.SIGSTOP)
    token = run_token(dead.workers[0])
    alike, reused = strangers(), strangers(**{RUN_VARIABLE: f"{token[:16]}-99"})
    dead.die_with_its_guardian()
    with dead.file.open("a") as file:
        # The pid of the stranger, as if another process had had it when the host was alive.
        file.write(f"+ {token[:16]}-98 {reused} {process_start(reused) - 1}\n")
    before = alive(orphans)

    following = start()

    assert orphans == before
    assert [] == alive(orphans)
    everybody_else = [*living.workers, *following.workers, alike, reused]
    assert everybody_else == alive(everybody_else)
    assert {living.file, following.file} == set(directory.iterdir())
    assert (0, "") == living.shut_down()
    status, told = following.shut_down()
    assert 0 == status
    assert {str(pid) for pid in orphans} == set(re.findall(r"ended process (\d+)", told))
    assert [] == list(directory.iterdir())


def test_a_fork_in_c_does_not_keep_a_dead_host_alive(directory: Path, start: Starter) -> None:
    """A child made past Python's hooks holds the dead host's lock; its workers are ended all the same."""
    dead = start(1, "c_fork")
    dead.die_with_its_guardian()
    before = alive([*dead.workers, *dead.others])

    following = start()

    assert [*dead.workers, *dead.others] == before
    assert dead.others == alive([*dead.workers, *dead.others])
    assert [following.file] == list(directory.iterdir())


def test_a_host_killed_again_and_again_leaves_nothing(directory: Path, start: Starter) -> None:
    """Eight workers under load, killed with host and guardian twice: none of the older ones, no more files."""
    older: list[int] = []
    files = []
    for _ in range(2):
        host = start(8, "load")
        assert [] == alive(older)
        files.append(len(list(directory.iterdir())))
        older += host.workers
        host.die_with_its_guardian()
    left = alive(older)

    host = start()

    assert older[8:] == left
    assert [] == alive(older)
    assert [1, 1, 1] == [*files, len(list(directory.iterdir()))]


def test_two_hosts_that_start_at_once(directory: Path, start: Starter, tmp_path: Path) -> None:
    """Both sweep; the orphans go, and neither host hurts the other."""
    dead = start(4)
    dead.die_with_its_guardian()

    with ThreadPoolExecutor(2) as threads:
        hosts = list(threads.map(lambda _: start(2), range(2)))

    assert [] == alive(dead.workers)
    workers = hosts[0].workers + hosts[1].workers
    assert workers == alive(workers)
    assert {host.file for host in hosts} == set(directory.iterdir())
    assert [0, 0] == [host.shut_down()[0] for host in hosts]


def test_a_worker_that_is_a_host_itself(directory: Path, start: Starter, tmp_path: Path) -> None:
    """While a worker is a host too, its workers are not touched by the sweep of others."""
    folder = tmp_path / "outer"
    folder.mkdir()
    process = scripts.start(folder, NESTED, stdin=subprocess.PIPE)
    try:
        assert process.stdout is not None
        worker, nested = json.loads(process.stdout.readline())

        other = start()

        assert [worker, *nested] == alive([worker, *nested])
        assert 3 == len(list(directory.iterdir()))
        assert (0, "") == other.shut_down()
    finally:
        process.communicate("", timeout=scripts.BOUND_S)
    assert 0 == process.returncode
    assert [] == alive([worker, *nested])
    assert [] == list(directory.iterdir())


NESTED = """
import json, os, sys
from snakepit import SnakepitExecutor

def be_a_host():
    import builtins
    executor = builtins.kept = SnakepitExecutor(1)
    return os.getpid(), [executor.submit(os.getpid).result()]

with SnakepitExecutor(1) as executor:
    print(json.dumps(executor.submit(be_a_host).result()), flush=True)
    sys.stdin.read()
"""


# snakepit doctor -------------------------------------------------------------------------------------


def test_doctor_lists_orphans_and_ends_them(directory: Path, start: Starter) -> None:
    """``--orphans`` only looks; ``--kill-orphans`` ends them and says so; a live host's workers are neither."""
    living, dead = start(), start(2, "family")
    orphans = sorted([*dead.workers, *dead.others])
    run = run_token(dead.workers[0])[:16]
    dead.die_with_its_guardian()

    listed, shown = doctor("--orphans", "--json"), doctor("--orphans")
    still_there = alive(orphans)
    killed, none_left = doctor("--kill-orphans", "--json"), doctor("--orphans")

    status, report = listed
    assert (1, False, [], []) == (status, report["ok"], report["ended"], report["problems"])
    assert orphans == [orphan["pid"] for orphan in report["orphans"]]
    assert {(run, dead.process.pid)} == {(orphan["run"], orphan["host"]) for orphan in report["orphans"]}
    assert all(pools.SABOTEUR in orphan["command"] and orphan["age_s"] >= 0 for orphan in report["orphans"])
    assert {*dead.workers, dead.others[1]} == {orphan["group"] for orphan in report["orphans"]}
    assert 1 == shown[0]
    assert orphans == [int(line.split()[0]) for line in shown[1].splitlines() if pools.SABOTEUR in line]
    assert orphans == still_there
    assert (0, True, []) == (killed[0], killed[1]["ok"], killed[1]["orphans"])
    assert report["orphans"] == [{**orphan, "age_s": was["age_s"]} for orphan, was in _pairs(killed, report)]
    assert [] == alive(orphans)
    assert (0, "no orphans\n") == none_left
    assert living.workers == alive(living.workers)
    assert [living.file] == list(directory.iterdir())


def _pairs(killed: tuple[int, Any], report: Any) -> list[tuple[Any, Any]]:
    ended = sorted(killed[1]["ended"], key=lambda orphan: int(orphan["pid"]))
    return list(zip(ended, report["orphans"], strict=True))


def test_doctor_says_what_was_ended(directory: Path, start: Starter) -> None:
    """The table of ``--kill-orphans`` names each process that was ended."""
    dead = start()
    dead.die_with_its_guardian()

    status, shown = doctor("--kill-orphans")

    assert 0 == status
    assert "Ended" == shown.splitlines()[0].strip()
    assert str(dead.workers[0]) == shown.splitlines()[2].split()[0]
    assert "no orphans are left" == shown.splitlines()[-1]


def test_doctor_cannot_trust_a_directory_that_is_open_to_others(directory: Path) -> None:
    """Then it cannot say that there are no orphans: status 3 and the reason."""
    directory.mkdir()
    directory.chmod(0o755)

    status, report = doctor("--orphans", "--json")

    assert 3 == status
    assert str(directory) in report["problems"][0]
