"""The system refuses: no process, no thread, no descriptor, a pipe that fails, a reply without memory for it."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from integration import scripts
from integration.workers.pools import LIMIT_S, balance, config, handler_pool, saboteur_pool

from snakepit import CommandAdapter, PoolBroken, ResultError, SnakepitExecutor, WorkerDied, WorkerStartError
from snakepit import executor as _executor
from snakepit._pool import lifetime as _lifetime
from snakepit._pool import poller as _poller
from snakepit._supervision import spawn as _spawn
from snakepit._threads import PatientThread
from snakepit._wire import frames as _frames
from snakepit._wire import messages as _messages
from snakepit._wire import outgoing as _outgoing
from snakepit._wire import values as _values

from gates import Gate
from leaks import wait_until

NUMBERS = [errno.ENOENT, errno.EMFILE, errno.EAGAIN, errno.ENOMEM]


# No process -----------------------------------------------------------------------------------------


class Spawns:
    """Stands in the place of ``subprocess`` where workers are spawned; refuses as long as it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refusals: list[int] = []
        self.always: int | None = None
        self.count = 0
        stand_in = SimpleNamespace(**{name: getattr(subprocess, name) for name in subprocess.__all__})
        stand_in.Popen = self._popen
        monkeypatch.setattr(_spawn, "subprocess", stand_in)

    def _popen(self, *args: Any, **options: Any) -> Any:
        self.count += 1
        number = self.always or (self.refusals.pop() if self.refusals else None)
        if number is not None:
            raise OSError(number, os.strerror(number))
        return subprocess.Popen(*args, **options)


@pytest.fixture
def spawns(monkeypatch: pytest.MonkeyPatch) -> Spawns:
    """Return what decides whether workers can be spawned."""
    return Spawns(monkeypatch)


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_the_first_start_is_refused(spawns: Spawns, number: int) -> None:
    """A start that the system refuses is tried again; the request waits and is served."""
    spawns.refusals = [number, number]
    with saboteur_pool(1) as ex:
        assert 1 == ex.submit("do", {"value": 1}).result(LIMIT_S)
        stats = ex.stats()

    assert (3, 1, 1, 0) == (spawns.count, stats.requests, stats.completed, stats.errors)


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_a_replacement_is_refused(spawns: Spawns, number: int) -> None:
    """After a crash the replacement is refused: only the request that ran fails, the next one waits for a process."""
    with saboteur_pool(1) as ex:
        ex.execute("do", {"value": 0})
        spawns.refusals = [number, number]

        died = ex.submit("do", {"how": "exit", "code": 3})
        after = ex.submit("do", {"value": 1})

        assert isinstance(died.exception(LIMIT_S), WorkerDied)
        assert 1 == after.result(LIMIT_S)
        assert 1 == ex.stats().workers


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_every_start_is_refused(spawns: Spawns, number: int) -> None:
    """When the budget is spent the pool is broken by that cause; recycle() heals it once the fault is gone."""
    spawns.always = number
    with saboteur_pool(2, config=config(restart_budget=3)) as ex:
        error = ex.submit("do", {}).exception(LIMIT_S)
        with pytest.raises(PoolBroken) as later:
            ex.submit("do", {})
        with pytest.raises(WorkerStartError):
            ex.wait_ready(LIMIT_S)
        wait_until(lambda: ex.stats().workers == 0)

        spawns.always = None
        ex.recycle()
        healed = ex.submit("do", {"value": "healed"}).result(LIMIT_S)

        assert "healed" == healed
        assert balance(ex.stats()) == ex.stats().requests == 2
    for told in (error, later.value):
        assert isinstance(told, PoolBroken)
        assert isinstance(told.__cause__, WorkerStartError)
        assert os.strerror(number) in str(told)
        chain = told.__cause__.__cause__
        while chain is not None and not isinstance(chain, OSError):
            chain = chain.__cause__
        assert chain is not None
        assert number == chain.errno


# No thread, no descriptor for the pool itself -------------------------------------------------------


