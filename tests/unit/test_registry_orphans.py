"""What is believed of a file in the registry, and whom a sweep ends: verified orphans of dead hosts, nobody else."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from snakepit._supervision import orphans as _orphans
from snakepit._supervision import procfs as _procfs
from snakepit._supervision import run_files as _run_files
from snakepit._supervision.orphans import find_orphans, sweep_orphans
from snakepit._supervision.procfs import process_record, process_start, run_token
from snakepit._supervision.run_files import DROP_AFTER_S, MAX_BYTES, HostId, new_name, render, this_host

from leaks import wait_until

WAIT_S = 15.0
# Other processes of the suite may run these tests too, and a sweep ends whatever has the tokens of a dead run.
RUN = os.urandom(8).hex()
TOKEN = f"{RUN}-1"

Starter = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the registry's directory of this test."""
    path = tmp_path / "registry"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("SNAKEPIT_REGISTRY", str(path))
    return path


@pytest.fixture
def dead_host() -> HostId:
    """A host that was started before everything of the test, and is gone."""
    here = this_host()
    assert here is not None
    with subprocess.Popen(["sleep", "60"]) as process:
        host = attrs.evolve(here, pid=process.pid, start=process_start(process.pid))
        process.kill()
    return host


@pytest.fixture
def start() -> Iterator[Starter]:
    """Return a function that starts a process with a run token, by default in a session of its own."""
    started = []

    def start_process(token: str | None = TOKEN, script: str = "exec sleep 60") -> subprocess.Popen[bytes]:
        env = {**os.environ, **({"SNAKEPIT_RUN": token} if token else {})}
        argv = ["sh", "-c", script]
        started.append(subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, start_new_session=True))
        wait_until(lambda: run_token(started[-1].pid) == (token or ""), WAIT_S, "the exec")
        return started[-1]

    yield start_process
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=WAIT_S)


def write(directory: Path, host: HostId, *lines: str, rows: dict[str, tuple[int, int]] | None = None) -> Path:
    """Write a file of the registry."""
    path = directory / new_name()
    path.write_bytes(render(host, rows or {}) + "".join(f"{line}\n" for line in lines).encode())
    return path


def row(process: subprocess.Popen[bytes], token: str = TOKEN, late: int = 0) -> str:
    return f"+ {token} {process.pid} {process_start(process.pid) + late}"


def lives(process: subprocess.Popen[bytes]) -> bool:
    record = process_record(process.pid)
    return record is not None and not record.ended


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# Who is an orphan ------------------------------------------------------------------------------------


def test_ends_the_workers_of_a_dead_host(directory: Path, dead_host: HostId, start: Starter) -> None:
    """The worker of a row and one of whom only the token is known go; other tokens, of the same run too, stay."""
    worker, spawning = start(), start(f"{RUN}-2")
    struck, stranger = start(f"{RUN}-3"), start("fedcba9876543210-1")
    write(directory, dead_host, row(worker), f"? {RUN}-2", row(struck, f"{RUN}-3"), f"- {RUN}-3", f"? {RUN}-4")

    swept = sweep_orphans()

    assert {worker.pid, spawning.pid} == {orphan.pid for orphan in swept.ended}
    assert ((), ()) == (swept.left, swept.problems)
    assert [-signal.SIGKILL] * 2 == [worker.wait(WAIT_S), spawning.wait(WAIT_S)]
    assert lives(struck)
    assert lives(stranger)
    assert [] == names(directory)


