"""The one thread of a pool that spawns, signals and reaps its workers, and tells how each of them ended.

THREAD: ``snakepit-<pool>-watchdog``.  It owns every `ChildProcess` from birth to reaping.  Other threads
talk to it by `Watchdog.spawn`, `condemn`, `kill`, `set_rss_probe` and `stop`, which never block; it answers
by posting the events of `_process`.  It sleeps without a time-out when nothing is due.

A worker's end, in this order: the exit is seen (pidfd), stderr is read empty, the rest of its group gets
SIGKILL and is verified to be gone, so are descendants that left the group, the leader is reaped, the guardian
strikes it off its list, `Exited` is posted.  The group is dealt with before the reap because until then its
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
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

import attrs

from . import _guardian, _process
from ._guardian import GUARDIAN
from ._process import (
    ChildProcess,
    Exited,
    ExitStatus,
    RssMeasured,
    Spawned,
    SpawnFailed,
    SpawnSpec,
    StderrRecord,
    WatchdogFailed,
)
from .errors import InternalError

__all__ = ()

T = TypeVar("T")

SpawnFactory = Callable[[], tuple[SpawnSpec, Callable[[], None]]]
"""Run on the watchdog's thread: returns what to start, and what to call once that was tried."""

KILL_LIMIT_S = 5.0
"""How long a process may outlive SIGKILL (uninterruptible sleep) until it is called a survivor; arbitrary."""
EMPTY_LIMIT_S = 1.0
"""The same for what an exited leader left in its group; arbitrary."""
FAIL_LIMIT_S = 2.0
"""How long a failed watchdog waits for the exits of the processes it has killed; arbitrary."""
POLL_S = 0.02
"""How often the children are looked at where there are no pidfds; arbitrary."""
LATE_S = 1.0
"""Lateness of a due action that is worth a warning; arbitrary."""
_HELD_LIMIT_BYTES = 1 << 18
_FLUSH_LIMIT_S = 1.0


class _Phase(Enum):
    RUNNING = "running"
    TERMED = "termed"
    KILLED = "killed"
    EXITED = "exited"


@attrs.define(eq=False)
class _Ward:
    """One process and how far its end has come."""

    worker_id: str
    child: ChildProcess
    token: str
    start: int
    stderr: StderrRecord
    forward: bool
    phase: _Phase = _Phase.RUNNING
    # INVARIANT: monotonic seconds of this phase's next step: TERM, KILL, giving up, the next look at the
    # group; inf: none.
    due_at: float = math.inf
    exit_at: float = math.inf
    expected: bool = False
    polled: bool = False
    failure: Exception | None = None


@attrs.frozen(eq=False)
class _SpawnCommand:
    worker_id: str
    spec: SpawnSpec | SpawnFactory


