"""How long after SIGKILL of a worker does the pool serve at full size again?

python benchmarks/recovery.py [--rounds 30] [--workers 2]

The end of the measure is the moment in which as many calls as the pool has workers run at once: each connects to
a socket of this process and stays.  Beside it stands what starting such a worker costs at the least:

- bare start: spawn and handshake of one worker, without a pool (snakepit's own parts, called one after another);
- new pool: a pool of one, from its constructor to its first answer; the only one that peers have as well.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import attrs
from support import peers

from snakepit import CallableAdapter, JavaScriptAdapter, PoolConfig, PythonAdapter, SnakepitExecutor
from snakepit._core.lanes import Lane
from snakepit._core.model import Slot, Worker
from snakepit._pool.channel import Channel
from snakepit._pool.launch import Launcher
from snakepit._pool.link import Link, Shaken
from snakepit._supervision.spawn import start_process
from snakepit._wire.callables import Preparation
from snakepit.adapters import Adapter

IDLE_S = 0.1
"""Between the last answer and the kill; arbitrary."""
LIMIT_S = 15.0
"""A pool that has not come back after that has not recovered; far above any figure here."""


def meet(path: str) -> int:
    """Arrive at the host's socket, stay until it lets go, and return the process id."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.recv(1)
    return os.getpid()


