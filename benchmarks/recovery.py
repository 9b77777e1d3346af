"""How long after SIGKILL of a worker does the pool serve at full size again?

python benchmarks/recovery.py [--quick] [--json FILE] [--rounds 8] [--workers 2]

The end of the measure is the moment in which as many calls as the pool has workers run at once: each connects to
a socket of this process and stays.  Beside it stands what starting such a worker costs at the least:

- bare start: spawn and handshake of one worker, without a pool (snakepit's own parts, called one after another);
- new pool: a pool of one, from its constructor to its first answer; the only one that peers have as well.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import signal
import tempfile
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import attrs
from support import loads, peers, tasks
from support.meeting import Meeting
from support.results import Report, figure, median, options, percentile, ratios

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
        self.new.append(loads.timed(self._one_answer))
        self._together()
        # Idle for certain: where workers share locks, one that is killed right after its answer may hold one.
        time.sleep(IDLE_S)
        os.kill(self._victim(), signal.SIGKILL)
        try:
            self.recovered.append(loads.timed(self._together))
        except (TimeoutError, BrokenProcessPool, queue.Empty):
            self.failed += 1
            self._pool = self._make(self._workers)

    @property
    def came_back(self) -> bool:
        """Every round has a figure."""
        return bool(self.recovered) and len(self.recovered) == len(self.new)

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


def _breaks(name: str, pool: Any, path: str, meeting: Meeting, workers: int) -> tuple[str, str]:
    """Say what a pool that does not recover does instead."""
    futures = [pool.submit(tasks.meet, path) for _ in range(workers)]
    meeting.wait(workers)
    os.kill(futures[0].result(LIMIT_S), signal.SIGKILL)
    try:
        for _ in range(100):
            pool.submit(tasks.nothing).result(LIMIT_S)
    except BrokenProcessPool as error:
        return name, f"{type(error).__name__} for every later call"
    finally:
        pool.shutdown()
    return name, "served on"


def main() -> None:
    """Measure and print."""
    given = options(__doc__, {"rounds": 8, "workers": 2}, {"rounds": 3})
    sample = f"{given.rounds} interleaved rounds, one idle worker of {given.workers} killed in each"
    report = Report("recovery", sample, given)
    handlers = peers.HERE / "bench_handlers"
    python = lambda: PythonAdapter(f"{handlers}.py")  # noqa: E731  # three of a kind, told apart by name
    node = lambda: JavaScriptAdapter(f"{handlers}.cjs")  # noqa: E731
    logging.getLogger("snakepit").setLevel(logging.ERROR)  # that a worker was killed is no news here
    # Full size from the start, as the others have it.
    config = PoolConfig(min_workers=given.workers)
    with tempfile.TemporaryDirectory() as folder:
        meeting = Meeting(Path(folder), LIMIT_S)

        def contender(
            name: str, make: Callable[[int], Any], adapter: Callable[[], Adapter] | None, command: bool
        ) -> Contender:
            def call(path: str) -> tuple[Any, ...]:
                return ("meet", {"path": path}) if command else (tasks.meet, path)

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
            contender("pebble (fork)", lambda n: peers.PebblePool(n, "fork"), None, False),
            contender("pebble (spawn)", peers.PebblePool, None, False),
        ]
        for each in contenders:
            each.round()
            for figures in (each.bare, each.new, each.recovered):
                figures.clear()
        loads.rounds({each.name: lambda each=each: loads.timed(each.round) for each in contenders}, given.rounds)
        for each in contenders:
            each.close()
        notes = [
            _breaks("ProcessPoolExecutor", peers.process_pool(given.workers), meeting.path, meeting, given.workers),
            _breaks("loky", peers.loky_pool(given.workers), meeting.path, meeting, given.workers),
        ]
        meeting.close()
    for each in contenders:
        name = each.name.replace("snakepit, ", "").replace(" (", "_").rstrip(")").lower()
        if each.came_back and each.bare:
            question = f"{each.name}: SIGKILL of a worker to full size"
            report.row(f"{name}_bare", question, ratios(each.recovered, each.bare), against="a bare start of it")
        if each.came_back:
            question = f"{each.name}: SIGKILL of a worker to full size"
            report.row(f"{name}_pool", question, ratios(each.recovered, each.new), against="a new pool of one")
    columns = (
        "contender",
        "bare start, median ms",
        "new pool of one to its first answer, median ms",
        "kill to full size, median ms",
        "p99 ms",
        "did not come back",
    )
    report.table("Starts and recoveries", columns, [_cells(each) for each in contenders])
    report.table("Without recovery", ("pool", "after a kill"), notes)
    report.finish()


def _cells(each: Contender) -> tuple[str, ...]:
    def milliseconds(values: list[float]) -> str:
        return figure(median(values) * 1e3) if values else ""

    return (
        each.name,
        milliseconds(each.bare),
        milliseconds(each.new),
        milliseconds(each.recovered),
        figure(percentile(each.recovered, 0.99) * 1e3) if each.recovered else "",
        str(each.failed),
    )


if __name__ == "__main__":
    main()