@pytest.mark.parametrize("which", ["manager", "watchdog"])
def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """The constructor raises the system's words; nothing is left, and the next pool works."""
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name.endswith(which):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            saboteur_pool(1)

    with saboteur_pool(1) as ex:
        assert 1 == ex.submit("do", {"value": 1}).result(LIMIT_S)


@pytest.mark.parametrize("which", ["manager", "watchdog"])
def test_ctrl_c_in_the_start_of_a_thread_leaves_nothing(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """Ctrl-C while the constructor waits for a thread that does run: it raises, and the thread goes."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        if thread.name.endswith(which):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            saboteur_pool(1)

    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("snakepit-")], LIMIT_S)


@pytest.mark.parametrize("which", ["-manager", "-watchdog", "intake"])
def test_ctrl_c_late_in_the_constructor_leaves_nothing(monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    """Ctrl-C when a thread runs already, or the whole pool: nobody will ever have that pool, so it ends."""
    start = PatientThread.start

    def interrupted(thread: PatientThread) -> None:
        start(thread)
        if thread.name.endswith(which):
            raise KeyboardInterrupt

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PatientThread, "start", interrupted)
        if which == "intake":
            patch.setattr(_executor, "Intake", interrupt)
        with pytest.raises(KeyboardInterrupt):
            saboteur_pool(1)

    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("snakepit-")], LIMIT_S)
    assert {} == _lifetime._live


@pytest.mark.parametrize("nth", [1, 2])
def test_no_eventfd_to_be_had(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """Neither for the manager nor for the watchdog: the constructor raises, and nothing stays open."""
    eventfd, calls = os.eventfd, []

    def fail(*args: Any) -> int:
        calls.append(args)
        if len(calls) == nth:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return eventfd(*args)

    monkeypatch.setattr(os, "eventfd", fail)

    with pytest.raises(OSError, match="Too many open files"):
        saboteur_pool(1)


def test_no_epoll_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constructor raises; nothing stays open."""

    def fail() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(select, "epoll", fail)

    with pytest.raises(OSError, match="Too many open files"):
        saboteur_pool(1)


def test_a_worker_that_cannot_be_watched_is_a_failed_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system watches no more descriptors (max_user_watches): its worker is ended, another start succeeds."""
    watch, refused = _poller._Epoll.watch, []

    def fail_once(self: Any, fd: int, owner: Any, *, write: bool = False) -> None:
        if not refused and owner is not None:
            refused.append(fd)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch(self, fd, owner, write=write)

    monkeypatch.setattr(_poller._Epoll, "watch", fail_once)
    with saboteur_pool(1) as ex:
        assert 1 == ex.submit("do", {"value": 1}).result(LIMIT_S)

    assert 1 == len(refused)


# Pipes ----------------------------------------------------------------------------------------------


@pytest.fixture
def fail_fds(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, OSError]]:
    """Return ``{descriptor: error}`` of what cannot be read or written."""
    failing: dict[int, OSError] = {}

    def wrap(name: str) -> None:
        call = getattr(os, name)

        def checked(fd: int, *args: Any) -> Any:
            if fd in failing:
                raise failing.pop(fd)
            return call(fd, *args)

        monkeypatch.setattr(os, name, checked)

    for name in ("read", "write", "writev"):
        wrap(name)
    yield failing
    monkeypatch.undo()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM], ids=errno.errorcode.get)
@pytest.mark.parametrize("direction", ["requests", "replies"])
@pytest.mark.parametrize("level", [0, 1])
def test_a_pipe_fails(fail_fds: dict[int, OSError], level: int, direction: str, number: int) -> None:
    """The system fails to read or write one worker's pipe: that call fails with its words, the pool goes on."""
    with saboteur_pool(1, level=level) as ex:
        ex.execute("do", {"value": 0})
        (link,) = list(ex._manager._links)
        fd = link.channel.request_fd if direction == "requests" else link.channel.reply_fd
        assert fd is not None
        fail_fds[fd] = OSError(number, os.strerror(number))

        error = ex.submit("do", {"value": 1}).exception(LIMIT_S)
        after = ex.submit("do", {"value": 2}).result(LIMIT_S)
        stats = ex.stats()

    assert isinstance(error, WorkerDied)
    assert os.strerror(number) in str(error)
    assert 2 == after
    assert (3, 1, 1) == (stats.requests, stats.errors, stats.restarts)


HALF_READER = """
import json, os, sys
IN, OUT = map(int, os.environ["SNAKEPIT_FDS"].split(","))
def frame(message):
    data = json.dumps(message).encode()
    os.write(OUT, len(data).to_bytes(4, "big") + data)
size = int.from_bytes(os.read(IN, 4), "big")
os.read(IN, size)
frame({"id": 0, "success": True, "result": {"status": "ok", "protocol": {"version": 1, "capabilities": []}}})
os.read(IN, 4)
if os.path.exists(sys.argv[1]):
    frame({"id": 1, "success": True, "result": "read"})
else:
    open(sys.argv[1], "w").close()
    os.close(IN)
while True:
    import signal
    signal.pause()
"""


def test_a_worker_that_stops_reading_in_the_middle_of_a_request(tmp_path: Path) -> None:
    """It closes its end while the rest of a large request waits for room, and lives on: the call fails soon."""
    script = tmp_path / "reader.py"
    script.write_text(HALF_READER)
    adapter = CommandAdapter([sys.executable, "-S", str(script), str(tmp_path / "second")], level=1)
    with SnakepitExecutor(adapter, 1, config=config()) as ex:
        error = ex.submit("do", {"text": "x" * 5_000_000}).exception(LIMIT_S)

        assert "closed" in str(error)
        assert "read" == ex.submit("do", {}).result(LIMIT_S)
        ex.kill_workers()


def test_signals_interrupt_every_call(gate: Gate) -> None:
    """Signals that arrive on the pool's threads all the time cost nothing but time."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    ended = threading.Event()
    try:
        with handler_pool(2) as ex:
            ex.wait_ready(LIMIT_S, 2)
            threads = [ex._manager._thread.ident, ex._manager._watchdog.ident]

            def shoot() -> None:
                while not ended.is_set():
                    for ident in threads:
                        signal.pthread_kill(ident or 0, signal.SIGUSR1)
                    ended.wait(0.0005)

            shooter = threading.Thread(target=shoot)
            shooter.start()
            try:
                data = b"x" * 3_000_000
                results = list(ex.map("size", ({"data": data[n:]} for n in range(30))))
                died = ex.submit("die", {"code": 3}).exception(LIMIT_S)
                again = ex.submit("run", {"value": 1}).result(LIMIT_S)
            finally:
                ended.set()
                shooter.join()
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert [len(data) - n for n in range(30)] == results
    assert isinstance(died, WorkerDied)
    assert 1 == again
    assert seen


# Encoding and decoding ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [MemoryError(), msgspec.MsgspecError("injected"), RecursionError()])
def test_encoding_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """In submit, where the caller is; nothing was accepted."""

    def fail(_: object) -> bytes:
        raise error

    with saboteur_pool(1) as ex:
        ex.execute("do", {"value": 0})
        with monkeypatch.context() as patch:
            patch.setattr(_outgoing, "_encode_json", fail)
            with pytest.raises(type(error)):
                ex.submit("do", {"value": 1})

        assert 2 == ex.submit("do", {"value": 2}).result(LIMIT_S)
        assert (2, 2, 0) == (ex.stats().requests, ex.stats().completed, ex.stats().restarts)


@pytest.mark.parametrize("error", [MemoryError(), msgspec.MsgspecError("injected"), SystemError("injected")])
def test_decoding_raises(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """A reply that the host cannot decode fails its own call; what was answered before it counts."""
    real = _values.decode_json

    def fail(payload: bytes) -> Any:
        if b"poison" in payload:
            raise error
        return real(payload)

    monkeypatch.setattr(_messages, "decode_json", fail)
    with saboteur_pool(1) as ex:
        before = ex.submit("do", {"value": 1})
        failed = ex.submit("do", {"value": "poison"})
        after = ex.submit("do", {"value": 2})

        told = failed.exception(LIMIT_S)

        assert [1, 2] == [before.result(LIMIT_S), after.result(LIMIT_S)]
        stats = ex.stats()
    if not isinstance(error, msgspec.MsgspecError):
        assert isinstance(told, ResultError)
        assert repr(error) in str(told)
    assert "injected" in str(told) or isinstance(error, MemoryError)
    assert (3, 2, 1, 1) == (stats.requests, stats.completed, stats.errors, stats.restarts)


def test_what_arrived_with_an_undecodable_reply_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies in the same read before it are not lost with it."""
    decoder = _messages.MessageDecoder(max_frame_bytes=1000, max_message_bytes=1000)
    real = _values.decode_json
    monkeypatch.setattr(_messages, "decode_json", lambda payload: 1 // 0 if b"2" in payload else real(payload))

    messages = decoder.feed(_frames.frame(b'{"id":1}') + _frames.frame(b'{"id":2}') + _frames.frame(b'{"id":3}'))

    assert [{"id": 1}] == messages
    assert isinstance(decoder.error, ZeroDivisionError)


# Descriptors run out for real -----------------------------------------------------------------------

STARVED = """
import errno, os, resource, sys, threading
from integration.workers.pools import config, saboteur_pool, LIMIT_S
from snakepit import PoolBroken, WorkerStartError

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
hogs = []

def fill(free):
    while True:
        try:
            hogs.append(os.dup(0))
        except OSError:
            break
    for _ in range(free):
        os.close(hogs.pop())

def empty():
    while hogs:
        os.close(hogs.pop())

told = set()
with saboteur_pool(1, config=config(restart_budget=2)) as ex:
    ex.wait_ready(LIMIT_S)
    for free in range(0, 16):
        fill(free)
        # What runs goes on without a descriptor.
        assert ex.submit("do", {"value": free}).result(LIMIT_S) == free
        error = ex.submit("do", {"how": "exit", "code": 3}).exception(LIMIT_S)
        try:
            after = ex.submit("do", {"value": 1})
            answer = after.exception(LIMIT_S) or after.result()
        except PoolBroken as broken:
            answer = broken
        if answer != 1:
            assert isinstance(answer, PoolBroken), answer
            assert isinstance(answer.__cause__, WorkerStartError), answer.__cause__
            assert os.strerror(errno.EMFILE) in str(answer), answer
            told.add(free)
        ex.workers(), ex.stats()
        empty()
        ex.recycle()
        assert ex.submit("do", {"value": 2}).result(LIMIT_S) == 2
    # More pools than there are descriptors for.
    pools, refused = [], None
    fill(40)
    while refused is None:
        try:
            pool = saboteur_pool(1, config=config(restart_budget=1))
        except OSError as error:
            refused = error.errno
            break
        pools.append(pool)
        try:
            refused = pool.submit("do", {"value": 1}).exception(LIMIT_S)
        except PoolBroken as broken:
            refused = broken
    assert refused == errno.EMFILE or os.strerror(errno.EMFILE) in str(refused), refused
    empty()
    for pool in pools:
        pool.recycle()
        assert pool.submit("do", {"value": 3}).result(LIMIT_S) == 3
    for pool in pools:
        pool.shutdown()
    assert ex.submit("do", {"value": 4}).result(LIMIT_S) == 4
assert {0, 1, 2, 3} <= told, told
threads = [thread.name for thread in threading.enumerate()]
print(len(pools) > 0, [name for name in threads if "snakepit" in name])
"""


def test_descriptors_run_out(tmp_path: Path) -> None:
    """Running workers serve on, starts fail with the reason, and everything recovers when there are some again."""
    done = scripts.run(tmp_path, STARVED)

    assert (0, "True []\n") == (done.returncode, done.stdout), done.stderr[-3000:]