class Meeting:
    """The host's end of ``meet``."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "meeting")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._listener.settimeout(LIMIT_S)

    def wait(self, count: int) -> None:
        """Return when so many have arrived, and let them go; raises TimeoutError."""
        here: list[socket.socket] = []
        try:
            for _ in range(count):
                here.append(self._listener.accept()[0])
        finally:
            for connection in here:
                # A byte, not only the end: a worker that was forked meanwhile holds the connection open too.
                connection.sendall(b"x")
                connection.close()

    def close(self) -> None:
        self._listener.close()


class Contender:
    """A pool that is made, asked and broken.

    Args:
        name: For the table.
        make: Makes a pool of so many workers, with ``submit`` and ``shutdown``.
        call: What to submit: given the socket's path, what goes to ``submit``.
        adapter: Of the bare start, or None.
    """

    def __init__(
        self,
        name: str,
        make: Callable[[int], Any],
        call: Callable[[str], tuple[Any, ...]],
        adapter: Callable[[], Adapter] | None,
        meeting: Meeting,
        workers: int,
    ) -> None:
        self.name = name
        self._make, self._call, self._adapter = make, call, adapter
        self._meeting = meeting
        self._workers = workers
        self._pool = make(workers)
        self._is_snakepit = isinstance(self._pool, SnakepitExecutor)
        self._met: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._last: list[Any] = []
        self.failed = 0
        self.bare: list[float] = []
        self.new: list[float] = []
        self.recovered: list[float] = []

    def round(self) -> None:
        """Measure each figure once."""
        if self._adapter is not None:
            self.bare.append(bare_start(self._adapter()))
        self.new.append(peers.timed(self._one_answer))
        self._together()
        # Idle for certain: where workers share locks, one that is killed right after its answer may hold one.
        time.sleep(IDLE_S)
        os.kill(self._victim(), signal.SIGKILL)
        try:
            self.recovered.append(peers.timed(self._together))
        except (TimeoutError, BrokenProcessPool, queue.Empty):
            self.failed += 1
            self._pool = self._make(self._workers)

    def _one_answer(self) -> None:
        pool = self._make(1)
        future = pool.submit(*self._call(self._meeting.path))
        self._meeting.wait(1)
        future.result(LIMIT_S)
        self._close(pool)

    def _together(self) -> None:
        self._met = queue.SimpleQueue()
        for _ in range(self._workers):
            self._send()
        self._meeting.wait(self._workers)
        self._last = [self._met.get(timeout=LIMIT_S) for _ in range(self._workers)]

    def _send(self) -> None:
        self._pool.submit(*self._call(self._meeting.path)).add_done_callback(self._answered)

    def _answered(self, future: Any) -> None:
        # A call that met the dead worker before its death was known is made again, as its caller would.
        if future.exception() is None:
            self._met.put(future.result())
        elif not isinstance(future.exception(), BrokenProcessPool) or self._is_snakepit:
            self._send()

    def _victim(self) -> int:
        """Return the pid of one of the idle workers."""
        if self._is_snakepit:
            pid = self._pool.workers()[-1].pid
            assert pid is not None
            return pid
        return int(self._last[-1])

    @staticmethod
    def _close(pool: Any) -> None:
        pool.shutdown()

    def close(self) -> None:
        self._close(self._pool)


def bare_start(adapter: Adapter) -> float:
    """Return the seconds from the spawn of one worker to its valid handshake, outside of a pool."""
    preparation = Preparation() if isinstance(adapter, CallableAdapter) else None
    slot = Slot(0)
    slot.incarnation = 1
    worker = Worker("bare-0-1", slot, Lane(), 0.0)
    launcher = Launcher(adapter, "bare", preparation)
    began = time.perf_counter()
    spec, release = launcher.spec_for(worker)()
    child = start_process(spec)
    release()
    channel = Channel(*attrs.astuple(child.release_channel_fds()))
    link = Link(worker.worker_id, channel, level=adapter.level, callables=adapter.runs_callables, config=PoolConfig())
    link.begin(adapter.start_args, launcher.first_pickle(worker.worker_id))
    poll = select.poll()
    poll.register(channel.reply_fd, select.POLLIN)
    arrivals: list[Any] = []
    while not arrivals:
        channel.flush()
        assert poll.poll(LIMIT_S * 1000), "no handshake"
        arrivals = link.receive()
    took_s = time.perf_counter() - began
    assert isinstance(arrivals[0], Shaken), arrivals
    child.kill_group()
    while not child.exited():
        os.sched_yield()
    child.poll()
    channel.close()
    child.close()
    return took_s


class _Pebble(peers.PebblePool):
    def __init__(self, workers: int, method: str) -> None:
        from pebble import ProcessPool

        self._pool = ProcessPool(max_workers=workers, context=get_context(method))


def _breaks(name: str, pool: Any, path: str, meeting: Meeting, workers: int) -> str:
    """Say what a pool that does not recover does instead."""
    futures = [pool.submit(meet, path) for _ in range(workers)]
    meeting.wait(workers)
    os.kill(futures[0].result(LIMIT_S), signal.SIGKILL)
    try:
        for _ in range(100):
            pool.submit(peers.nothing).result(LIMIT_S)
    except BrokenProcessPool as error:
        return f"{name} does not recover: {type(error).__name__} for every later call"
    finally:
        pool.shutdown()
    return f"{name} served on"


def main() -> None:
    """Measure and print."""
    given = peers.options(__doc__ or "", rounds=30, workers=2)
    handlers = peers.HERE / "bench_handlers"
    python = lambda: PythonAdapter(f"{handlers}.py")  # noqa: E731  # three of a kind, told apart by name
    node = lambda: JavaScriptAdapter(f"{handlers}.cjs")  # noqa: E731
    # Full size from the start, as the others have it.
    config = PoolConfig(min_workers=given.workers)
    with tempfile.TemporaryDirectory() as folder:
        meeting = Meeting(Path(folder))

        def contender(
            name: str, make: Callable[[int], Any], adapter: Callable[[], Adapter] | None, command: bool
        ) -> Contender:
            def call(path: str) -> tuple[Any, ...]:
                return ("meet", {"path": path}) if command else (meet, path)

            return Contender(name, make, call, adapter, meeting, given.workers)

        contenders = [
            contender("snakepit, Python", lambda n: SnakepitExecutor(python(), n), python, True),
            contender("snakepit, Node", lambda n: SnakepitExecutor(node(), n), node, True),
            contender(
                "snakepit, callables",
                lambda n: SnakepitExecutor(n, config=attrs.evolve(config, min_workers=n)),
                CallableAdapter,
                False,
            ),
            contender("pebble (fork)", lambda n: _Pebble(n, "fork"), None, False),
            contender("pebble (spawn)", lambda n: _Pebble(n, "spawn"), None, False),
        ]
        for each in contenders:
            each.round()
            for figures in (each.bare, each.new, each.recovered):
                figures.clear()
        peers.rounds({each.name: lambda each=each: peers.timed(each.round) for each in contenders}, given.rounds)  # type: ignore[misc]
        for each in contenders:
            each.close()
        notes = [
            _breaks("ProcessPoolExecutor", peers.process_pool(given.workers), meeting.path, meeting, given.workers),
            _breaks("loky", peers.loky_pool(given.workers), meeting.path, meeting, given.workers),
        ]
        meeting.close()
    sample = f"{given.rounds} interleaved rounds, one idle worker of {given.workers} killed in each"
    print(peers.header("recovery.py", sample), end="\n\n")
    columns = (
        "contender",
        "bare start, median ms",
        "new pool of one to its first answer, median ms",
        "kill to full size, median ms",
        "p99 ms",
        "/ bare start, round by round",
        "/ new pool, round by round",
        "did not come back",
    )
    print(peers.table(columns, [_row(each) for each in contenders]))
    print()
    for note in notes:
        print(f"- {note}")


def _row(each: Contender) -> tuple[str, ...]:
    def milliseconds(values: list[float]) -> str:
        return f"{peers.median(values) * 1e3:.1f}" if values else ""

    complete = len(each.recovered) == len(each.new)
    return (
        each.name,
        milliseconds(each.bare),
        milliseconds(each.new),
        milliseconds(each.recovered),
        f"{peers.percentile(each.recovered, 0.99) * 1e3:.1f}" if each.recovered else "",
        f"{peers.median_ratio(each.recovered, each.bare):.2f}" if each.bare and complete else "",
        f"{peers.median_ratio(each.recovered, each.new):.2f}" if complete else "",
        str(each.failed),
    )


if __name__ == "__main__":
    sys.exit(main())