class _Forwarder:
    """Passes workers' stderr on to the host's fd 2 without ever waiting for whoever reads that."""

    def __init__(self) -> None:
        self.held = bytearray()
        self.broken = False

    def push(self, data: bytes) -> None:
        if not self.broken:
            self.held += data

    def flush(self) -> None:
        if self.held:
            try:
                with memoryview(self.held) as data:
                    count = _process.write_ready(2, data)
                del self.held[:count]
            except OSError:
                # Nobody reads the host's stderr any more; that is no reason to disturb the workers.
                self.broken = True
                self.held.clear()


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
        spawner: Callable[[SpawnSpec], ChildProcess] = ChildProcess.start,
        clock: Callable[[], float] = time.monotonic,
        logger: logging.Logger | None = None,
    ) -> None:
        self.name = name
        self.run = os.urandom(8).hex()
        self._post = post
        self._kill_grace_s = kill_grace_s
        self._tail_bytes = stderr_tail_bytes
        self._spawner = spawner
        self._clock = clock
        self._logger = logger or logging.getLogger("snakepit.watchdog")
        # LOCK: protects `_closed` and the wake fds, from the check to the write; reentrant because a
        # finalizer that condemns may run inside it; never held while calling out.
        self._lock = threading.RLock()
        self._inbox: deque[_SpawnCommand | Callable[[], None]] = deque()
        self._closed = False
        self._wake_fds: tuple[int, int] | None = None
        self._thread = threading.Thread(target=self._run, name=f"snakepit-{name}-watchdog", daemon=True)
        # INVARIANT: {worker_id: ward} of every process not yet reaped and reported; watchdog's thread only.
        self._wards: dict[str, _Ward] = {}
        self._spawned = 0
        # Not epoll: poll has no descriptor of its own, and takes regular files.
        self._selector = selectors.PollSelector()
        self._forwarder = _Forwarder()
        self._paused = False
        self._guardian_fd: int | None = None
        self._guardian_due = math.inf
        self._rss_interval_s: float | None = None
        self._rss_due = math.inf
        self._stopping = False
        _watchdogs.add(self)

    # For any thread ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread.

        Raises:
            RuntimeError: No thread to be had, or this is a forked child's copy; raised here.
            OSError: No descriptor to be had; raised here.
        """
        with self._lock:
            if self._closed or self._wake_fds is not None:
                raise RuntimeError(f"the watchdog of pool {self.name!r} was started before or has ended")
            self._wake_fds = os.pipe()
            for fd in self._wake_fds:
                os.set_blocking(fd, False)
        try:
            self._thread.start()
        except BaseException:
            self._close_inbox()
            raise

    def spawn(self, worker_id: str, spec: SpawnSpec | SpawnFactory) -> None:
        """Start a process; answered by `Spawned` or `SpawnFailed`.

        Args:
            worker_id: Never used before in this pool.
            spec: What to start, or a function that says so, called on the watchdog's thread: it returns the
                spec and a function to call after the attempt (it closes descriptors meant for the child).
        """
        if not self._tell(_SpawnCommand(worker_id, spec)):
            self._post(SpawnFailed(worker_id, self._ended_error()))

    def condemn(self, worker_id: str, *, grace_s: float) -> None:
        """End a process: TERM after ``grace_s`` seconds (0: now), KILL ``kill_grace_s`` later.

        A later call may bring the TERM forward, never put it off. An unknown worker is ignored.
        """
        self._tell(functools.partial(self._condemn, worker_id, self._clock() + grace_s))

    def kill(self, worker_id: str) -> None:
        """KILL a process now. An unknown worker is ignored."""
        self._tell(functools.partial(self._kill_worker, worker_id))

    def set_rss_probe(self, interval_s: float | None) -> None:
        """Post `RssMeasured` for each live worker every ``interval_s`` seconds; None: no more."""
        self._tell(functools.partial(self._set_rss_probe, interval_s))

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
        with self._lock:
            if self._closed:
                return False
            self._inbox.append(command)
            if self._wake_fds is not None:
                with contextlib.suppress(BlockingIOError):  # full: it will wake up anyway
                    os.write(self._wake_fds[1], b"\0")
        return True

    def _ended_error(self) -> RuntimeError:
        return RuntimeError(f"the watchdog of pool {self.name!r} has ended")

    # THREAD: everything below is for the watchdog's thread -------------------------------------------

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            self._fail(error)
        finally:
            pending = self._close_inbox()
            for command in pending:
                if isinstance(command, _SpawnCommand):
                    with contextlib.suppress(Exception):  # the receiver is what failed: nobody to tell
                        self._post(SpawnFailed(command.worker_id, self._ended_error()))
            self._unwatch_guardian()
            GUARDIAN.release(self.run)

    def _loop(self) -> None:
        assert self._wake_fds is not None
        self._selector.register(self._wake_fds[0], selectors.EVENT_READ, self._read_wakes)
        while True:
            busy = self._obey()
            now = self._clock()
            self._do_due(now)
            self._settle(self._clock())
            if self._stopping and not self._wards:
                with self._lock:
                    if not self._inbox:
                        self._closed = True
                        break
            wait_s = 0.0 if busy else self._next_due() - self._clock()
            for key, _ in self._selector.select(None if wait_s == math.inf else max(wait_s, 0)):
                key.data()
        self._flush_forwarder()

    def _close_inbox(self) -> list[_SpawnCommand | Callable[[], None]]:
        with self._lock:
            self._closed = True
            fds, self._wake_fds = self._wake_fds, None
            for fd in fds or ():
                os.close(fd)
            pending = list(self._inbox)
            self._inbox.clear()
        return pending

    def _read_wakes(self) -> None:
        assert self._wake_fds is not None
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_fds[0], _process.READ_BYTES)

    def _obey(self) -> bool:
        """Follow the commands up to and including one spawn, so that many spawns delay no deadline."""
        while self._inbox:
            command = self._inbox.popleft()
            if isinstance(command, _SpawnCommand):
                self._spawn(command)
                return True
            command()
        return False

    def _next_due(self) -> float:
        due = min((ward.due_at for ward in self._wards.values()), default=math.inf)
        if any(ward.polled for ward in self._wards.values()):
            due = min(due, self._clock() + POLL_S)
        return min(due, self._rss_due, self._guardian_due)

    # Birth

    def _spawn(self, command: _SpawnCommand) -> None:
        if command.worker_id in self._wards:
            raise InternalError(f"worker id {command.worker_id!r} is in use")
        try:
            GUARDIAN.acquire(self.run)
            self._watch_guardian()
            ward = self._adopt(command)
            GUARDIAN.register(ward.child.pid, ward.start)
        except Exception as error:
            adopted = self._wards.get(command.worker_id)
            if adopted is None:
                self._post(SpawnFailed(command.worker_id, error))
            else:
                adopted.failure = error
                self._kill(adopted)
            return
        fds = ward.child.release_channel_fds()
        self._post(Spawned(command.worker_id, ward.child.pid, *attrs.astuple(fds)))

    def _adopt(self, command: _SpawnCommand) -> _Ward:
        release: Callable[[], None] | None = None
        spec = command.spec
        try:
            if not isinstance(spec, SpawnSpec):
                spec, release = spec()
            self._spawned += 1
            token = f"{self.run}-{self._spawned}"
            child = self._spawner(attrs.evolve(spec, env={**spec.env, _guardian.RUN_VARIABLE: token}))
        finally:
            if release is not None:
                try:
                    release()
                except Exception:  # a child that was made is worth more than what could not be released
                    self._logger.exception("after the spawn of worker %s", command.worker_id)
        forward = spec.output == "inherit"
        logger = None if forward else logging.getLogger("snakepit.worker")
        record = StderrRecord(command.worker_id, self._tail_bytes, logger)
        ward = _Ward(command.worker_id, child, token, _guardian.process_start(child.pid), record, forward)
        self._wards[command.worker_id] = ward
        if child.exit_fd is None:
            ward.polled = True
        else:
            on_exit = functools.partial(self._maybe_exited, ward)
            self._selector.register(child.exit_fd, selectors.EVENT_READ, on_exit)
        if not (forward and self._paused):
            self._listen(ward)
        return ward

    # stderr

    def _listen(self, ward: _Ward) -> None:
        if ward.child.stderr_fd is not None:
            on_data = functools.partial(self._read_stderr, ward, _process.READ_BYTES)
            self._selector.register(ward.child.stderr_fd, selectors.EVENT_READ, on_data)

    def _unlisten(self, ward: _Ward) -> None:
        fd = ward.child.stderr_fd
        if fd is not None and fd in self._selector.get_map():
            self._selector.unregister(fd)

    def _read_stderr(self, ward: _Ward, limit_bytes: int) -> None:
        """Read what is there, at most ``limit_bytes``, so that a flood leaves time for the other duties."""
        while limit_bytes > 0 and ward.child.stderr_fd is not None:
            try:
                data = os.read(ward.child.stderr_fd, _process.READ_BYTES)
            except BlockingIOError:
                break
            if not data:
                self._unlisten(ward)
                ward.child.close_stderr()
                break
            limit_bytes -= len(data)
            ward.stderr.feed(data)
            if ward.forward:
                self._forwarder.push(data)
        if ward.forward:
            self._forward()

    def _forward(self) -> None:
        """Write on to fd 2; while it is stuck, read no more from the workers that are passed on.

        They then wait for the reader of the host's stderr, as they would if they had inherited it.
        """
        self._forwarder.flush()
        held = len(self._forwarder.held)
        waiting = 2 in self._selector.get_map()
        if held and not waiting:
            self._selector.register(2, selectors.EVENT_WRITE, self._forward)
        elif waiting and not held:
            self._selector.unregister(2)
        if self._paused != (held > (0 if self._paused else _HELD_LIMIT_BYTES)):
            self._paused = not self._paused
            for ward in self._wards.values():
                if ward.forward and ward.phase is not _Phase.EXITED:
                    (self._unlisten if self._paused else self._listen)(ward)

    def _flush_forwarder(self) -> None:
        deadline = time.monotonic() + _FLUSH_LIMIT_S
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        while self._forwarder.held and (wait_s := deadline - time.monotonic()) > 0:
            poll.poll(wait_s * 1000)
            self._forwarder.flush()

    # The way to the end

    def _condemn(self, worker_id: str, term_at: float) -> None:
        ward = self._wards.get(worker_id)
        if ward is not None and ward.phase is _Phase.RUNNING:
            ward.due_at = min(ward.due_at, term_at)

    def _kill_worker(self, worker_id: str) -> None:
        ward = self._wards.get(worker_id)
        if ward is not None and ward.phase in (_Phase.RUNNING, _Phase.TERMED):
            self._kill(ward)

    def _stop(self) -> None:
        self._stopping = True

    def _do_due(self, now: float) -> None:
        late_s = 0.0
        for ward in list(self._wards.values()):
            if ward.polled and ward.phase is not _Phase.EXITED:
                self._maybe_exited(ward)
            if ward.due_at > now or ward.phase is _Phase.EXITED:
                continue
            late_s = max(late_s, now - ward.due_at)
            if ward.phase is _Phase.RUNNING:
                self._terminate(ward, now)
            elif ward.phase is _Phase.TERMED:
                self._kill(ward)
            else:
                self._abandon(ward)
        if self._guardian_due <= now or any(ward.polled for ward in self._wards.values()):
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

    def _terminate(self, ward: _Ward, now: float) -> None:
        # The grace counts from the TERM that was sent: a starved host does not take it from the worker.
        ward.phase, ward.due_at, ward.expected = _Phase.TERMED, now + self._kill_grace_s, True
        ward.child.signal_group(signal.SIGTERM)
        ward.child.signal_group(signal.SIGCONT)  # a stopped process cannot act on TERM

    def _kill(self, ward: _Ward) -> None:
        ward.phase, ward.due_at, ward.expected = _Phase.KILLED, self._clock() + KILL_LIMIT_S, True
        ward.child.signal_group(signal.SIGKILL)

    def _maybe_exited(self, ward: _Ward) -> None:
        if ward.phase is _Phase.EXITED:
            return
        if not ward.child.exited():
            # A tracer is told first and we only when it lets go: the pidfd would be readable all the while.
            if not ward.polled and ward.child.exit_fd is not None:
                self._selector.unregister(ward.child.exit_fd)
                ward.polled = True
            return
        if not ward.polled and ward.child.exit_fd is not None:
            self._selector.unregister(ward.child.exit_fd)
        ward.phase, ward.polled = _Phase.EXITED, False
        ward.exit_at = ward.due_at = self._clock()
        self._unlisten(ward)
        self._read_stderr(ward, _process.DRAIN_LIMIT_BYTES)
        ward.child.kill_remaining()

    def _settle(self, now: float) -> None:
        """Reap and report the exited whose groups are empty; look at the others again a little later."""
        exited = [ward for ward in self._wards.values() if ward.phase is _Phase.EXITED and ward.due_at <= now]
        if not exited:
            return
        left = self._kill_left(exited)
        for ward in exited:
            pids = tuple(left[ward.worker_id])
            if pids and now < ward.exit_at + EMPTY_LIMIT_S:
                ward.due_at = now + min(0.05, 0.001 + (now - ward.exit_at) / 2)
            else:
                self._finish(ward, pids)

    def _kill_left(self, exited: list[_Ward]) -> dict[str, list[int]]:
        """Kill what exited workers left behind; return ``{worker_id: [pid]}`` of what is still there."""
        left: dict[str, list[int]] = {ward.worker_id: [] for ward in exited}
        table = _guardian.process_table()
        if table is None:
            for ward in exited:
                ward.child.poll()  # a zombie leader would count as a member
                if not ward.child.group_is_empty():
                    left[ward.worker_id].append(ward.child.pid)
            return left
        # A leader that somebody else has reaped no longer reserves its number.
        groups = {ward.child.pgid: ward for ward in exited if not ward.child.reaped}
        tokens = {ward.token: ward for ward in exited}
        oldest = min(ward.start for ward in exited)
        for pid, _, pgid, start, _ in table:
            member = groups.get(pgid)
            if member is not None:
                member.child.kill_remaining()
                left[member.worker_id].append(pid)
            elif start >= oldest:
                # It may have left the group by setsid; its environment still tells whose it is.
                escaped = tokens.get(_guardian.run_token(pid))
                if escaped is not None and _guardian.kill_verified(pid, start):
                    left[escaped.worker_id].append(pid)
        return left

    def _abandon(self, ward: _Ward) -> None:
        self._logger.error(
            "process %d of worker %s outlived SIGKILL by %.0f s; it is left to the system",
            ward.child.pid,
            ward.worker_id,
            KILL_LIMIT_S,
        )
        ward.exit_at = self._clock()
        if ward.child.exit_fd is not None and not ward.polled:
            self._selector.unregister(ward.child.exit_fd)
        ward.child.abandon()
        self._finish(ward, (ward.child.pid,))

    def _finish(self, ward: _Ward, survivors: tuple[int, ...]) -> None:
        self._unlisten(ward)
        self._read_stderr(ward, _process.DRAIN_LIMIT_BYTES)
        ward.stderr.close()
        status = ward.child.poll() or ExitStatus()
        del self._wards[ward.worker_id]
        if not survivors:
            GUARDIAN.unregister(ward.child.pid)
        ward.child.close()
        self._post(_exited(ward, status, survivors))

    # Other duties

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
        try:
            GUARDIAN.ensure()
        except OSError as error:
            self._logger.error("the guardian has ended and could not be replaced yet: %s", error)
            self._guardian_due = self._clock() + LATE_S
        self._unwatch_guardian()
        self._watch_guardian()

    def _set_rss_probe(self, interval_s: float | None) -> None:
        self._rss_interval_s = interval_s
        self._rss_due = math.inf if interval_s is None else self._clock() + interval_s

    def _measure(self, now: float) -> None:
        assert self._rss_interval_s is not None
        self._rss_due = now + self._rss_interval_s
        live = {ward.child.pgid: ward for ward in self._wards.values() if ward.phase is not _Phase.EXITED}
        if not live:
            return
        try:
            table = _guardian.process_table()
            if table is None:
                rss_bytes = _process.group_rss_bytes(live)
            else:
                rss_bytes = dict.fromkeys(live, 0)
                page_bytes = os.sysconf("SC_PAGE_SIZE")
                for _, _, pgid, _, pages in table:
                    if pgid in rss_bytes:
                        rss_bytes[pgid] += pages * page_bytes
        except Exception as error:
            self._logger.debug("resident memory of pool %r could not be measured: %r", self.name, error)
            return
        for pgid, ward in live.items():
            self._post(RssMeasured(ward.worker_id, rss_bytes[pgid]))

    def _fail(self, error: BaseException) -> None:
        """End every process in bounded time, with as few assumptions as possible: the loop has raised."""
        self._logger.critical("the watchdog of pool %r failed", self.name, exc_info=error)
        wards = list(self._wards.values())
        self._wards.clear()
        for ward in wards:
            with contextlib.suppress(Exception):  # each step for each process, whatever the others did
                ward.expected = True
                ward.child.signal_group(signal.SIGKILL)
        with contextlib.suppress(Exception):
            self._post(WatchdogFailed(error))
        deadline = time.monotonic() + FAIL_LIMIT_S
        poll = select.poll()
        waiting = list(wards)
        while waiting and time.monotonic() < deadline:
            waiting = [ward for ward in waiting if not _quietly(ward.child.exited, True)]
            if waiting:
                poll.poll(5)
        for ward in wards:
            ward.exit_at = self._clock() if math.isinf(ward.exit_at) else ward.exit_at
            _quietly(ward.child.kill_remaining, False)
        with contextlib.suppress(Exception):
            self._kill_left(wards)
        for ward in wards:
            status = _quietly(ward.child.poll, None)
            survivors: tuple[int, ...] = ()
            if status is None:
                survivors = (ward.child.pid,)
                ward.child.abandon()
            else:
                GUARDIAN.unregister(ward.child.pid)
            with contextlib.suppress(Exception):
                ward.child.close()
            with contextlib.suppress(Exception):
                self._post(_exited(ward, status or ExitStatus(), survivors))

    def forget(self) -> None:
        """Make this copy harmless in a forked child: the threads and the processes are the parent's."""
        self._lock = threading.RLock()
        self._post = _ignore
        for ward in self._wards.values():
            ward.child.forget()
        self._wards.clear()
        if self._guardian_fd is not None:
            os.close(self._guardian_fd)
            self._guardian_fd = None
        self._close_inbox()


def _quietly(call: Callable[[], T], otherwise: T) -> T:
    try:
        return call()
    except Exception:
        return otherwise


def _ignore(event: object) -> None:
    """Stands in for the receiver in a forked child, which has none."""


def _exited(ward: _Ward, status: ExitStatus, survivors: tuple[int, ...]) -> Exited | SpawnFailed:
    if ward.failure is not None:
        return SpawnFailed(ward.worker_id, ward.failure)
    uptime_s = ward.exit_at - ward.child.started_at
    return Exited(
        ward.worker_id,
        ward.child.pid,
        status.code,
        status.signal,
        ward.stderr.tail,
        ward.expected,
        uptime_s,
        survivors,
    )


_watchdogs: weakref.WeakSet[Watchdog] = weakref.WeakSet()


def _forget_all_after_fork() -> None:
    for watchdog in list(_watchdogs):
        watchdog.forget()


os.register_at_fork(after_in_child=_forget_all_after_fork)
