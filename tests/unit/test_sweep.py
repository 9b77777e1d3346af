"""What a worker left behind is found also while it execs, forks or exits, and whatever cannot be looked at is told."""

from __future__ import annotations

import errno
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import attrs
import pytest

from snakepit._supervision import procfs as _procfs
from snakepit._supervision import sweep as _sweep
from snakepit._supervision.process import ChildProcess
from snakepit._supervision.procfs import find_token, process_ids, process_record, process_start
from snakepit._supervision.reports import Exited, Spawned
from snakepit._supervision.spawn import SpawnSpec, start_process
from snakepit._supervision.stderr import WorkerStderr
from snakepit._supervision.sweep import kill_left
from snakepit._supervision.ward import Ward
from snakepit._supervision.watchdog import Watchdog

from leaks import wait_until

WAIT_S = 15.0
TOKEN = "sweep-1"  # noqa: S105  # tells whose a process is, and is no secret


@pytest.fixture
def ward() -> Iterator[Ward]:
    """A worker that has exited and is not reaped."""
    env = {**os.environ, _procfs.RUN_VARIABLE: TOKEN}
    child = start_process(SpawnSpec(("sh", "-c", "exit 0"), env, level=0))
    wait_until(child.exited, WAIT_S, "the exit")
    yield Ward("w1", child, TOKEN, process_start(child.pid), WorkerStderr("w1", 10, None))
    wait_until(child.poll, WAIT_S, "the reaping")
    child.close()


@pytest.fixture
def escaped(ward: Ward) -> Iterator[subprocess.Popen[bytes]]:
    """A descendant of it in a session of its own, which has exec'd."""
    env = {**os.environ, _procfs.RUN_VARIABLE: TOKEN}
    process = subprocess.Popen(["sleep", "60"], env=env, start_new_session=True)
    wait_until(lambda: find_token(process.pid) == TOKEN, WAIT_S, "the exec")
    yield process
    process.kill()
    process.wait()


def stat_of(pid: int, *, env_start: int, env_end: int, memory: int = 4096) -> bytes:
    """Return a line as in ``/proc/PID/stat`` with other bounds of the environment."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        head, _, rest = file.read().rpartition(b")")
    fields = rest.split()
    fields[20], fields[47], fields[48] = b"%d" % memory, b"%d" % env_start, b"%d" % env_end
    return head + b") " + b" ".join(fields)


def in_exec(monkeypatch: pytest.MonkeyPatch, pid: int, looks: int) -> list[str]:
    """Show one process as in the middle of an exec for so many looks at its environment."""
    read = _procfs._read
    seen: list[str] = []

    def reading(path: str) -> bytes | None:
        if path == f"/proc/{pid}/environ" and len(seen) < looks:
            seen.append(path)
            return b""
        if path == f"/proc/{pid}/stat" and len(seen) < looks + 1 and read(path):
            return stat_of(pid, env_start=0, env_end=0)
        return read(path)

    monkeypatch.setattr(_procfs, "_read", reading)
    return seen


# In the middle of an exec ---------------------------------------------------------------------------


def test_a_descendant_in_the_middle_of_an_exec(
    ward: Ward, escaped: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an environment it cannot be known, which is told; the next look ends it, a third is quiet."""
    in_exec(monkeypatch, escaped.pid, looks=1)

    first, second = kill_left([ward]), kill_left([ward])
    escaped.wait(WAIT_S)
    # Any other process of the machine may be in the middle of an exec too.
    wait_until(lambda: not kill_left([ward]).unsure, WAIT_S, "a quiet look")
    last = kill_left([ward])

    assert ([], True) == (first.pids["w1"], first.unsure)
    assert [escaped.pid] == second.pids["w1"]
    assert [] == last.pids["w1"]
    assert -signal.SIGKILL == escaped.returncode


