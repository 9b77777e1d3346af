"""Brings a worker into a state, lets it misbehave there, and says what came of it.

One function a state.  Nothing waits for the clock: what a worker does is told by gates, and a deadline that is
to pass is brought forward once the worker has said that nothing more will come of it.
"""

from __future__ import annotations

import array
import fcntl
import json
import signal
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil
from crash_table.model import Cell, Knob, Seen, State
from integration.workers.pools import LIMIT_S, config, lines, recorded, saboteur_pool

from snakepit import PoolStats, SnakepitExecutor, telemetry
from snakepit._clock import monotonic_s
from snakepit._core.scheduler import Scheduler

from gates import Gate
from leaks import wait_until

__all__ = ("BUDGET", "FOLLOWERS", "TINY_S", "Stage", "drive")

BUDGET = 2
"""Failed starts in a row after which the pools of the table are broken."""
FOLLOWERS = [10, 11, 12, 13, 14]
"""Values of the requests that stand in the pipe behind the sabotaged one."""
TINY_S = 1e-4
"""Service time with which requests are sent ahead."""


@attrs.define
class Stage:
    """What a driver works with: the cell, its files and gates, and the pool once it is there."""

    cell: Cell
    knob: Knob
    folder: Path
    gate: Gate
    hung: Gate
    seen: Seen = attrs.field(factory=Seen)
    broken: threading.Event = attrs.field(factory=threading.Event)
    ex: SnakepitExecutor = attrs.field(init=False)

    @property
    def log(self) -> str:
        return str(self.folder / "runs")

    @property
    def grandchildren(self) -> str:
        return str(self.folder / "grandchildren")

    @property
    def starts(self) -> str:
        return str(self.folder / "starts")

    def deed(self, **more: Any) -> dict[str, Any]:
        """Return the deed as the saboteur takes it."""
        extra: dict[str, Any] = {"hung": self.hung.path} if self.knob.hangs else {}
        if self.knob.grandchild:
            extra["path"] = self.grandchildren
        return {**self.knob.deed, **extra, **more}

    @contextmanager
    def pool(self, **env: Any) -> Iterator[SnakepitExecutor]:
        """Open the pool of one worker; note how its processes ended, and that its end came in time."""
        # Whoever is to end by itself gets all the time it needs, whoever is to be forced none.
        ends_late = self.cell.state is State.ENDING and (self.knob.hangs or self.knob.closes)
        forced = ends_late or self.cell.end.startswith(("recycled, SIG", "shutdown, SIG"))
        settings: dict[str, Any] = {
            "shutdown_grace_s": 0.05 if forced else LIMIT_S,
            "kill_grace_s": 0.05 if "SIGKILL" in self.cell.end else LIMIT_S,
            "restart_budget": BUDGET,
            "health_check_interval_s": 1000.0,
            "health_check_timeout_s": 1000.0,
            "worker_init_timeout_s": 1000.0,
            **self.knob.config,
        }
        env = {"SABOTEUR_LOG": self.starts, **{name: json.dumps(value) for name, value in env.items()}}
        with recorded("snakepit.worker.exited") as events, recorded_breaks(self.broken):
            ex = self.ex = saboteur_pool(level=self.knob.level, env=env, config=config(**settings))
            try:
                yield ex
            finally:
                end = threading.Thread(target=ex.shutdown)
                end.start()
                end.join(LIMIT_S)
                assert not end.is_alive(), "shutdown() hangs"
        for _, _, about in events:
            number = about["signal"]
            how = f"exit {about['exit_code']}" if number is None else signal.Signals(number).name
            self.seen.exits[int(about["worker_id"].rpartition("-")[2])] = f"{about['reason']}, {how}"
        self.seen.started = [int(line) for line in lines(self.starts)]

    # What happens ------------------------------------------------------------------------------------

    def call(self, value: Any) -> Any:
        """Have a harmless call answered."""
        return self.ex.submit("do", {"value": value}).result(LIMIT_S)

    def submit_deed(self) -> Future[Any]:
        """Submit the sabotaged call; it waits at the gate, and has a time-out only where one is to pass."""
        args = self.deed(gate=self.gate.path, value="done", log=self.log)
        # Else it would go on with the next request, which fails with it, rightly, if it is begun by then.
        args["stay"] = self.cell.state is State.PIPED and self.cell.end.startswith("protocol")
        return self.ex.submit("do", args, timeout=1000 if self.knob.hangs else None)

    def let_pass(self, deadline: str) -> None:
        """Let the deed happen, and the deadline that has to end it pass."""
        self.gate.release()
        self.end_silence(deadline)

    def end_silence(self, deadline: str) -> None:
        """Let a deadline pass once the worker has said that nothing more will come of it, if that is its way."""
        if self.knob.hangs:
            (arrival,) = self.hung.wait_started(timeout_s=LIMIT_S)
            if self.knob.name == "stop":
                process = psutil.Process(arrival.pid)
                wait_until(lambda: process.status() == psutil.STATUS_STOPPED, LIMIT_S, "it has stopped")
            if deadline == "health":
                self.bring_forward("health")
                deadline = "ping"
            self.bring_forward(deadline)
        elif self.knob.closes:
            self.bring_forward("closed")

    def bring_forward(self, kind: str) -> None:
        """Let the one deadline of this kind pass now."""

        def move(scheduler: Scheduler) -> bool:
            board = scheduler.board
            workers = list(board.workers.by_id.values())
            owners = [scheduler.lifecycle.health, *workers, *(worker.sent[0] for worker in workers if worker.sent)]
            for owner in owners:
                if owner.timer is not None and owner.timer[2] == kind:
                    board.timers.set(owner, monotonic_s(), kind)
                    return True
            return False

        wait_until(lambda: self.ex._manager.ask(move), LIMIT_S, f"a deadline {kind!r}")

    def wait_replaced(self) -> None:
        """Wait until the sabotaged process was replaced, where the table says that it is."""
        expected = (self.cell.restarts, self.cell.recycled)
        wait_until(lambda: expected == self.replaced, LIMIT_S, f"{expected} and not {self.replaced}")

    @property
    def replaced(self) -> tuple[int, int]:
        stats = self.ex.stats()
        return stats.restarts, stats.recycled

    def next_call(self, first_pid: int | None) -> None:
        """Have the next call answered, and note who did it and the numbers after it."""
        future = self.ex.submit("do", {"value": "next"})
        assert "next" == future.result(LIMIT_S)
        self.seen.pids = (first_pid, future.pid)
        self.seen.stats = self.ex.stats()


