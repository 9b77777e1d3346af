"""Every process of a pool from its spawn to its reaping.

THREAD: the watchdog's, which owns it.  Nothing here waits, but for `end_all` after a failure.

A worker's end, in this order: the exit is seen (pidfd), stderr is read empty, the rest of its group gets
SIGKILL and is verified to be gone, so are descendants that left the group, the leader is reaped, guardian and
registry strike it off, `Exited` is posted.  The group is dealt with before the reap because until then its
number cannot be given to another.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import select
import selectors
import signal
import time
from collections.abc import Callable
from typing import TypeVar

import attrs

from ..errors import InternalError
from .guardian import GUARDIAN
from .process import ChildProcess, ExitStatus
from .procfs import RUN_VARIABLE, process_start
from .registry import REGISTRY
from .reports import Spawned, SpawnFailed
from .spawn import SpawnSpec
from .stderr import StderrReader, WorkerStderr
from .sweep import Left, kill_left
from .ward import KILL_LIMIT_S, Ward

__all__ = ("Custody", "SpawnFactory")

T = TypeVar("T")

SpawnFactory = Callable[[], tuple[SpawnSpec, Callable[[], None]]]
"""Run on the watchdog's thread: returns what to start, and what to call once that was tried."""

EMPTY_LIMIT_S = 1.0
"""How long what an exited leader left behind may outlive SIGKILL; arbitrary."""
FAIL_LIMIT_S = 2.0
"""How long a failed watchdog waits for the exits of the processes it has killed; arbitrary."""
POLL_S = 0.02
"""How often the children are looked at where there are no pidfds; arbitrary."""


