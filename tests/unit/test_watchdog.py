"""The watchdog: every process it starts ends when it should, with everything that process left behind."""

from __future__ import annotations

import errno
import logging
import math
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest

from snakepit._supervision import process as _process
from snakepit._supervision import procfs as _procfs
from snakepit._supervision import spawn as _spawn
from snakepit._supervision import stderr as _stderr
from snakepit._supervision import ward as _ward
from snakepit._supervision.guardian import GUARDIAN
from snakepit._supervision.process import ChildProcess
from snakepit._supervision.procfs import process_record
from snakepit._supervision.reports import Exited, RssMeasured, Spawned, SpawnFailed, WatchdogFailed
from snakepit._supervision.spawn import SpawnSpec, find_setpriv, start_process
from snakepit._supervision.watchdog import Watchdog

from leaks import wait_until

WAIT_S = 15.0
ROOT = str(Path(__file__).parents[2])
E = TypeVar("E")


def sh(script: str, **changes: Any) -> SpawnSpec:
    return attrs.evolve(SpawnSpec(("sh", "-c", script), dict(os.environ), level=0), **changes)


class Pool:
    """A watchdog, its events, and the descriptors it handed over."""

    def __init__(self, **options: Any) -> None:
        self.events: queue.SimpleQueue[object] = queue.SimpleQueue()
        options = {"kill_grace_s": 0.2, "stderr_tail_bytes": 4096, "post": self.events.put, **options}
        self.watchdog = Watchdog("test", **options)
        self.watchdog.start()
        self.live: dict[str, Spawned] = {}

    def next(self, kind: type[E]) -> E:
        event = self.events.get(timeout=WAIT_S)
        assert isinstance(event, kind), event
        if isinstance(event, Spawned):
            self.live[event.worker_id] = event
        elif isinstance(event, Exited):
            spawned = self.live.pop(event.worker_id)
            for fd in attrs.astuple(spawned)[2:]:
                if fd is not None:
                    os.close(fd)
        return event

    def spawn(self, worker_id: str, spec: Any) -> Spawned:
        self.watchdog.spawn(worker_id, spec)
        return self.next(Spawned)

    def line(self, worker_id: str) -> str:
        """The next line (or lines, if they came at once) that the worker wrote to its reply pipe."""
        fd = self.live[worker_id].reply_fd
        assert select.select([fd], [], [], WAIT_S)[0], "nothing was written"
        return os.read(fd, 4096).decode().strip()

    def close(self) -> None:
        for worker_id in self.live:
            self.watchdog.kill(worker_id)
        self.watchdog.stop()
        ended = self.watchdog.join(WAIT_S)
        while self.live:
            self.events_until_exit()
        assert ended, "the watchdog did not end"

    def events_until_exit(self) -> None:
        event = self.events.get(timeout=WAIT_S)
        if isinstance(event, Exited):
            for fd in attrs.astuple(self.live.pop(event.worker_id))[2:]:
                if fd is not None:
                    os.close(fd)