@contextmanager
def recorded_breaks(broken: threading.Event) -> Iterator[None]:
    """Set the event when a pool breaks."""
    telemetry.attach("breaks", "snakepit.pool.broken", lambda *_: broken.set())
    try:
        yield
    finally:
        telemetry.detach("breaks")


def starting(stage: Stage) -> None:
    """The deed takes the place of the answer to every handshake of the pool."""
    with stage.pool(SABOTEUR_START=stage.deed()) as ex:
        if stage.cell.error is None:
            ex.wait_ready(LIMIT_S)
            stage.next_call(ex.workers()[0].pid)
            return
        # What dies after a good answer breaks the pool only while nobody calls: a call would be its death's cause.
        if stage.knob.name != "reply_then_exit":
            pending = ex.submit("do", {})
            for _ in range(BUDGET):
                stage.end_silence("start")
            stage.seen.error = pending.exception(LIMIT_S)
        assert stage.broken.wait(LIMIT_S)
        wait_until(lambda: ex.stats().workers == 0, LIMIT_S, "no process is left")
        try:
            ex.submit("do", {})
        except BaseException as error:
            stage.seen.error = stage.seen.error or error
        stage.seen.stats = ex.stats()


def idle(stage: Stage) -> None:
    """The deed happens while nothing is in the worker's pipe."""
    with stage.pool() as ex:
        deed = stage.deed(done=stage.gate.path)
        armed = ex.submit("do", {"how": "arm", "at": stage.gate.path, "deed": deed})
        armed.result(LIMIT_S)
        stage.gate.wait_started(timeout_s=LIMIT_S)
        assert 1 == ex.stats().available

        stage.let_pass("health")

        if stage.cell.pid == "same" or stage.cell.recycled:
            stage.gate.wait_started(timeout_s=LIMIT_S)
            stage.gate.release()
        stage.wait_replaced()
        stage.next_call(armed.pid)


def checking(stage: Stage) -> None:
    """The deed takes the place of the answer to a health check; the next call is accepted meanwhile."""
    with stage.pool() as ex:
        deed = stage.deed(gate=stage.gate.path)
        armed = ex.submit("do", {"how": "arm", "at": "ping", "deed": deed})
        armed.result(LIMIT_S)
        stage.bring_forward("health")
        stage.gate.wait_started(timeout_s=LIMIT_S)
        following = ex.submit("do", {"value": "next"})
        assert (0, 1) == (ex.stats().running, ex.stats().queued)

        stage.let_pass("ping")

        assert "next" == following.result(LIMIT_S)
        stage.seen.pids = (armed.pid, following.pid)
        stage.seen.stats = ex.stats()


def busy(stage: Stage) -> None:
    """The deed happens in answer to a request; the next call comes when that request has ended."""
    with stage.pool() as ex:
        stage.call(1)
        bad = stage.submit_deed()
        stage.gate.wait_started(timeout_s=LIMIT_S)
        assert (1, 0) == (ex.stats().running, ex.stats().queued)

        stage.let_pass("run")

        stage.seen.error = bad.exception(LIMIT_S)
        if stage.seen.error is None:
            stage.wait_replaced()
        stage.next_call(bad.pid)


