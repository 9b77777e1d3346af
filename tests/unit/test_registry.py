"""The host's own file of the registry: what stands in it and when, and that it is never in the way."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import queue
import re
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from snakepit import SnakepitExecutor
from snakepit._supervision import custody as _custody
from snakepit._supervision import orphans as _orphans
from snakepit._supervision import procfs as _procfs
from snakepit._supervision import registry as _registry
from snakepit._supervision.procfs import process_start
from snakepit._supervision.registry import REGISTRY, Registry
from snakepit._supervision.reports import Exited, Spawned, SpawnFailed
from snakepit._supervision.run_files import (
    MAX_BYTES,
    Standing,
    directories,
    open_directory,
    read_files,
    this_host,
)
from snakepit._supervision.spawn import SpawnSpec
from snakepit._supervision.watchdog import Watchdog

WAIT_S = 15.0
RUN = "0123456789abcdef"
OTHER_RUN = "fedcba9876543210"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the registry's directory of this test, not yet made."""
    path = tmp_path / "registry"
    monkeypatch.setenv("SNAKEPIT_REGISTRY", str(path))
    return path


@pytest.fixture
def registry(directory: Path) -> Iterator[Registry]:
    """A registry apart from the host's own."""
    registry = Registry()
    yield registry
    for token in list(registry._rows):
        registry.strike(token)
    for run in list(registry._runs):
        registry.release(run)


def rows_of(directory: Path) -> dict[str, tuple[int, int] | None]:
    """Return what the one file in the directory says: {token: (pid, start), None while it is spawned}."""
    here = this_host()
    assert here is not None
    fd = open_directory(str(directory), make=False)
    try:
        [file] = read_files(fd, here)
    finally:
        os.close(fd)
    assert (Standing.LIVE, here) == (file.standing, file.host)
    return {**file.rows, **dict.fromkeys(file.spawning)}