def test_ends_the_group_of_a_worker(
    directory: Path, dead_host: HostId, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes of its group go although their environment is bare, and before it.

    Who has another token is judged by that one, and a group whose leader is not the worker of a row is not its.
    """
    script = "env -i sleep 61 & env -i sleep 61 & SNAKEPIT_RUN=0-0 sleep 61 & exec sleep 60"
    worker, other, escaped = start(script=script), start(f"{RUN}-2", script=script), start(script=script)

    def members(process: subprocess.Popen[bytes]) -> set[int]:
        table = _procfs.process_table() or []
        return {record.pid for record in table if record.pgid == process.pid and run_token(record.pid) == ""}

    groups = worker, other, escaped
    wait_until(lambda: [2] * 3 == [len(members(leader)) for leader in groups], WAIT_S, "the bare processes")
    of_worker, of_others = members(worker), members(other) | members(escaped)
    nested = {record.pid for record in _procfs.process_table() or [] if run_token(record.pid) == "0-0"}
    write(directory, dead_host, row(worker), row(other, f"{RUN}-99"))
    order, kill_verified = [], _procfs.kill_verified

    def kill(pid: int, start: int) -> bool:
        order.append(pid)
        return kill_verified(pid, start)

    monkeypatch.setattr(_procfs, "kill_verified", kill)

    swept = sweep_orphans()

    assert {worker.pid, escaped.pid, *of_worker} == {orphan.pid for orphan in swept.ended}
    assert order.index(worker.pid) > max(order.index(pid) for pid in of_worker)
    assert of_others == members(other) | members(escaped)
    assert nested == {pid for pid in nested if run_token(pid) == "0-0"}
    assert lives(other)


def test_a_process_that_cannot_be_judged_keeps_the_file(
    directory: Path, dead_host: HostId, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While somebody is in the middle of an exec it may be an orphan: the file stays for the next sweep."""
    somebody = start()
    find_token = _procfs.find_token
    path = write(directory, dead_host, f"? {TOKEN}")
    monkeypatch.setattr(_orphans, "END_LIMIT_S", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(_procfs, "find_token", lambda pid: None if pid == somebody.pid else find_token(pid))
        swept = sweep_orphans()
    kept = names(directory)

    after = sweep_orphans()

    assert ((), [path.name]) == (swept.ended, kept)
    assert [somebody.pid] == [orphan.pid for orphan in after.ended]


def test_a_worker_that_shows_its_token_late(
    directory: Path, dead_host: HostId, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that the host had made and that execs only after the first look is found by another one."""
    child = start(None, f"read line; SNAKEPIT_RUN={TOKEN} exec sleep 60")
    write(directory, dead_host, f"? {TOKEN}")
    find, looks = _orphans._find, []

    def looking(survey: object) -> object:
        looks.append(found := find(survey))  # type: ignore[arg-type]
        if len(looks) == 1:
            assert child.stdin is not None
            child.stdin.write(b"\n")
            child.stdin.flush()
            wait_until(lambda: run_token(child.pid) == TOKEN, WAIT_S, "the exec")
        return found

    monkeypatch.setattr(_orphans, "_find", looking)

    swept = sweep_orphans()

    assert [] == looks[0][0]
    assert [child.pid] == [orphan.pid for orphan in swept.ended]


def test_a_reused_pid(directory: Path, dead_host: HostId, start: Starter) -> None:
    """A process that has the pid of a row, but another start time or another token, stays."""
    later, other, bare = start(f"{RUN}-5"), start(f"{RUN}-6"), start(None)
    write(directory, dead_host, row(later, TOKEN, late=-1), row(other, f"{RUN}-2"), row(bare, f"{RUN}-3"))

    swept = sweep_orphans()

    assert ((), ()) == (swept.ended, swept.left)
    assert [True] * 3 == [lives(later), lives(other), lives(bare)]
    assert [] == names(directory)


def test_older_than_its_host(directory: Path, start: Starter) -> None:
    """A process that was there before the host cannot be its worker, whatever it carries."""
    older = start()
    here = this_host()
    assert here is not None
    host = attrs.evolve(here, pid=2**22 - 1, start=process_start(older.pid) + 1)
    write(directory, host, f"? {TOKEN}")

    assert () == sweep_orphans().ended
    assert lives(older)


def test_this_process_and_its_ancestors_are_spared(directory: Path, dead_host: HostId) -> None:
    """An orphan that is a host itself sweeps: it ends neither itself nor its parent, and the file stays."""
    env = {**os.environ, "SNAKEPIT_RUN": TOKEN}
    program = "from snakepit._supervision.orphans import sweep_orphans as s; r = s(); print(len(r.ended), len(r.left))"
    script = f'{os.sys.executable} -c "{program}"; echo parent lives'  # type: ignore[attr-defined]
    write(directory, dead_host, f"? {TOKEN}")

    done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=True)

    assert "0 2\nparent lives\n" == done.stdout
    assert 1 == len(names(directory))


def test_what_cannot_be_ended_keeps_its_file(
    directory: Path, dead_host: HostId, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that outlives SIGKILL is told after a bounded time, and its row stays for the next sweep."""
    worker = start()
    path = write(directory, dead_host, row(worker))
    monkeypatch.setattr(_orphans, "END_LIMIT_S", 0.05)
    with monkeypatch.context() as patch:
        patch.setattr(_procfs, "kill_verified", lambda pid, start: False)
        swept = sweep_orphans()

    kept = names(directory)
    after = sweep_orphans()

    assert [worker.pid] == [orphan.pid for orphan in swept.left]
    assert [path.name] == kept
    assert [worker.pid] == [orphan.pid for orphan in after.ended]
    assert [] == names(directory)


def test_looking_changes_nothing(directory: Path, dead_host: HostId, start: Starter) -> None:
    """`find_orphans` tells the orphans with their host, and leaves them and the file alone."""
    worker = start()
    write(directory, dead_host, row(worker))
    (directory / new_name()).write_text("broken")
    before = names(directory)

    [orphan] = find_orphans().left

    expected = (worker.pid, worker.pid, process_start(worker.pid), RUN, dead_host.pid)
    assert expected == (orphan.pid, orphan.pgid, orphan.start, orphan.run, orphan.host_pid)
    assert lives(worker)
    assert before == names(directory)


def test_looking_sees_an_orphan_in_the_middle_of_an_exec(
    directory: Path, dead_host: HostId, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that shows no environment for a moment is looked at again."""
    worker = start()
    write(directory, dead_host, row(worker))
    find_token, looks = _procfs.find_token, []

    def in_exec(pid: int) -> str | None:
        if pid == worker.pid:
            looks.append(pid)
        return None if pid == worker.pid and len(looks) < 3 else find_token(pid)

    monkeypatch.setattr(_procfs, "find_token", in_exec)

    assert [worker.pid] == [orphan.pid for orphan in find_orphans().left]


def test_two_sweeps_at_once(directory: Path, dead_host: HostId, start: Starter) -> None:
    """They share the work, neither fails, and everything is in order afterwards."""
    workers = [start(f"{RUN}-{number}") for number in range(6)]
    for number, worker in enumerate(workers):
        write(directory, dead_host, row(worker, f"{RUN}-{number}"))
    barrier, swept = threading.Barrier(2), []

    def sweep() -> None:
        barrier.wait(WAIT_S)
        swept.append(sweep_orphans())

    threads = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    assert [(), ()] == [sweep.left for sweep in swept]
    assert {worker.pid for worker in workers} == {orphan.pid for sweep in swept for orphan in sweep.ended}
    assert [] == names(directory)


# Whose host is dead ----------------------------------------------------------------------------------


def test_a_live_hosts_workers_are_spared(directory: Path, start: Starter) -> None:
    """With its lock or, when it has closed every descriptor, without it: a host in the process table lives."""
    here = this_host()
    assert here is not None
    worker = start()
    path = write(directory, here, row(worker))

    without_lock = sweep_orphans()
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with_lock = sweep_orphans()

    assert [(), ()] == [without_lock.ended, with_lock.ended]
    assert lives(worker)
    assert [path.name] == names(directory)


def test_a_lock_does_not_keep_a_host_alive(directory: Path, dead_host: HostId, start: Starter) -> None:
    """A process that a library forked in C holds the lock of a dead host; its workers go."""
    worker = start()
    with write(directory, dead_host, row(worker)).open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        swept = sweep_orphans()

    assert [worker.pid] == [orphan.pid for orphan in swept.ended]


@pytest.mark.parametrize("is_locked", [True, False])
def test_a_host_pid_that_is_anothers(directory: Path, start: Starter, is_locked: bool) -> None:
    """A host whose pid has another start time is dead, unless its lock says otherwise (a restored checkpoint)."""
    host_process, worker = start(None), start()
    here = this_host()
    assert here is not None
    host = attrs.evolve(here, pid=host_process.pid, start=process_start(host_process.pid) - 1)
    with write(directory, host, row(worker)).open() as file:
        if is_locked:
            fcntl.flock(file, fcntl.LOCK_EX)
        swept = sweep_orphans()

    assert ([] if is_locked else [worker.pid]) == [orphan.pid for orphan in swept.ended]
    assert lives(host_process)
    assert is_locked == lives(worker)


def test_a_host_that_is_a_zombie_is_dead(directory: Path, start: Starter) -> None:
    """A host whose parent does not reap it has ended."""
    host_process, worker = start(None), start()
    here = this_host()
    assert here is not None
    host = attrs.evolve(here, pid=host_process.pid, start=process_start(host_process.pid))
    write(directory, host, row(worker))
    os.kill(host_process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, host_process.pid, os.WEXITED | os.WNOWAIT)

    assert [worker.pid] == [orphan.pid for orphan in sweep_orphans().ended]


def test_a_host_hidden_in_the_process_table_lives(
    directory: Path, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that exists, but not for the eyes of this process, is not taken for dead."""
    here = this_host()
    assert here is not None
    host_process, worker = start(None), start()
    host = attrs.evolve(here, pid=host_process.pid, start=process_start(host_process.pid))
    write(directory, host, row(worker))
    record_of = _procfs.process_record
    monkeypatch.setattr(_procfs, "process_record", lambda pid: None if pid == host.pid else record_of(pid))

    assert () == sweep_orphans().ended
    assert 1 == len(names(directory))


@pytest.mark.parametrize(
    ("field", "value", "old", "stays"),
    [
        ("boot", "another-boot", False, False),
        ("pidns", "1", False, True),
        ("pidns", "1", True, False),
    ],
    ids=["boot", "namespace", "old_namespace"],
)
@pytest.mark.parametrize("is_locked", [True, False])
def test_of_another_world(
    directory: Path, dead_host: HostId, start: Starter, field: str, value: str, old: bool, stays: bool, is_locked: bool
) -> None:
    """Of another boot or pid namespace nothing is ended; such files go when nobody holds them."""
    worker = start()
    path = write(directory, attrs.evolve(dead_host, **{field: value}), row(worker))
    if old:
        long_ago = time.time() - DROP_AFTER_S - 1
        os.utime(path, (long_ago, long_ago))
    with path.open() as file:
        if is_locked:
            fcntl.flock(file, fcntl.LOCK_EX)
        swept = sweep_orphans()

    assert ((), ()) == (swept.ended, swept.left)
    assert lives(worker)
    assert ([path.name] if stays or is_locked else []) == names(directory)


def test_a_dead_hosts_file_that_names_a_live_hosts_workers(directory: Path, dead_host: HostId, start: Starter) -> None:
    """Whatever a file says, the runs of live hosts are not touched."""
    here = this_host()
    assert here is not None
    worker = start()
    write(directory, here, row(worker))
    write(directory, dead_host, row(worker))

    swept = sweep_orphans()

    assert ((), ()) == (swept.ended, swept.left)
    assert lives(worker)


# Hostile content -------------------------------------------------------------------------------------

GOOD = f"+ {TOKEN} {{worker}} {{start}}\n"
HOSTILE = {
    "empty": "",
    "binary": "\x00\x01\x7f\n" * 100,
    "no_header": GOOD,
    "bad_row": "{header}\n" + GOOD + "hello\n",
    "blank_line": "{header}\n\n" + GOOD,
    "not_ascii": "{header}\n" + GOOD + "+ \u0663 1 1\n",
    "pid_1": "{header}\n" + GOOD + f"+ {RUN}-2 1 0\n",
    "pid_0": "{header}\n" + GOOD + f"+ {RUN}-2 0 0\n",
    "negative": "{header}\n" + GOOD + f"+ {RUN}-2 -1 5\n",
    "beyond_any_pid": "{header}\n" + GOOD + f"+ {RUN}-2 4194305 5\n",
    "enormous": "{header}\n" + GOOD + f"+ {RUN}-2 {'9' * 5000} 5\n",
    "token_of_nobody": "{header}\n" + GOOD + "+ - {worker} {start}\n",
    "empty_token": "{header}\n" + GOOD + "+  {worker} {start}\n",
    "host_pid_0": "snakepit 1 0 5 {boot} {pidns}\n" + GOOD,
    "host_without_start": "snakepit 1 {host} 0 {boot} {pidns}\n" + GOOD,
    "words_too_many": "{header} 1\n" + GOOD,
    "header_twice": "{header}\n{header}\n" + GOOD,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_file_is_set_aside(directory: Path, dead_host: HostId, start: Starter, name: str) -> None:
    """One line that is wrong spoils the file: nothing is ended, it gets another name, and is dropped when it is old."""
    worker = start()
    header = render(dead_host, {}).decode().strip()
    facts = {"header": header, "worker": worker.pid, "start": process_start(worker.pid), "host": dead_host.pid}
    path = directory / new_name()
    path.write_text(HOSTILE[name].format(**facts, boot=dead_host.boot, pidns=dead_host.pidns), encoding="utf-8")

    swept = sweep_orphans()
    aside = names(directory)
    sweep_orphans()
    again = names(directory)
    os.utime(directory / again[0], (1, 1))
    sweep_orphans()

    assert ((), ()) == (swept.ended, swept.left)
    assert lives(worker)
    assert [f"{path.name}.broken"] == aside == again
    assert [] == names(directory)


def test_rows_of_our_own_pids(directory: Path, dead_host: HostId) -> None:
    """Rows that name this process, its parent and its guardian, with their true start times, end nobody."""
    pids = (os.getpid(), os.getppid())
    rows = {f"{RUN}-{pid}": (pid, process_start(pid)) for pid in pids}
    write(directory, dead_host, rows=rows)

    assert () == sweep_orphans().ended
    assert [] == names(directory)


def test_a_file_without_end(directory: Path, dead_host: HostId, start: Starter) -> None:
    """A file beyond all reason is not read; one full of rows costs bounded memory, and what it says counts."""
    worker = start()
    huge = directory / new_name()
    with huge.open("wb") as file:
        file.write(render(dead_host, {TOKEN: (worker.pid, process_start(worker.pid))}))
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        unread = sweep_orphans()
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    full = write(directory, dead_host, rows={f"{RUN}-{number}": (4000000, 5) for number in range(60_000)})
    with full.open("a") as file:
        file.write(row(worker) + "\n")

    read = sweep_orphans()

    assert ((), 1) == (unread.ended, peak_bytes // (4 * MAX_BYTES) + 1)
    assert full.exists() is False
    assert [worker.pid] == [orphan.pid for orphan in read.ended]
    assert [f"{huge.name}.broken"] == names(directory)


def test_rows_beyond_the_limit_wait(
    directory: Path, dead_host: HostId, start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep considers so many rows; the files of the others stay for the next one."""
    workers = [start(f"{RUN}-{number}") for number in range(3)]
    for number, worker in enumerate(workers):
        write(directory, dead_host, row(worker, f"{RUN}-{number}"))
    monkeypatch.setattr(_orphans, "MAX_ROWS", 2)

    first, left, second = sweep_orphans(), len(names(directory)), sweep_orphans()

    assert [2, 1, 1] == [len(first.ended), left, len(second.ended)]
    assert [] == names(directory)


def test_a_torn_last_line(directory: Path, dead_host: HostId, start: Starter) -> None:
    """What the host was writing when it died does not spoil the rest."""
    worker = start()
    path = write(directory, dead_host, row(worker))
    with path.open("a") as file:
        file.write(f"+ {RUN}-2 12")

    assert [worker.pid] == [orphan.pid for orphan in sweep_orphans().ended]


def test_what_is_not_ours_is_left_alone(directory: Path, dead_host: HostId, start: Starter) -> None:
    """Other names, links, pipes, directories, files of others and of later versions stay as they are."""
    worker = start()
    (directory / "notes.txt").write_text("mine")
    elsewhere = write(directory.parent, dead_host, row(worker))
    (directory / new_name()).symlink_to(elsewhere)
    os.mkfifo(directory / new_name())
    (directory / new_name()).mkdir()
    (directory / new_name()).write_text(f"snakepit 2 something new\n{row(worker)}\n")
    before = names(directory)

    assert () == sweep_orphans().ended
    assert before == names(directory)
    assert lives(worker)


def test_a_file_in_the_making_is_left_alone(directory: Path, dead_host: HostId) -> None:
    """What a host is just writing stays; what one has left half-written goes when it is old."""
    fresh, old = write(directory, dead_host), write(directory, dead_host)
    for path in (fresh, old):
        path.rename(f"{path}.new")
    os.utime(f"{old}.new", (1, 1))

    sweep_orphans()

    assert [f"{fresh.name}.new"] == names(directory)


def test_the_process_table_of_another_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``/proc`` shows other pids than ours, no host is known and nothing is swept."""
    monkeypatch.setattr(_run_files.os, "getpid", lambda: 1)

    assert None is this_host()
    with pytest.raises(OSError, match="no process table"):
        sweep_orphans()