def piped(stage: Stage) -> None:
    """Five requests stand in the pipe behind the one that misbehaves: really sent, and not begun."""
    with stage.pool(SABOTEUR_PIPELINE=1) as ex:
        opener = ex.submit("do", {"gate": stage.gate.path})
        stage.gate.wait_started(timeout_s=LIMIT_S)
        bad = stage.submit_deed()
        followers = [ex.submit("do", {"value": value, "log": stage.log}) for value in FOLLOWERS]
        wait_until(lambda: ex._manager.ask(lambda s: len(s.board.queue)) == 1 + len(FOLLOWERS), LIMIT_S)
        stage.gate.release()
        opener.result(LIMIT_S)
        stage.gate.wait_started(timeout_s=LIMIT_S)
        stats = ex.stats()
        assert (1, len(FOLLOWERS)) == (stats.running, stats.queued)
        assert (0, 1 + len(FOLLOWERS), len(FOLLOWERS)) == _in_the_pipe(ex)

        stage.let_pass("run")

        stage.seen.error = bad.exception(LIMIT_S)
        stage.seen.others = [future.result(LIMIT_S) for future in followers]
        stage.seen.pids = (bad.pid, followers[-1].pid)
        stage.seen.stats = ex.stats()


def _in_the_pipe(ex: SnakepitExecutor) -> tuple[int, int, int]:
    """Return how many requests wait in the queue, how many were sent, and how many claim tokens lie in their pipe."""

    def look(scheduler: Scheduler) -> tuple[int, int, int]:
        (worker,) = scheduler.board.workers.by_id.values()
        link = ex._manager._links.get(worker.worker_id)
        assert link is not None
        unread = array.array("i", [0])
        fcntl.ioctl(link.channel._claim_read_fd, termios.FIONREAD, unread)
        return len(scheduler.board.queue), len(worker.sent), unread[0]

    answer: tuple[int, int, int] = ex._manager.ask(look)
    return answer


def retiring(stage: Stage) -> None:
    """The deed happens in answer to a request of a worker that is to be replaced after it."""
    with stage.pool() as ex:
        stage.call(1)
        bad = stage.submit_deed()
        stage.gate.wait_started(timeout_s=LIMIT_S)
        ex.restart_worker(ex.workers()[0].worker_id)

        stage.let_pass("run")

        stage.seen.error = bad.exception(LIMIT_S)
        stage.next_call(bad.pid)


def draining(stage: Stage) -> None:
    """The deed happens in answer to a request of a pool that is shut down with work in its queue."""
    with stage.pool() as ex:
        stage.call(1)
        bad = stage.submit_deed()
        stage.gate.wait_started(timeout_s=LIMIT_S)
        accepted = [ex.submit("do", {"value": value, "log": stage.log}) for value in FOLLOWERS[:2]]
        ex.shutdown(wait=False)

        stage.let_pass("run")

        stage.seen.error = bad.exception(LIMIT_S)
        stage.seen.others = [future.result(LIMIT_S) for future in accepted]
        stage.seen.pids = (bad.pid, accepted[-1].pid)
    stage.seen.stats = ex.stats()


def ending(stage: Stage) -> None:
    """The deed happens at the end of the requests, of a worker that is replaced and then of one of a pool's end."""
    with stage.pool(SABOTEUR_EOF=stage.deed()) as ex:
        first = ex.submit("do", {"value": 1})
        first.result(LIMIT_S)
        ex.restart_worker(ex.workers()[0].worker_id)
        stage.next_call(first.pid)


def drive(stage: Stage) -> Seen:
    """Run one cell and return what it has shown."""
    {
        State.STARTING: starting,
        State.IDLE: idle,
        State.CHECKING: checking,
        State.BUSY: busy,
        State.PIPED: piped,
        State.RETIRING: retiring,
        State.DRAINING: draining,
        State.ENDING: ending,
    }[stage.cell.state](stage)
    return stage.seen


def numbers(cell: Cell) -> PoolStats:
    """Return the numbers that the pool must show after the last call of a cell."""
    requests = {State.IDLE: 2, State.CHECKING: 2, State.ENDING: 2, State.PIPED: 2 + len(FOLLOWERS), State.DRAINING: 4}
    total = requests.get(cell.state, 3)
    if cell.state is State.STARTING:
        total = 1
        if cell.error is not None:
            failed = 0 if cell.knob == "reply_then_exit" else 1
            return PoolStats(requests=failed, errors=failed, restarts=cell.restarts)
    timed_out = cell.error is not None and issubclass(cell.error, TimeoutError)
    failed = cell.error is not None and not timed_out
    lives = cell.state is not State.DRAINING
    return PoolStats(
        workers=lives,
        available=lives,
        requests=total,
        completed=total - failed - timed_out,
        errors=failed,
        command_timeouts=timed_out,
        restarts=cell.restarts,
        recycled=cell.recycled,
    )