def locked(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


# The file --------------------------------------------------------------------------------------------


def test_the_life_of_a_row(registry: Registry, directory: Path) -> None:
    """A row begins before the spawn, gets its process, and is struck off."""
    registry.acquire(RUN)

    seen = [rows_of(directory)]
    registry.begin(f"{RUN}-1")
    seen.append(rows_of(directory))
    registry.register(f"{RUN}-1", 1234, 77)
    seen.append(rows_of(directory))
    registry.strike(f"{RUN}-1")
    seen.append(rows_of(directory))

    assert [{}, {f"{RUN}-1": None}, {f"{RUN}-1": (1234, 77)}, {}] == seen


def test_the_file_is_private_and_locked_and_goes_with_the_last_pool(registry: Registry, directory: Path) -> None:
    """Directory 0700, file 0600, locked while a pool uses it, and removed after the last one."""
    registry.acquire(RUN)
    registry.acquire(OTHER_RUN)
    registry.acquire(RUN)
    path = registry.path
    assert path is not None

    modes = [stat.S_IMODE(os.stat(name).st_mode) for name in (directory, path)]
    was_locked = locked(path)
    registry.release(RUN)
    registry.release(RUN)
    kept = registry.path
    registry.release(OTHER_RUN)

    assert ([0o700, 0o600], True, path, None) == (modes, was_locked, kept, registry.path)
    assert [] == os.listdir(directory)


def test_a_file_with_workers_stays(registry: Registry, directory: Path) -> None:
    """When the last pool goes and a worker could not be ended, its row waits for a later host, and is not reused."""
    registry.acquire(RUN)
    registry.register(f"{RUN}-1", 1234, 77)

    registry.release(RUN)
    kept = rows_of(directory)
    registry.acquire(OTHER_RUN)
    registry.release(OTHER_RUN)

    assert {f"{RUN}-1": (1234, 77)} == kept == rows_of(directory)
    assert not locked(str(next(directory.iterdir())))


def test_a_long_log_is_written_anew(registry: Registry, directory: Path) -> None:
    """Thousands of workers later the file is small, says what is so, and is locked."""
    registry.acquire(RUN)
    registry.register(f"{RUN}-1", 1234, 77)
    for number in range(2, 5000):
        registry.begin(f"{RUN}-{number}")
        registry.register(f"{RUN}-{number}", 1234, 78)
        registry.strike(f"{RUN}-{number}")

    assert registry.path is not None
    assert {f"{RUN}-1": (1234, 77)} == rows_of(directory)
    assert os.path.getsize(registry.path) < 50 * (_registry.COMPACT_LINES + 10)
    assert locked(registry.path)


def test_a_descriptor_above_the_standard_ones(registry: Registry, directory: Path) -> None:
    """A host with a closed stdin does not read or write the registry by accident."""
    saved = os.dup(0)
    os.close(0)
    try:
        registry.acquire(RUN)
        assert registry._fd is not None
        number, inherited = registry._fd, os.get_inheritable(registry._fd)
    finally:
        os.dup2(saved, 0)
        os.close(saved)

    assert number > 2
    assert not inherited
    assert {} == rows_of(directory)


def test_a_forked_child_is_a_host_of_its_own(directory: Path) -> None:
    """The child closes its copy and knows no rows; the parent's file and its lock stay."""
    REGISTRY.acquire(RUN)
    REGISTRY.register(f"{RUN}-1", 1234, 77)
    fd, path = REGISTRY._fd, REGISTRY.path
    assert path is not None

    pid = os.fork()
    if pid == 0:
        link = f"/proc/self/fd/{fd}"
        is_open = os.path.exists(link) and os.readlink(link) == path
        os._exit(int(is_open or REGISTRY.path is not None or bool(REGISTRY._rows)))

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert {f"{RUN}-1": (1234, 77)} == rows_of(directory)
    assert locked(path)
    REGISTRY.strike(f"{RUN}-1")
    REGISTRY.release(RUN)
    assert [] == os.listdir(directory)


def test_the_first_pool_of_a_process_sweeps(registry: Registry, directory: Path, monkeypatch: Any) -> None:
    """Whatever the sweep raises, the pool starts; the second pool does not sweep again."""
    sweeps = []

    def fail() -> None:
        sweeps.append(1)
        raise RuntimeError("no sweep today")

    monkeypatch.setattr(_orphans, "sweep_orphans", fail)

    registry.acquire(RUN)
    registry.acquire(OTHER_RUN)

    assert [1] == sweeps
    assert {} == rows_of(directory)


# What cannot be written ------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", ["error", "torn"])
def test_what_could_not_be_written_is_written_later(
    registry: Registry, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    """A full disk is told once; when there is room again, the next change writes everything."""
    caplog.set_level(logging.WARNING, "snakepit.registry")
    registry.acquire(RUN)
    registry.register(f"{RUN}-1", 1234, 77)

    def write(fd: int, data: bytes) -> int:
        if failure == "error":
            raise OSError(errno.ENOSPC, "No space left on device")
        return really_write(fd, data[:9])

    really_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        registry.strike(f"{RUN}-1")
        registry.register(f"{RUN}-2", 1235, 78)
    unchanged = rows_of(directory)
    registry.begin(f"{RUN}-3")

    assert {f"{RUN}-1": (1234, 77)} == unchanged
    assert {f"{RUN}-2": (1235, 78), f"{RUN}-3": None} == rows_of(directory)
    assert 1 == len(caplog.records)


def link(path: Path) -> None:
    path.with_name("target").mkdir(mode=0o700)
    path.symlink_to(path.with_name("target"))


def dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def plain_file(path: Path) -> None:
    path.write_text("")


def open_to_others(path: Path) -> None:
    path.mkdir()
    path.chmod(0o750)


REFUSED: tuple[Callable[[Path], None], ...] = (link, dangling_link, plain_file, open_to_others)


@pytest.mark.parametrize("make", REFUSED)
@pytest.mark.parametrize("slash", ["", "/"], ids=["plain", "slash"])
def test_a_directory_that_cannot_be_trusted_is_not_used(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Path], None],
    slash: str,
) -> None:
    """A link, a file, a directory open to others: one warning, nothing is written there, and pools work."""
    caplog.set_level(logging.WARNING, "snakepit.registry")
    make(directory)
    before = sorted(directory.parent.rglob("*"))
    monkeypatch.setenv("SNAKEPIT_REGISTRY", f"{directory}{slash}")
    registry = Registry()

    registry.acquire(RUN)
    registry.register(f"{RUN}-1", 1234, 77)
    path = registry.path
    registry.strike(f"{RUN}-1")
    registry.release(RUN)

    assert None is path
    assert before == sorted(directory.parent.rglob("*"))
    assert 1 == len(caplog.records)
    assert str(directory) in caplog.text


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EMFILE])
def test_a_directory_without_write_access(
    registry: Registry,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
) -> None:
    """Where no file can be made, the pools work, one warning says so, and no descriptor is left."""
    caplog.set_level(logging.WARNING, "snakepit.registry")
    really_open = os.open

    def refuse(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), path)
        return really_open(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)

    registry.acquire(RUN)
    registry.register(f"{RUN}-1", 1234, 77)

    assert None is registry.path
    assert [] == os.listdir(directory)
    assert 1 == len(caplog.records)


def test_somebody_elses_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of another user is refused."""
    directory.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    with pytest.raises(PermissionError, match="belongs to somebody else"):
        open_directory(str(directory), make=False)


def test_the_registry_can_be_switched_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """An empty variable means no registry, without a warning."""
    caplog.set_level(logging.DEBUG, "snakepit.registry")
    monkeypatch.setenv("SNAKEPIT_REGISTRY", "")
    registry = Registry()

    registry.acquire(RUN)
    registry.begin(f"{RUN}-1")

    assert (None, []) == (registry.path, caplog.records)
    registry.release(RUN)


def test_where_the_files_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The variable alone counts; else the user's runtime directory, if it is private and ours; and a temporary one."""
    monkeypatch.setattr("tempfile.tempdir", "/scratch")
    temporary = f"/scratch/snakepit-{os.geteuid()}"
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    chosen = directories()

    monkeypatch.delenv("SNAKEPIT_REGISTRY")
    ours = directories()
    tmp_path.chmod(0o755)
    open_to_others = directories()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run/user")
    relative = directories()

    assert [os.environ.get("SNAKEPIT_REGISTRY"), 1] == [None, len(chosen)]
    assert [f"{tmp_path}/snakepit", temporary] == ours
    assert [temporary] == open_to_others == relative