@pytest.fixture
def make_pool() -> Iterator[Callable[..., Pool]]:
    """Return a function that starts a watchdog; all are ended after the test."""
    pools = []

    def make(**options: Any) -> Pool:
        pools.append(Pool(**options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(make_pool: Callable[..., Pool]) -> Pool:
    """A pool's watchdog with a kill grace of 0.2 s."""
    return make_pool()


def is_running(pid: int) -> bool:
    record = process_record(pid)
    return record is not None and not record.ended


# Exits -----------------------------------------------------------------------------------------------


def test_an_exit_is_reported_with_status_and_stderr(pool: Pool) -> None:
    """Exit code, escaped stderr tail and uptime of a worker that ends by itself."""
    spawned = pool.spawn("w1", sh("printf 'bad\\033 news\\n' >&2; exit 3"))

    exited = pool.next(Exited)

    expected = Exited("w1", spawned.pid, 3, None, "bad\\x1b news\n", False, exited.uptime_s)
    assert expected == exited
    assert 0 < exited.uptime_s < WAIT_S
    assert None is process_record(spawned.pid)


def test_a_death_by_signal_is_reported(pool: Pool) -> None:
    """A worker that a stranger kills has that signal, and was not expected to end."""
    spawned = pool.spawn("w1", sh("echo ready; exec sleep 60"))
    pool.line("w1")

    os.kill(spawned.pid, signal.SIGSEGV)

    exited = pool.next(Exited)
    assert (None, signal.SIGSEGV, False) == (exited.code, exited.signal, exited.expected)


def test_condemned_politely(pool: Pool) -> None:
    """A worker that ends by itself within the grace gets no signal."""
    spawned = pool.spawn("w1", sh("cat; exit 7"))

    pool.watchdog.condemn("w1", grace_s=WAIT_S)
    os.close(spawned.request_fd)
    pool.live["w1"] = attrs.evolve(spawned, request_fd=None)

    exited = pool.next(Exited)
    assert (7, False) == (exited.code, exited.expected)


def test_condemned_without_grace_gets_term(pool: Pool) -> None:
    """With no grace TERM comes at once, and the exit is an expected one."""
    pool.spawn("w1", sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"))
    pool.line("w1")

    pool.watchdog.condemn("w1", grace_s=0)

    exited = pool.next(Exited)
    assert (5, True) == (exited.code, exited.expected)


def test_term_ignored_then_kill(pool: Pool) -> None:
    """A worker that ignores TERM gets KILL after the kill grace, not before."""
    pool.spawn("w1", sh("trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    pool.line("w1")
    started = time.monotonic()

    pool.watchdog.condemn("w1", grace_s=0.1)

    exited = pool.next(Exited)
    assert (signal.SIGKILL, True) == (exited.signal, exited.expected)
    assert time.monotonic() - started >= 0.3


def test_a_stopped_worker_can_act_on_term(make_pool: Callable[..., Pool]) -> None:
    """TERM is followed by CONT, so that a stopped worker's own handler can run."""
    pool = make_pool(kill_grace_s=3600)
    spawned = pool.spawn("w1", sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"))
    pool.line("w1")
    os.kill(spawned.pid, signal.SIGSTOP)

    pool.watchdog.condemn("w1", grace_s=0)

    assert 5 == pool.next(Exited).code


def test_condemning_again_only_shortens(pool: Pool) -> None:
    """A second condemnation brings the end forward and never puts it off."""
    pool.spawn("w1", sh("exec sleep 60"))

    pool.watchdog.condemn("w1", grace_s=3600)
    pool.watchdog.condemn("w1", grace_s=0)
    pool.watchdog.condemn("w1", grace_s=3600)

    assert signal.SIGTERM == pool.next(Exited).signal


@pytest.mark.parametrize("grace_s", [3600.0, 30 * 86400.0, math.inf])
def test_kill_is_at_once(make_pool: Callable[..., Pool], grace_s: float) -> None:
    """kill sends KILL without TERM, also after a condemnation, however long that was to take."""
    pool = make_pool(kill_grace_s=grace_s)
    pool.spawn("w1", sh("trap 'echo TERM' TERM; echo ready; while :; do sleep 0.01; done"))
    pool.line("w1")
    pool.watchdog.condemn("w1", grace_s=0)
    assert "TERM" == pool.line("w1")

    pool.watchdog.kill("w1")

    assert signal.SIGKILL == pool.next(Exited).signal


def test_unknown_workers_are_ignored(pool: Pool) -> None:
    """Ending a worker that is gone does nothing."""
    pool.watchdog.condemn("nobody", grace_s=0)
    pool.watchdog.kill("nobody")

    pool.spawn("w1", sh("exit 0"))

    assert 0 == pool.next(Exited).code


def test_sixteen_stubborn_workers_take_one_grace(pool: Pool) -> None:
    """Workers that ignore TERM share their deadlines."""
    names = [f"w{number}" for number in range(16)]
    for name in names:
        pool.spawn(name, sh("trap '' TERM; echo ready; while :; do sleep 1; done"))
    for name in names:
        pool.line(name)
    started = time.monotonic()

    for name in names:
        pool.watchdog.condemn(name, grace_s=0)
    signals = [pool.next(Exited).signal for _ in names]

    assert [signal.SIGKILL] * 16 == signals
    assert time.monotonic() - started < 0.2 * 8


def test_reaped_by_somebody_else(pool: Pool) -> None:
    """A worker that other code reaped has an unknown status, and its pid gets no signal."""
    sent = []
    spawned = pool.spawn("w1", sh("read line; exit 0"))
    real_killpg = os.killpg

    def killpg(pgid: int, number: int) -> None:
        sent.append((pgid, number))
        real_killpg(pgid, number)

    with pytest.MonkeyPatch.context() as patch:
        # The wait is entered before the exit, so that it wins against the watchdog's.
        patch.setattr(os, "killpg", killpg)
        patch.setattr(ChildProcess, "exited", _reap_first(ChildProcess.exited))
        os.write(spawned.request_fd, b"\n")
        exited = pool.next(Exited)
        pool.watchdog.kill("w1")
        pool.spawn("w2", sh("exit 0"))
        pool.next(Exited)

    assert (None, None) == (exited.code, exited.signal)
    assert spawned.pid not in [pgid for pgid, _ in sent]


def _reap_first(exited: Callable[[ChildProcess], bool]) -> Callable[[ChildProcess], bool]:
    def stolen(child: ChildProcess) -> bool:
        if not child.reaped:
            os.waitpid(child.pid, 0)
        return exited(child)

    return stolen


# Descendants -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["", "setsid "])
@pytest.mark.parametrize("end", ["exit", "kill"])
def test_a_grandchild_does_not_outlive_its_worker(pool: Pool, how: str, end: str) -> None:
    """A grandchild, in the group or in a session of its own, is gone when the exit is reported."""
    pool.spawn("w1", sh(f"{how}sleep 60 & echo $!; read line"))
    grandchild = int(pool.line("w1"))
    wait_until(lambda: is_running(grandchild), WAIT_S, "the grandchild")

    if end == "exit":
        os.write(pool.live["w1"].request_fd, b"\n")
    else:
        pool.watchdog.kill("w1")

    exited = pool.next(Exited)
    assert () == exited.survivors
    assert not is_running(grandchild)


def test_an_escaped_grandchild_of_another_worker_is_spared(pool: Pool) -> None:
    """The sweep after one worker's exit touches no other worker's descendants."""
    pool.spawn("w1", sh("setsid sleep 60 & echo $!; read line"))
    other = int(pool.line("w1"))
    pool.spawn("w2", sh("exit 0"))

    pool.next(Exited)

    assert is_running(other)


def test_a_grandchild_that_holds_the_pipes_delays_nothing(pool: Pool) -> None:
    """The exit is reported although a descendant keeps stdout and stderr open, and writes to them."""
    noise = "(while :; do echo noise >&2; done) & setsid sleep 60 &"
    pool.spawn("w1", sh(f"{noise} echo ready; read line; exit 9"))
    pool.line("w1")
    started = time.monotonic()

    os.write(pool.live["w1"].request_fd, b"\n")

    assert 9 == pool.next(Exited).code
    assert time.monotonic() - started < 3


def test_survivors_are_reported(
    make_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that SIGKILL does not end is reported after a bound, and the watchdog can stop."""
    monkeypatch.setattr(_ward, "KILL_LIMIT_S", 0.1)

    def unkillable(spec: SpawnSpec) -> ChildProcess:
        child = start_process(spec)
        child.signal_group = lambda number: True  # type: ignore[method-assign]
        return child

    pool = make_pool(spawner=unkillable)
    spawned = pool.spawn("w1", sh("exec sleep 60"))
    pool.watchdog.kill("w1")

    exited = pool.next(Exited)

    assert ((spawned.pid,), None, True) == (exited.survivors, exited.signal, exited.expected)
    assert "outlived SIGKILL" in caplog.text
    pool.close()
    # What the watchdog could not end was left to the guardian.
    wait_until(lambda: _process.reap_abandoned() or not _process._abandoned, WAIT_S, "the late reaping")
    assert None is process_record(spawned.pid)


# Fallbacks -------------------------------------------------------------------------------------------


def test_without_pidfds(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no pidfds, exits are found by looking."""
    monkeypatch.setattr(_spawn, "USE_PIDFD", False)
    pool.spawn("w1", sh("sleep 60 & echo $!; read line; exit 4"))
    grandchild = int(pool.line("w1"))

    os.write(pool.live["w1"].request_fd, b"\n")

    assert 4 == pool.next(Exited).code
    assert not is_running(grandchild)


def test_without_proc(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc, the group is still ended and the exit reported; psutil measures."""
    pool.spawn("w0", sh("exit 0"))  # and with it the guardian, which is told when its host started
    pool.next(Exited)
    monkeypatch.setattr(_procfs, "PROC", "/nonexistent")
    pool.spawn("w1", sh("sleep 60 & echo $!; exec sleep 60"))
    grandchild = int(pool.line("w1"))
    pool.watchdog.set_rss_probe(0.01)
    measured = pool.next(RssMeasured)
    pool.watchdog.set_rss_probe(None)
    os.kill(pool.live["w1"].pid, signal.SIGKILL)

    while isinstance(event := pool.events.get(timeout=WAIT_S), RssMeasured):
        pass

    assert isinstance(event, Exited)
    assert signal.SIGKILL == event.signal
    assert measured.rss_bytes > 0
    pool.events.put(event)
    pool.next(Exited)
    monkeypatch.undo()
    assert not is_running(grandchild)


# Spawning --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
def test_a_failed_spawn_is_an_event(make_pool: Callable[..., Pool], number: int) -> None:
    """An error of the system is told with its reason, and the next spawn works."""
    failures = [OSError(number, os.strerror(number))]

    def spawner(spec: SpawnSpec) -> ChildProcess:
        if failures:
            raise failures.pop()
        return start_process(spec)

    pool = make_pool(spawner=spawner)
    pool.watchdog.spawn("w1", sh("exit 0"))

    failed = pool.next(SpawnFailed)

    assert isinstance(failed.error, OSError)
    assert ("w1", number) == (failed.worker_id, failed.error.errno)
    pool.spawn("w2", sh("exit 0"))
    assert 0 == pool.next(Exited).code


def test_a_factory_runs_on_the_watchdogs_thread(pool: Pool) -> None:
    """The factory is called there, and its release after the spawn, also after a failed one."""
    calls: list[str] = []

    def factory(program: str) -> Callable[[], tuple[SpawnSpec, Callable[[], None]]]:
        def make() -> tuple[SpawnSpec, Callable[[], None]]:
            calls.append(threading.current_thread().name)
            return SpawnSpec((program,), dict(os.environ)), lambda: calls.append("released")

        return make

    pool.spawn("w1", factory("true"))
    pool.next(Exited)
    pool.watchdog.spawn("w2", factory("no-such-program-here"))
    pool.next(SpawnFailed)

    assert ["snakepit-test-watchdog", "released"] * 2 == calls


def test_a_raising_factory_is_a_failed_spawn(pool: Pool) -> None:
    """What a factory raises is told as the reason."""

    def factory() -> tuple[SpawnSpec, Callable[[], None]]:
        raise LookupError("no such handler file")

    pool.watchdog.spawn("w1", factory)

    assert isinstance(pool.next(SpawnFailed).error, LookupError)


def test_no_guardian_no_worker(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the guardian cannot be started, the spawn fails with that reason."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")

    pool.watchdog.spawn("w1", sh("exit 0"))

    assert isinstance(pool.next(SpawnFailed).error, FileNotFoundError)


def test_an_unguarded_worker_does_not_stay(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a process cannot be registered, it is ended and the spawn has failed."""
    pids = []

    def register(pid: int, start: int) -> None:
        pids.append(pid)
        raise OSError(errno.EAGAIN, "injected")

    monkeypatch.setattr(GUARDIAN, "register", register)

    pool.watchdog.spawn("w1", sh("exec sleep 60"))

    failed = pool.next(SpawnFailed)
    assert isinstance(failed.error, OSError)
    assert errno.EAGAIN == failed.error.errno
    assert None is process_record(pids[0])


def test_spawning_after_the_end_fails(pool: Pool) -> None:
    """A watchdog that has ended refuses."""
    pool.watchdog.stop()
    assert pool.watchdog.join(WAIT_S)

    pool.watchdog.spawn("w1", sh("exit 0"))

    assert isinstance(pool.next(SpawnFailed).error, RuntimeError)


def test_a_watchdog_that_was_not_started_refuses() -> None:
    """Before its start a watchdog starts no process and takes no descriptor."""
    events: list[object] = []
    watchdog = Watchdog("test", events.append, kill_grace_s=1, stderr_tail_bytes=10)

    watchdog.spawn("w1", sh("exit 0"))

    (failed,) = events
    assert isinstance(failed, SpawnFailed)
    assert isinstance(failed.error, RuntimeError)
    assert watchdog.join(0)


def test_a_watchdog_starts_once(pool: Pool) -> None:
    """A second start is an error of the caller's."""
    with pytest.raises(RuntimeError, match="started before"):
        pool.watchdog.start()


def test_a_thread_that_cannot_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system has no thread, start raises."""

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    watchdog = Watchdog("test", lambda event: None, kill_grace_s=1, stderr_tail_bytes=10)

    with pytest.raises(RuntimeError, match="new thread"):
        watchdog.start()

    assert watchdog.join(0)


# stderr ----------------------------------------------------------------------------------------------


def test_a_flood_is_drained(pool: Pool) -> None:
    """20 MB of stderr pass, only the tail is kept."""
    script = "head -c 20000000 /dev/zero | tr '\\0' x >&2; echo >&2; echo end >&2"
    pool.spawn("w1", sh(script))

    exited = pool.next(Exited)

    assert 0 == exited.code
    assert 4096 == len(exited.stderr_tail)
    assert exited.stderr_tail.endswith("x\nend\n")


def test_a_flood_starves_no_other_duty(pool: Pool) -> None:
    """While one worker floods stderr, another is ended in time."""
    pool.spawn("flood", sh("exec yes >&2"))
    pool.spawn("w1", sh("trap '' TERM; echo ready; while :; do sleep 0.01; done"))
    pool.line("w1")
    started = time.monotonic()

    pool.watchdog.condemn("w1", grace_s=0)

    assert "w1" == pool.next(Exited).worker_id
    assert time.monotonic() - started < 3


def test_lines_are_logged(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """Each line of a worker with output="log" goes to the logger with the worker's id."""
    caplog.set_level(logging.INFO, "snakepit.worker")
    pool.spawn("w1", sh("echo one; echo two >&2", level=1))

    pool.next(Exited)

    assert ["[w1] one", "[w1] two"] == caplog.messages


def test_inherited_stderr_is_passed_on(pool: Pool, capfd: pytest.CaptureFixture[str]) -> None:
    """With output="inherit" stderr appears on the host's, and the tail is kept all the same."""
    pool.spawn("w1", sh("printf 'a\\033b\\n' >&2", output="inherit"))

    exited = pool.next(Exited)
    pool.watchdog.stop()
    pool.watchdog.join(WAIT_S)

    assert "a\x1bb\n" == capfd.readouterr().err
    assert "a\\x1bb\n" == exited.stderr_tail


def test_a_stuck_host_stderr_stops_no_duty_and_loses_nothing(pool: Pool) -> None:
    """While nobody reads the host's stderr, workers are ended in time; later everything arrives."""
    read, write = os.pipe()
    saved = os.dup(2)
    os.dup2(write, 2)
    os.close(write)
    try:
        pool.spawn("flood", sh("head -c 3000000 /dev/zero >&2; echo ready; read line", output="inherit"))
        pool.spawn("w1", sh("echo ready; exec sleep 60"))
        pool.line("w1")

        pool.watchdog.condemn("w1", grace_s=0)

        assert signal.SIGTERM == pool.next(Exited).signal
        held = pool.watchdog._custody.stderr.held
        wait_until(lambda: len(held) > _stderr.HELD_LIMIT_BYTES, WAIT_S, "the pause")
        for number in range(5):
            pool.spawn(f"turn {number}", sh("exit 0"))
            pool.next(Exited)
        assert len(held) <= _stderr.HELD_LIMIT_BYTES + _stderr.READ_BYTES
        count = 0
        while count < 3_000_000:
            assert select.select([read], [], [], WAIT_S)[0], f"only {count} bytes arrived"
            count += len(os.read(read, 1 << 16))
        assert "ready" == pool.line("flood")
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(read)
    pool.watchdog.kill("flood")
    pool.next(Exited)
    assert 3_000_000 == count


def test_a_broken_host_stderr_is_ignored(pool: Pool) -> None:
    """When nobody will ever read the host's stderr, a worker's output is dropped and it goes on."""
    read, write = os.pipe()
    saved = os.dup(2)
    os.dup2(write, 2)
    os.close(write)
    os.close(read)
    try:
        pool.spawn("w1", sh("head -c 3000000 /dev/zero >&2", output="inherit"))

        exited = pool.next(Exited)
    finally:
        os.dup2(saved, 2)
        os.close(saved)

    assert 0 == exited.code


# The guardian ----------------------------------------------------------------------------------------


def test_a_killed_guardian_is_replaced(pool: Pool) -> None:
    """The watchdog replaces a dead guardian at once, and the replacement knows the workers."""
    pool.spawn("w1", sh("echo ready; exec sleep 60"))
    first = GUARDIAN.pid
    assert first is not None

    os.kill(first, signal.SIGKILL)

    wait_until(lambda: GUARDIAN.pid not in (None, first), WAIT_S, "the replacement")
    assert [pool.live["w1"].pid] == list(GUARDIAN._groups)
    second = GUARDIAN.pid
    assert second is not None
    os.kill(second, signal.SIGKILL)
    wait_until(lambda: GUARDIAN.pid not in (None, second), WAIT_S, "the second replacement")


def test_the_guardian_leaves_with_the_last_pool(make_pool: Callable[..., Pool]) -> None:
    """Two pools share a guardian; it is gone when both have ended."""
    first, second = make_pool(), make_pool()
    assert None is GUARDIAN.pid
    first.spawn("w1", sh("exec sleep 60"))
    second.spawn("w1", sh("exec sleep 60"))
    pid = GUARDIAN.pid
    assert pid is not None

    first.close()
    shared = GUARDIAN.pid
    second.close()

    assert pid == shared
    assert None is GUARDIAN.pid
    assert None is process_record(pid)


HOST = """
import os, queue, signal, subprocess, sys
sys.path.insert(0, sys.argv[1])
from snakepit._supervision import spawn as _spawn
from snakepit._supervision.reports import Spawned
from snakepit._supervision.spawn import SpawnSpec
from snakepit._supervision.watchdog import Watchdog
if "no-parent-death-signal" in sys.argv:
    _spawn.find_setpriv = lambda: None
events = queue.SimpleQueue()
watchdog = Watchdog("host", events.put, kill_grace_s=1, stderr_tail_bytes=10)
watchdog.start()
pids, fds = [], []
def spawn(*argv, lines=0):
    watchdog.spawn(str(len(pids)), SpawnSpec(argv, dict(os.environ), level=0))
    event = events.get(timeout=10)
    assert isinstance(event, Spawned), event
    pids.append(event.pid)
    os.set_blocking(event.reply_fd, True)
    with os.fdopen(event.reply_fd, closefd=False) as replies:
        pids.extend(int(replies.readline()) for _ in range(lines))
    return event.pid
spawn(sys.executable, "-c", "sum(range(10**13))")
os.kill(spawn("sh", "-c", "echo $$; exec sleep 1000", lines=1), signal.SIGSTOP)
pids.pop()
spawn("sh", "-c", "sleep 1000 & echo $!; setsid sleep 1000 & echo $!; wait", lines=2)
if "forked-sibling" in sys.argv and os.fork() == 0:
    os.read(0, 1)
    os._exit(0)
from snakepit._supervision.guardian import GUARDIAN
if "leaked-lifeline" in sys.argv:
    subprocess.Popen(["cat"], stdout=subprocess.DEVNULL, pass_fds=(GUARDIAN._helper.lifeline.fileno(),))
print(GUARDIAN.pid, *pids, flush=True)
if "exit" in sys.argv:
    os._exit(3)
signal.pause()
"""


@pytest.mark.parametrize(
    "options",
    [(), ("forked-sibling",), ("leaked-lifeline",), ("no-parent-death-signal",), ("exit",)],
    ids=["plain", "forked sibling", "leaked lifeline", "guardian alone", "os._exit"],
)
def test_a_killed_host_leaves_nothing(options: tuple[str, ...]) -> None:
    """2 s after the host's end no busy, stopped or escaped worker is left, no descendant and no guardian."""
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, ROOT, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert host.stdout is not None
    assert host.stdin is not None
    pids = [int(word) for word in host.stdout.readline().split()]
    assert 6 == len(pids)
    pidfds = []
    for pid in pids:
        try:
            pidfds.append(os.pidfd_open(pid))
        except ProcessLookupError:
            assert options == ("exit",), f"{pid} ended early"

    host.kill()
    host.wait(WAIT_S)
    deadline = time.monotonic() + 2
    gone = [bool(select.select([fd], [], [], max(0, deadline - time.monotonic()))[0]) for fd in pidfds]

    for fd in pidfds:
        os.close(fd)
    with host:
        host.stdin.close()
    assert [True] * len(pidfds) == gone


def test_the_parent_death_signal_is_a_second_line() -> None:
    """With the guardian stopped, a killed host's workers end all the same; the guardian does the rest."""
    if find_setpriv() is None:
        return  # this system has only the first line
    host = subprocess.Popen([sys.executable, "-c", HOST, ROOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert host.stdout is not None
    guardian, busy, stopped, parent, grandchild, escaped = (int(n) for n in host.stdout.readline().split())
    pidfds = {pid: os.pidfd_open(pid) for pid in (guardian, busy, stopped, parent, grandchild, escaped)}

    def ended(*pids: int) -> bool:
        return all(select.select([pidfds[pid]], [], [], WAIT_S)[0] for pid in pids)

    os.kill(guardian, signal.SIGSTOP)
    with host:
        host.kill()
    leaders_ended = ended(busy, stopped, parent)
    os.kill(guardian, signal.SIGCONT)

    assert leaders_ended
    assert ended(grandchild, escaped, guardian)
    for fd in pidfds.values():
        os.close(fd)


# The watchdog itself ---------------------------------------------------------------------------------


def test_a_failed_watchdog_ends_its_processes(
    make_pool: Callable[..., Pool], caplog: pytest.LogCaptureFixture
) -> None:
    """When the loop raises, that is told, every process is ended and reported, and the thread ends."""
    clock_works = [True]

    def clock() -> float:
        if not clock_works[0] and threading.current_thread().name == "snakepit-test-watchdog":
            clock_works[0] = True
            raise ZeroDivisionError("injected")
        return time.monotonic()

    pool = make_pool(clock=clock)
    pool.spawn("w1", sh("trap '' TERM; sleep 60 & echo $!; wait"))
    grandchild = int(pool.line("w1"))
    pool.spawn("w2", sh("echo ready; exec sleep 60"))

    clock_works[0] = False
    pool.watchdog.condemn("nobody", grace_s=0)

    assert isinstance(pool.next(WatchdogFailed).error, ZeroDivisionError)
    assert [signal.SIGKILL] * 2 == [pool.next(Exited).signal for _ in range(2)]
    assert pool.watchdog.join(WAIT_S)
    wait_until(lambda: not is_running(grandchild), WAIT_S, "the grandchild's end")
    assert None is GUARDIAN.pid
    assert "watchdog of pool 'test' failed" in caplog.text


def test_a_receiver_that_raises_does_not_leave_processes(make_pool: Callable[..., Pool]) -> None:
    """When posting itself fails, the processes are ended all the same."""
    spawned: queue.SimpleQueue[object] = queue.SimpleQueue()

    def post(event: object) -> None:
        if not isinstance(event, Spawned):
            raise ZeroDivisionError("injected")
        spawned.put(event)

    pool = make_pool(post=post)
    pids = []
    for name in ("w1", "w2"):
        pool.watchdog.spawn(name, sh("exec sleep 60"))
        event = spawned.get(timeout=WAIT_S)
        assert isinstance(event, Spawned)
        pids.append(event.pid)
        os.close(event.request_fd)
        os.close(event.reply_fd)

    pool.watchdog.kill("w1")

    assert pool.watchdog.join(WAIT_S)
    assert [None, None] == [process_record(pid) for pid in pids]


def test_lateness_is_told(make_pool: Callable[..., Pool], caplog: pytest.LogCaptureFixture) -> None:
    """An action that is done more than a second late is explained in the log, and the grace still holds."""
    offset_s = [0.0]
    pool = make_pool(clock=lambda: time.monotonic() + offset_s[0], kill_grace_s=5)
    pool.spawn("w1", sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done"))
    pool.line("w1")
    pool.watchdog.condemn("w1", grace_s=30)

    offset_s[0] = 40
    pool.watchdog.set_rss_probe(None)

    assert 5 == pool.next(Exited).code
    assert "starved: an action was done 1" in caplog.text


def test_resident_memory_is_measured(pool: Pool) -> None:
    """The probe posts the memory of the worker's whole group."""
    block = "x = bytearray(30_000_000); print('ready', flush=True); input()"
    spawned = pool.spawn("w1", SpawnSpec((sys.executable, "-c", block), dict(os.environ), level=0))
    pool.line("w1")

    pool.watchdog.set_rss_probe(0.01)
    measured = pool.next(RssMeasured)
    pool.watchdog.set_rss_probe(None)

    assert "w1" == measured.worker_id
    assert measured.rss_bytes > 30_000_000
    assert spawned.pid == pool.live["w1"].pid


def test_a_failed_probe_is_only_logged(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When memory cannot be measured, nothing but a debug line comes of it."""
    caplog.set_level(logging.DEBUG, "snakepit.watchdog")
    pool.spawn("w1", sh("read line"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "sysconf", lambda name: 1 // 0)
        pool.watchdog.set_rss_probe(0.01)
        wait_until(lambda: "could not be measured" in caplog.text, WAIT_S, "the debug line")
        pool.watchdog.set_rss_probe(None)
        pool.spawn("w2", sh("exit 0"))

    assert 0 == pool.next(Exited).code


def test_an_idle_watchdog_sleeps(pool: Pool) -> None:
    """With live workers and nothing due, the thread waits without a time-out."""
    pool.spawn("w1", sh("read line"))
    waits: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    real_select = pool.watchdog._selector.select

    def spying_select(timeout: float | None = None) -> Any:
        waits.put(timeout)
        return real_select(timeout)

    pool.watchdog._selector.select = spying_select  # type: ignore[method-assign]
    pool.watchdog.set_rss_probe(None)

    assert None is waits.get(timeout=WAIT_S)


def test_a_forked_child_has_none_of_it(pool: Pool) -> None:
    """In a fork of the host the watchdog's and guardian's descriptors are closed and its methods harmless."""
    pool.spawn("w1", sh("read line"))
    watchdog = pool.watchdog
    assert watchdog._inbox is not None
    child = watchdog._custody.wards["w1"].child
    fds = [watchdog._inbox.fd, watchdog._guardian_fd, child.exit_fd, child.stderr_fd]

    pid = os.fork()
    if pid == 0:
        status = sum(os.path.exists(f"/proc/self/fd/{fd}") for fd in fds)
        watchdog.condemn("w1", grace_s=0)
        watchdog.spawn("w2", sh("exit 0"))
        watchdog.stop()
        os._exit(status + (not watchdog.join(0)) + (not pool.events.empty()))

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(pool.live["w1"].request_fd, b"\n")
    assert 0 == pool.next(Exited).code