class Custody:
    """Spawns, ends and reaps the processes of one pool, and posts what becomes of them.

    Args:
        post: Takes each event.
        selector: The watchdog's; the key's data is the function to call.
        kill_grace_s: From TERM to KILL, >= 0.
        stderr_tail_bytes: How much of each worker's stderr is kept, >= 0.
        spawner: Makes the process.
        clock: Monotonic seconds.
        logger: For messages about processes.

    Attributes:
        run: The first part of this pool's run tokens.
        wards: ``{worker_id: ward}`` of every process not yet reaped and reported.
        stderr: Reads what they write there.
    """

    def __init__(
        self,
        post: Callable[[object], None],
        selector: selectors.BaseSelector,
        *,
        kill_grace_s: float,
        stderr_tail_bytes: int,
        spawner: Callable[[SpawnSpec], ChildProcess],
        clock: Callable[[], float],
        logger: logging.Logger,
    ) -> None:
        self.run = os.urandom(8).hex()
        self.wards: dict[str, Ward] = {}
        self.stderr = StderrReader(selector)
        self._post = post
        self._selector = selector
        self._kill_grace_s = kill_grace_s
        self._tail_bytes = stderr_tail_bytes
        self._spawner = spawner
        self._clock = clock
        self._logger = logger
        self._spawned = 0

    @property
    def polls(self) -> bool:
        """Whether some exit must be looked for, because there is no pidfd to tell it."""
        return any(ward.polled for ward in self.wards.values())

    def next_due(self) -> float:
        """Return when `do_due` or `settle` has something to do, in monotonic seconds; inf: never."""
        due = min((ward.due_at for ward in self.wards.values()), default=math.inf)
        return min(due, self._clock() + POLL_S) if self.polls else due

    # Birth -------------------------------------------------------------------------------------------

    def spawn(self, worker_id: str, spec: SpawnSpec | SpawnFactory) -> None:
        """Start a process and put it under the guardian; answered by `Spawned` or `SpawnFailed`.

        Raises:
            InternalError: The worker id is in use; raised here.
        """
        if worker_id in self.wards:
            raise InternalError(f"worker id {worker_id!r} is in use")
        try:
            ward = self._start(worker_id, spec)
        except Exception as error:
            self._post(SpawnFailed(worker_id, error))
            return
        self.wards[worker_id] = ward
        child = ward.child
        REGISTRY.register(ward.token, child.pid, ward.start)
        try:
            if child.exit_fd is not None:
                on_exit = functools.partial(self._maybe_exited, ward)
                self._selector.register(child.exit_fd, selectors.EVENT_READ, on_exit)
            self.stderr.add(child, ward.stderr)
            GUARDIAN.register(child.pid, ward.start)
        except Exception as error:
            ward.failure = error
            ward.kill(self._clock())
            return
        self._post(Spawned(worker_id, child.pid, *attrs.astuple(child.release_channel_fds())))

    def _start(self, worker_id: str, spec: SpawnSpec | SpawnFactory) -> Ward:
        release: Callable[[], None] | None = None
        try:
            if not isinstance(spec, SpawnSpec):
                spec, release = spec()
            self._spawned += 1
            token = f"{self.run}-{self._spawned}"
            REGISTRY.begin(token)
            try:
                child = self._spawner(attrs.evolve(spec, env={**spec.env, RUN_VARIABLE: token}))
            except BaseException:
                REGISTRY.strike(token)
                raise
        finally:
            if release is not None:
                try:
                    release()
                except Exception:  # a child that was made is worth more than what could not be released
                    self._logger.exception("after the spawn of worker %s", worker_id)
        logger = logging.getLogger("snakepit.worker") if spec.output == "log" else None
        record = WorkerStderr(worker_id, self._tail_bytes, logger)
        return Ward(worker_id, child, token, process_start(child.pid), record)

    # The way to the end ------------------------------------------------------------------------------

    def condemn(self, worker_id: str, term_at: float) -> None:
        """Send TERM at ``term_at`` (monotonic seconds) or before; KILL follows after the grace."""
        ward = self.wards.get(worker_id)
        if ward is not None and not ward.exited and ward.sent is None:
            ward.due_at = min(ward.due_at, term_at)

    def kill(self, worker_id: str) -> None:
        """Send KILL now, unless that was done."""
        ward = self.wards.get(worker_id)
        if ward is not None and not ward.exited and ward.sent is not signal.SIGKILL:
            ward.kill(self._clock())

    def do_due(self, now: float) -> float:
        """Take the steps that are due, and return by how many seconds the latest of them was late."""
        late_s = 0.0
        for ward in list(self.wards.values()):
            if ward.polled:
                self._maybe_exited(ward)
            if ward.due_at > now or ward.exited:
                continue
            late_s = max(late_s, now - ward.due_at)
            if ward.sent is None:
                ward.terminate(now, self._kill_grace_s)
            elif ward.sent is signal.SIGTERM:
                ward.kill(now)
            else:
                self._abandon(ward, now)
        return late_s

    def _maybe_exited(self, ward: Ward) -> None:
        if ward.exited:
            return
        # The pidfd has told what it knows.  When that is too early (a tracer is told first, and we only when
        # it lets go), it would be readable all the while: the process is polled from now on.
        self._unwatch(ward)
        if ward.child.exited():
            ward.exited_at = ward.due_at = self._clock()
            self.stderr.drain(ward.child, ward.stderr)
            ward.child.kill_group()

    def _unwatch(self, ward: Ward) -> None:
        if ward.child.exit_fd is not None:
            self._selector.unregister(ward.child.exit_fd)
            ward.child.close_exit_fd()

    def settle(self, now: float) -> None:
        """Reap and report the exited that left nothing behind; look at the others again a little later."""
        exited = [ward for ward in self.wards.values() if ward.exited and ward.due_at <= now]
        if not exited:
            return
        left = kill_left(exited)
        for ward in exited:
            pids = tuple(left.pids[ward.worker_id])
            waited_s = now - ward.exited_at
            if (pids or left.unsure) and waited_s < EMPTY_LIMIT_S:
                ward.due_at = now + min(0.05, 0.001 + waited_s / 2)
            else:
                self._finish(ward, pids)

    def _abandon(self, ward: Ward, now: float) -> None:
        self._logger.error(
            "process %d of worker %s outlived SIGKILL by %.0f s; it is left to the system",
            ward.child.pid,
            ward.worker_id,
            KILL_LIMIT_S,
        )
        ward.exited_at = now
        self._unwatch(ward)
        ward.child.abandon()
        self._finish(ward, (ward.child.pid,))

    def _finish(self, ward: Ward, survivors: tuple[int, ...]) -> None:
        self.stderr.drain(ward.child, ward.stderr)
        ward.stderr.close()
        status = ward.child.poll() or ExitStatus()
        del self.wards[ward.worker_id]
        if not survivors:
            GUARDIAN.unregister(ward.child.pid)
            REGISTRY.strike(ward.token)
        ward.child.close()
        self._post(ward.report(status, survivors))

    # After a failure, and in a forked child ----------------------------------------------------------

    def kill_all(self) -> None:
        """Send KILL to every process, whatever happens with the others."""
        for ward in self.wards.values():
            _quietly(functools.partial(ward.kill, math.inf), None)

    def end_all(self) -> None:
        """Reap and report the killed processes in bounded time, with as few assumptions as possible."""
        wards = list(self.wards.values())
        self.wards.clear()
        deadline = time.monotonic() + FAIL_LIMIT_S
        poll = select.poll()
        waiting = list(wards)
        while waiting and time.monotonic() < deadline:
            waiting = [ward for ward in waiting if not _quietly(ward.child.exited, True)]
            if waiting:
                poll.poll(5)
        for ward in wards:
            ward.exited_at = min(ward.exited_at, time.monotonic())
            _quietly(ward.child.kill_group, False)
        left: Left | None = None
        with contextlib.suppress(Exception):
            while wards:
                left = kill_left(wards)
                if not (any(left.pids.values()) or left.unsure) or time.monotonic() > deadline:
                    break
                poll.poll(5)
        for ward in wards:
            status = _quietly(ward.child.poll, None)
            survivors: tuple[int, ...] = ()
            if status is None:
                survivors = (ward.child.pid,)
                ward.child.abandon()
            else:
                GUARDIAN.unregister(ward.child.pid)
                if left is not None and not left.unsure and not left.pids[ward.worker_id]:
                    REGISTRY.strike(ward.token)
            _quietly(ward.child.close, None)
            _quietly(functools.partial(self._post, ward.report(status or ExitStatus(), survivors)), None)

    def forget(self) -> None:
        """Make this copy harmless in a forked child: the processes are the parent's."""
        for ward in self.wards.values():
            ward.child.forget()
        self.wards.clear()


def _quietly(call: Callable[[], T], otherwise: T) -> T:
    """Return what ``call`` returns, or ``otherwise`` when it raises."""
    try:
        return call()
    except Exception:
        return otherwise