def test_without_a_process_table_there_is_no_registry(
    registry: Registry, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing could be verified later, or the table is that of other pids, nothing is written, silently."""
    monkeypatch.setattr(_procfs, "PROC", "/nonexistent")

    registry.acquire(RUN)
    registry.begin(f"{RUN}-1")

    assert (None, []) == (registry.path, caplog.records)
    assert not directory.exists()


# At work ---------------------------------------------------------------------------------------------


class Pool:
    """A watchdog that notes, at each event, what the registry says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.events: queue.SimpleQueue[tuple[object, dict[str, tuple[int, int] | None]]] = queue.SimpleQueue()
        self.watchdog = Watchdog("test", self.post, kill_grace_s=0.2, stderr_tail_bytes=100)
        self.watchdog.start()

    def post(self, event: object) -> None:
        self.events.put((event, rows_of(self.directory)))
        if isinstance(event, Spawned):
            for fd in attrs.astuple(event)[2:]:
                if fd is not None:
                    os.close(fd)

    def next(self) -> tuple[object, dict[str, tuple[int, int] | None]]:
        return self.events.get(timeout=WAIT_S)


@pytest.fixture
def pool(directory: Path) -> Iterator[Pool]:
    """A pool's watchdog."""
    pool = Pool(directory)
    yield pool
    pool.watchdog.stop()
    assert pool.watchdog.join(WAIT_S)


def test_a_row_is_there_before_the_use_and_until_the_reap(
    pool: Pool, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is in the file when its spawn is told, when what it left is looked for, and no longer at its exit."""
    at_the_end = []
    kill_left = _custody.kill_left

    def looking(exited: Any) -> Any:
        at_the_end.append(rows_of(directory))
        return kill_left(exited)

    monkeypatch.setattr(_custody, "kill_left", looking)

    pool.watchdog.spawn("w1", SpawnSpec(("sleep", "60"), dict(os.environ), level=0))
    spawned, at_spawn = pool.next()
    assert isinstance(spawned, Spawned)
    start = process_start(spawned.pid)
    pool.watchdog.kill("w1")
    exited, at_exit = pool.next()

    [(token, row)] = at_spawn.items()
    assert isinstance(exited, Exited)
    assert (spawned.pid, start) == row
    assert re.fullmatch(r"[0-9a-f]{16}-1", token)
    assert at_spawn == at_the_end[0] == at_the_end[-1]
    assert {} == at_exit


def test_a_spawn_is_announced_before_it_begins(pool: Pool, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file names the token while the process is made, and forgets it when there is none."""
    during = []

    def refuse(spec: SpawnSpec) -> Any:
        during.append((spec.env["SNAKEPIT_RUN"], rows_of(directory)))
        raise OSError(errno.EAGAIN, "no process to be had")

    monkeypatch.setattr(pool.watchdog._custody, "_spawner", refuse)

    pool.watchdog.spawn("w1", SpawnSpec(("sleep", "60"), dict(os.environ), level=0))
    failed, after = pool.next()

    [(token, rows)] = during
    assert isinstance(failed, SpawnFailed)
    assert {token: None} == rows
    assert {} == after


def test_nothing_remains_after_many_pools(directory: Path) -> None:
    """While pools live there is one file, and none after the last; so it is each time."""
    seen = []

    for _ in range(5):
        with SnakepitExecutor(1) as one, SnakepitExecutor(1) as two:
            pids = {one.submit(os.getpid).result(WAIT_S), two.submit(os.getpid).result(WAIT_S)}
            rows = rows_of(directory)
            seen.append(pids == {row[0] for row in rows.values() if row is not None})
        seen.append([] == os.listdir(directory))

    assert [True] * 10 == seen


def test_watchdogs_write_at_the_same_time(registry: Registry, directory: Path) -> None:
    """Rows of several threads do not mix."""
    registry.acquire(RUN)

    def write(first: int) -> None:
        for number in range(first, first + 500):
            registry.begin(f"{RUN}-{number}")
            registry.register(f"{RUN}-{number}", 1234, number)
            if number % 2:
                registry.strike(f"{RUN}-{number}")

    threads = [threading.Thread(target=write, args=(1000 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    expected = {f"{RUN}-{1000 * i + n}": (1234, 1000 * i + n) for i in range(4) for n in range(0, 500, 2)}
    assert expected == rows_of(directory)
    assert registry.path is not None
    assert os.path.getsize(registry.path) < MAX_BYTES
