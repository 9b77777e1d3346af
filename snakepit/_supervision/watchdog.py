"""The one thread of a pool that spawns, signals and reaps its workers, and tells how each of them ended.

THREAD: ``snakepit-<pool>-watchdog``.  It owns the pool's `Custody`, and with it every process from birth to
reaping.  Other threads talk to it by `Watchdog.spawn`, `condemn`, `kill`, `set_rss_probe` and `stop`, which
never block; it answers by posting the events of `_supervision/reports`.  When nothing is due, it sleeps without a
time-out.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import selectors
import threading
import weakref
from collections import deque
from collections.abc import Callable

import attrs

from .._clock import LONGEST_WAIT_S, monotonic_s
from .._inbox import Inbox
from .custody import Custody, SpawnFactory
from .guardian import GUARDIAN
from .memory import group_rss_bytes
from .process import ChildProcess
from .registry import REGISTRY
from .reports import RssMeasured, SpawnFailed, WatchdogFailed
from .spawn import SpawnSpec, start_process

__all__ = ("SpawnFactory", "Watchdog")

LATE_S = 1.0
"""Lateness of a due action that is worth a warning, and until a guardian is tried again; arbitrary."""


@attrs.frozen(eq=False)
class _SpawnCommand:
    worker_id: str
    spec: SpawnSpec | SpawnFactory


class Watchdog:
    """Spawns, watches, ends and reaps the workers of one pool.

    Args:
        name: The pool's, for the thread and the logs.
        post: Takes each event, on the watchdog's thread (`SpawnFailed` after its end: on the caller's).
        kill_grace_s: From TERM to KILL, >= 0.
        stderr_tail_bytes: How much of each worker's stderr is kept, >= 0.
        spawner: Makes the process.
        clock: Monotonic seconds.
        logger: For the watchdog's own messages.
    """

    def __init__(
        self,
        name: str,
        post: Callable[[object], None],
        *,
        kill_grace_s: float,
        stderr_tail_bytes: int,
        spawner: Callable[[SpawnSpec], ChildProcess] = start_process,
        clock: Callable[[], float] = monotonic_s,
        logger: logging.Logger | None = None,
    ) -> None:
        self.name = name
        self._post = post
        self._clock = clock
        self._logger = logger or logging.getLogger("snakepit.watchdog")
        # None: not started.  Its items are commands: a `_SpawnCommand`, or a function to call.
        self._inbox: Inbox | None = None
        self._go, self._wanted = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name=f"snakepit-{name}-watchdog", daemon=True)
        # Not epoll: poll has no descriptor of its own, and takes regular files.
        self._selector = selectors.PollSelector()
        self._custody = Custody(
            post,
            self._selector,
            kill_grace_s=kill_grace_s,
            stderr_tail_bytes=stderr_tail_bytes,
            spawner=spawner,
            clock=clock,
            logger=self._logger,
        )
        self._commands: deque[_SpawnCommand | Callable[[], None]] = deque()
        self._guardian_fd: int | None = None
        self._guardian_due = math.inf
        self._rss_interval_s = self._rss_due = math.inf
        self._stopping = False

    # For any thread ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: No thread to be had, or it was started before; raised here.
            OSError: No descriptor to be had; raised here.
        """
        if self._inbox is not None:
            raise RuntimeError(f"the watchdog of pool {self.name!r} was started before")
        self._inbox = Inbox()
        _started.add(self)
        try:
            self._thread.start()
            self._wanted = True
        except BaseException:
            self._inbox.close()
            raise
        finally:
            self._go.set()

    def spawn(self, worker_id: str, spec: SpawnSpec | SpawnFactory) -> None:
        """Start a process; answered by `Spawned` or `SpawnFailed`.

        Args:
            worker_id: Never used before in this pool.
            spec: What to start, or a function that says so, called on the watchdog's thread: it returns the
                spec and a function to call after the attempt (it closes descriptors meant for the child).
        """
        if not self._tell(_SpawnCommand(worker_id, spec)):
            self._post(SpawnFailed(worker_id, self._not_running()))

    def condemn(self, worker_id: str, *, grace_s: float) -> None:
        """End a process: TERM after ``grace_s`` seconds (0: now), KILL ``kill_grace_s`` later.

        A later call may bring the TERM forward, never put it off. An unknown worker is ignored.
        """
        self._tell(functools.partial(self._custody.condemn, worker_id, self._clock() + grace_s))

    def kill(self, worker_id: str) -> None:
        """KILL a process now. An unknown worker is ignored."""
        self._tell(functools.partial(self._custody.kill, worker_id))

    def kill_all(self) -> None:
        """KILL every process now, also those whose spawn was asked for before."""
        self._tell(self._kill_all)

    def set_rss_probe(self, interval_s: float | None) -> None:
        """Post `RssMeasured` for each live worker every ``interval_s`` seconds; None: no more."""
        self._tell(functools.partial(self._set_rss_probe, math.inf if interval_s is None else interval_s))

    def stop(self) -> None:
        """Let the thread end once no process is left; ends none itself. May be repeated."""
        self._tell(self._stop)

    @property
    def ident(self) -> int | None:
        """The thread's identifier, None before its start."""
        return self._thread.ident

    def join(self, timeout: float | None = None) -> bool:
        """Wait at most ``timeout`` seconds for the thread's end; True if it has ended or never ran."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _tell(self, command: _SpawnCommand | Callable[[], None]) -> bool:
        return self._inbox is not None and self._inbox.post(command)

    def _not_running(self) -> RuntimeError:
        return RuntimeError(f"the watchdog of pool {self.name!r} has ended or was never started")

    # THREAD: everything below is for the watchdog's thread -------------------------------------------

    def _run(self) -> None:
        assert self._inbox is not None
        # RACE: 1. the thread is made, 2. Ctrl-C ends the wait for its start, so that nobody will ever stop it.
        # (tests/integration/test_host_faults_system.py::test_ctrl_c_in_the_start_of_a_thread_leaves_nothing)
        self._go.wait()
        if not self._wanted:
            return
        try:
            self._loop(self._inbox)
        except BaseException as error:
            self._fail(error)
        finally:
            for command in (*self._commands, *self._inbox.close()):
                if isinstance(command, _SpawnCommand):
                    with contextlib.suppress(Exception):  # the receiver is what failed: nobody to tell
                        self._post(SpawnFailed(command.worker_id, self._not_running()))
            self._unwatch_guardian()
            GUARDIAN.release(self._custody.run)
            REGISTRY.release(self._custody.run)

    def _loop(self, inbox: Inbox) -> None:
        self._selector.register(inbox.fd, selectors.EVENT_READ, inbox.clear_wake)
        while True:
            self._commands += inbox.drain()
            self._obey()
            self._do_due(self._clock())
            self._custody.settle(self._clock())
            wait_s = 0.0
            if not self._commands and inbox.may_sleep():
                if self._stopping and not self._custody.wards:
                    break
                due_at = min(self._custody.next_due(), self._rss_due, self._guardian_due)
                wait_s = max(due_at - self._clock(), 0)
            for key, _ in self._selector.select(None if wait_s == math.inf else min(wait_s, LONGEST_WAIT_S)):
                key.data()
        self._custody.stderr.flush()

    def _obey(self) -> None:
        """Follow the commands up to and including one spawn, so that many spawns delay no deadline."""
        while self._commands:
            command = self._commands.popleft()
            if isinstance(command, _SpawnCommand):
                self._spawn(command)
                return
            command()

    def _spawn(self, command: _SpawnCommand) -> None:
        REGISTRY.acquire(self._custody.run)
        try:
            GUARDIAN.acquire(self._custody.run)
            self._watch_guardian()
        except Exception as error:
            self._post(SpawnFailed(command.worker_id, error))
        else:
            self._custody.spawn(command.worker_id, command.spec)

    def _kill_all(self) -> None:
        for worker_id in self._custody.wards:
            self._custody.kill(worker_id)

    def _stop(self) -> None:
        self._stopping = True

    def _do_due(self, now: float) -> None:
        late_s = self._custody.do_due(now)
        if self._guardian_due <= now or self._custody.polls:
            self._guardian_ended()
        if self._rss_due <= now:
            late_s = max(late_s, now - self._rss_due)
            self._measure(now)
        if late_s > LATE_S:
            self._logger.warning(
                "watchdog of pool %r starved: an action was done %.1f s late; every time-out may be late "
                "while this host is short of CPU or was suspended",
                self.name,
                late_s,
            )

    # The guardian

    def _watch_guardian(self) -> None:
        if self._guardian_fd is None:
            self._guardian_fd = GUARDIAN.open_exit_fd()
            if self._guardian_fd is not None:
                self._selector.register(self._guardian_fd, selectors.EVENT_READ, self._guardian_ended)

    def _unwatch_guardian(self) -> None:
        fd, self._guardian_fd = self._guardian_fd, None
        if fd is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(fd)
            os.close(fd)

    def _guardian_ended(self) -> None:
        self._guardian_due = math.inf
        self._unwatch_guardian()
        try:
            GUARDIAN.ensure()
            self._watch_guardian()
        except OSError as error:
            self._logger.error("the guardian has ended and could not be replaced or watched yet: %s", error)
            self._guardian_due = self._clock() + LATE_S

    # Memory

    def _set_rss_probe(self, interval_s: float) -> None:
        self._rss_interval_s = interval_s
        self._rss_due = self._clock() + interval_s

    def _measure(self, now: float) -> None:
        self._rss_due = now + self._rss_interval_s
        live = {ward.child.pgid: ward for ward in self._custody.wards.values() if not ward.exited}
        if not live:
            return
        try:
            rss_bytes = group_rss_bytes(live)
        except Exception as error:
            self._logger.debug("resident memory of pool %r could not be measured: %r", self.name, error)
            return
        for pgid, ward in live.items():
            self._post(RssMeasured(ward.worker_id, rss_bytes[pgid]))

    # After a failure, and in a forked child

    def _fail(self, error: BaseException) -> None:
        self._custody.kill_all()
        with contextlib.suppress(Exception):
            self._post(WatchdogFailed(error))
        with contextlib.suppress(Exception):  # a handler of the user's
            self._logger.critical("the watchdog of pool %r failed", self.name, exc_info=error)
        self._custody.end_all()

    def forget(self) -> None:
        """Make this copy harmless in a forked child: the threads and the processes are the parent's."""
        self._post = _ignore
        self._custody.forget()
        if self._guardian_fd is not None:
            os.close(self._guardian_fd)
            self._guardian_fd = None
        if self._inbox is not None:
            self._inbox.replace_lock()
            self._inbox.close()


def _ignore(event: object) -> None:
    """Stands in for the receiver in a forked child, which has none."""


_started: weakref.WeakSet[Watchdog] = weakref.WeakSet()


def _forget_all_after_fork() -> None:
    for watchdog in list(_started):
        watchdog.forget()


os.register_at_fork(after_in_child=_forget_all_after_fork)