def test_the_exit_is_reported_when_the_exec_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog reports no exit before it could judge a descendant that was in the middle of an exec."""
    events: queue.SimpleQueue[object] = queue.SimpleQueue()
    watchdog = Watchdog("test", events.put, kill_grace_s=0.2, stderr_tail_bytes=10)
    watchdog.start()
    watchdog.spawn("w1", SpawnSpec(("sh", "-c", "setsid sleep 60 & echo $!; read line"), dict(os.environ), level=0))
    spawned = events.get(timeout=WAIT_S)
    assert isinstance(spawned, Spawned)
    os.set_blocking(spawned.reply_fd, True)
    descendant = int(os.read(spawned.reply_fd, 100))
    wait_until(lambda: os.getsid(descendant) == descendant, WAIT_S, "the descendant's own session")
    wait_until(lambda: find_token(descendant), WAIT_S, "the exec")
    seen = in_exec(monkeypatch, descendant, looks=3)

    watchdog.kill("w1")

    exited = events.get(timeout=WAIT_S)
    record = process_record(descendant)
    watchdog.stop()
    assert watchdog.join(WAIT_S)
    os.close(spawned.request_fd)
    os.close(spawned.reply_fd)
    assert isinstance(exited, Exited)
    assert (3, ()) == (len(seen), exited.survivors)
    assert record is None or record.ended


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"env_start": 0, "env_end": 0}, None),
        ({"env_start": 4096, "env_end": 5000}, None),
        ({"env_start": 4096, "env_end": 4096}, ""),
        ({"env_start": 0, "env_end": 0, "memory": 0}, ""),
    ],
    ids=["in exec", "just out of it", "no variables", "no memory"],
)
def test_an_empty_environment_is_told_from_none_yet(
    escaped: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    bounds: dict[str, int],
    expected: str | None,
) -> None:
    """Only a process that will have an environment is worth another look."""
    answers = {"environ": b"", "stat": stat_of(escaped.pid, **bounds)}
    monkeypatch.setattr(_procfs, "_read", lambda path: answers[path.rpartition("/")[2]])

    assert expected == find_token(escaped.pid)


def test_a_killed_descendant_is_waited_for_until_it_has_ended(
    ward: Ward, escaped: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, and without its memory and environment, it still counts as left until the kernel has ended it."""
    read = _procfs._read
    ending = {
        f"/proc/{escaped.pid}/environ": b"",
        f"/proc/{escaped.pid}/stat": stat_of(escaped.pid, env_start=0, env_end=0, memory=0),
    }
    monkeypatch.setattr(_procfs, "kill_verified", lambda pid, start: True)

    first = kill_left([ward])
    monkeypatch.setattr(_procfs, "_read", lambda path: ending[path] if path in ending else read(path))
    second = kill_left([ward])
    ending.clear()
    escaped.kill()
    escaped.wait(WAIT_S)
    third = kill_left([ward])

    assert [escaped.pid] == first.pids["w1"] == second.pids["w1"]
    assert ([], {}) == (third.pids["w1"], ward.killed)


def test_a_process_without_variables_delays_nothing(ward: Ward) -> None:
    """A stranger that was started with an empty environment is no reason to look again."""
    with subprocess.Popen(["/bin/sleep", "60"], env={}, start_new_session=True) as stranger:
        wait_until(lambda: find_token(stranger.pid) == "", WAIT_S, "the exec")

        assert [""] * 20 == [find_token(stranger.pid) for _ in range(20)]

        stranger.kill()


# Behind the listing ---------------------------------------------------------------------------------

FORKER = """
import os, sys
os.setsid()
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.read(1)
child = os.fork()
if child:
    print(child, flush=True)
    os._exit(0)
import signal
signal.pause()
"""


def test_a_descendant_that_forks_and_exits_behind_the_listing(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon in the making: the one on the list has gone when it is looked at, and its child is ended."""
    forker = subprocess.Popen(
        [sys.executable, "-S", "-c", FORKER],
        env={**os.environ, _procfs.RUN_VARIABLE: TOKEN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=False,
    )
    assert forker.stdout is not None
    assert forker.stdin is not None
    assert b"ready\n" == forker.stdout.readline()
    children: list[int] = []

    def listing() -> set[int] | None:
        pids = process_ids()
        if not children:
            forker.stdin.write(b"\n")  # type: ignore[union-attr]
            forker.stdin.flush()  # type: ignore[union-attr]
            children.append(int(forker.stdout.readline()))  # type: ignore[union-attr]
            forker.wait(WAIT_S)
            assert children[0] not in (pids or ())
        return pids

    monkeypatch.setattr(_procfs, "process_ids", listing)

    left = kill_left([ward])

    with forker:
        assert children == left.pids["w1"]
    wait_until(lambda: (record := process_record(children[0])) is None or record.ended, WAIT_S, "its child")


def test_without_changes_one_listing_is_enough(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing has gone since the listing, it is not repeated."""
    listings = []
    pids = {os.getpid(), ward.child.pid}
    monkeypatch.setattr(_procfs, "process_ids", lambda: listings.append(1) or pids)

    left = kill_left([ward])

    assert (1, {"w1": []}, False) == (len(listings), left.pids, left.unsure)


def test_listings_are_bounded(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host on which processes come and go all the time does not hold the watchdog."""
    listings: list[int] = []

    def listing() -> set[int]:
        listings.append(2**30 + len(listings))
        return set(listings)

    monkeypatch.setattr(_procfs, "process_ids", listing)

    kill_left([ward])

    assert _sweep.MOST_LISTINGS + 1 == len(listings)


# Without descriptors --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
@pytest.mark.parametrize("call", ["listdir", "open", "pidfd_open"])
def test_out_of_descriptors_is_not_taken_for_nothing_left(
    ward: Ward, escaped: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """What cannot be looked at for want of a descriptor is looked at again, and then ended."""

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        blind = kill_left([ward])
        start = process_start(escaped.pid)

    assert ([], True) == (blind.pids["w1"], blind.unsure)
    assert (start == 0) is (call == "open")
    assert [escaped.pid] == kill_left([ward]).pids["w1"]


def test_other_errors_of_the_system_mean_no_proc(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``/proc`` cannot be read at all, the group's own emptiness decides."""
    monkeypatch.setattr(_procfs, "PROC", "/nonexistent")
    empty: list[Callable[..., object]] = []
    monkeypatch.setattr(ChildProcess, "group_is_empty", lambda child: not empty.append(child))

    left = kill_left([attrs.evolve(ward)])

    assert ({"w1": []}, False, 1) == (left.pids, left.unsure, len(empty))
