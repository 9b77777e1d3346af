"""What workers write to stderr: its tail is kept, its lines are logged or passed on to the host's fd 2.

THREAD: the watchdog's.  A `StderrReader`, one a pool, owns what was read and not yet passed on; a
`WorkerStderr` one worker's tail and its unfinished line.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import select
import selectors
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator

from .._text import escape
from .process import ChildProcess

__all__ = ("StderrReader", "WorkerStderr")

READ_BYTES = 1 << 16
"""A pipe's usual capacity, so that one read empties it."""
HELD_LIMIT_BYTES = 1 << 18
"""How much waits for the host's fd 2 until the workers have to wait; arbitrary."""
_DRAIN_LIMIT_BYTES = 1 << 20
"""What a pipe holds at most (Linux, pipe-max-size): more comes from a writer that is still alive."""
_HELD_AT_MOST_BYTES = HELD_LIMIT_BYTES + _DRAIN_LIMIT_BYTES
"""Room for the pipe of one worker that ends during the pause; what more of them leave behind is dropped."""
_MAX_LINE_BYTES = 8192
"""Arbitrary: more of one line is not worth a place in a log."""
_FLUSH_LIMIT_S = 1.0
"""How long an ending watchdog waits for the reader of the host's fd 2; arbitrary."""


class WorkerStderr:
    """Keeps the tail of one worker's stderr and logs its lines.

    Args:
        worker_id: Begins each line in the log.
        tail_bytes: How much is kept, >= 0.
        logger: Where complete lines go, at INFO; None: nowhere.
    """

    def __init__(self, worker_id: str, tail_bytes: int, logger: logging.Logger | None) -> None:
        self._worker_id = worker_id
        self._tail_bytes = tail_bytes
        self._logger = logger
        self._tail = bytearray()
        self._line = bytearray()
        self._cut = False

    @property
    def passed_on(self) -> bool:
        """Whether it goes to the host's fd 2 instead of the log."""
        return self._logger is None

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        self._tail += data
        del self._tail[: max(0, len(self._tail) - self._tail_bytes)]
        if self._logger is None or not self._logger.isEnabledFor(logging.INFO):
            return
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._extend(piece)
            self._log_line()
        self._extend(rest)

    def close(self) -> None:
        """Log the last line if it had no newline."""
        if self._line:
            self._log_line()

    @property
    def tail(self) -> str:
        """The last bytes as escaped text, not beginning inside a character."""
        raw = bytes(self._tail)
        if len(raw) == self._tail_bytes:
            start = next((i for i, byte in enumerate(raw[:4]) if byte & 0xC0 != 0x80), 0)
            raw = raw[start:]
        return escape(raw, keep_layout=True)

    def _extend(self, piece: bytes) -> None:
        room = _MAX_LINE_BYTES - len(self._line)
        self._line += piece[:room]
        self._cut = self._cut or len(piece) > room

    def _log_line(self) -> None:
        text = escape(bytes(self._line).removesuffix(b"\r"))
        if self._cut or len(text) > _MAX_LINE_BYTES:
            # Once more, for an escaped byte is up to four characters.
            text = text[:_MAX_LINE_BYTES] + " ... [cut]"
        self._line.clear()
        self._cut = False
        if self._logger is not None:
            # A handler of the user's may raise anything, and the watchdog has more to do than logging.
            with contextlib.suppress(Exception):
                self._logger.info("[%s] %s", self._worker_id, text)


class StderrReader:
    """Reads the stderr pipes of a pool's workers, and never waits for whoever reads the host's fd 2.

    While fd 2 is stuck, no more is read from the workers that are passed on: they then wait for its reader,
    as they would if they had inherited it.  Of those that end meanwhile a bounded part is kept.

    Args:
        selector: The watchdog's; the key's data is the function to call.

    Attributes:
        held: Read and not yet written to fd 2.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.held = bytearray()
        self._selector = selector
        # INVARIANT: {process: its record} of those added and not drained that are passed on.
        self._passed_on: dict[ChildProcess, WorkerStderr] = {}
        self._paused = False
        # Bytes of ended workers that found no room since `held` was last empty.
        self._dropped = 0
        # What gets the number of a closed fd 2 later is some file or connection of the host's.
        self._broken = not _is_open(2)

    def add(self, child: ChildProcess, record: WorkerStderr) -> None:
        """Read the process's stderr from now on."""
        if record.passed_on:
            self._passed_on[child] = record
        if not (record.passed_on and self._paused):
            self._listen(child, record)

    def drain(self, child: ChildProcess, record: WorkerStderr) -> None:
        """Read what is there and, unless called again, no more."""
        self._passed_on.pop(child, None)
        self._unlisten(child)
        self._read(child, record, _DRAIN_LIMIT_BYTES)

    def flush(self) -> None:
        """Wait a bounded time until everything that was read is passed on."""
        deadline = time.monotonic() + _FLUSH_LIMIT_S
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        while self.held and (wait_s := deadline - time.monotonic()) > 0:
            poll.poll(wait_s * 1000)
            self._write_held()

    def _listen(self, child: ChildProcess, record: WorkerStderr) -> None:
        if child.stderr_fd is not None:
            # Bounded, so that a flood leaves time for the watchdog's other duties.
            on_data = functools.partial(self._on_data, child, record)
            self._selector.register(child.stderr_fd, selectors.EVENT_READ, on_data)

    def _unlisten(self, child: ChildProcess) -> None:
        if child.stderr_fd is not None and child.stderr_fd in self._selector.get_map():
            self._selector.unregister(child.stderr_fd)

    def _on_data(self, child: ChildProcess, record: WorkerStderr) -> None:
        # Another worker's output may have begun the pause after the selector has told of both.
        if not (record.passed_on and self._paused):
            self._read(child, record, READ_BYTES)

    def _read(self, child: ChildProcess, record: WorkerStderr, limit_bytes: int) -> None:
        while limit_bytes > 0 and child.stderr_fd is not None:
            try:
                data = os.read(child.stderr_fd, min(READ_BYTES, limit_bytes))
            except BlockingIOError:
                break
            except OSError:
                data = b""  # broken: as good as its end
            if not data:
                self._unlisten(child)
                child.close_stderr()
                break
            limit_bytes -= len(data)
            record.feed(data)
            if record.passed_on and not self._broken:
                self._hold(data)
        if record.passed_on:
            self._pass_on()

    def _hold(self, data: bytes) -> None:
        if len(self.held) + len(data) > _HELD_AT_MOST_BYTES:
            self._write_held()
        # One gap at one place: after the first dropped byte nothing is taken until all before it is written.
        room = 0 if self._dropped else _HELD_AT_MOST_BYTES - len(self.held)
        if not self._broken:
            self.held += data[:room]
            self._dropped += len(data[room:])

    def _pass_on(self) -> None:
        """Write to fd 2, have its readiness told while something is held, pause and go on."""
        self._write_held()
        waiting = 2 in self._selector.get_map()
        if self.held and not waiting:
            self._selector.register(2, selectors.EVENT_WRITE, self._pass_on)
        elif waiting and not self.held:
            self._selector.unregister(2)
        if not self._paused and len(self.held) > HELD_LIMIT_BYTES:
            self._paused = True
            for child in self._passed_on:
                self._unlisten(child)
        elif self._paused and not self.held:
            self._paused = False
            for child, record in self._passed_on.items():
                self._listen(child, record)

    def _write_held(self) -> None:
        try:
            while self.held:
                with memoryview(self.held) as data:
                    count = write_ready(2, data)
                del self.held[:count]
                if self.held:
                    break
                if self._dropped:
                    self.held += b"\n[snakepit: %d bytes of stderr of ended workers dropped]\n" % self._dropped
                    self._dropped = 0
        except OSError:
            # Nobody reads the host's stderr any more; that is no reason to disturb the workers.
            self._broken = True
            self.held.clear()
            self._dropped = 0


def write_ready(fd: int, data: memoryview) -> int:
    """Write as much as ``fd``, which may be blocking, takes at once; return how many bytes that was.

    Raises:
        OSError: Nobody reads any more; raised here.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    written = 0
    with _writer(fd) as write, contextlib.suppress(BlockingIOError):
        while written < len(data) and poll.poll(0):
            written += write(data[written : written + select.PIPE_BUF])
    return written


@contextlib.contextmanager
def _writer(fd: int) -> Iterator[Callable[[memoryview], int]]:
    """Give a function that writes to what ``fd`` stands for now, and does not wait where that can be had.

    A terminal polls writable with one byte of room, a pipe until another writer has filled it.  The flags of
    ``fd`` itself are shared with every process that inherited it, so they stay as they are.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        # The type's flag keeps `socket.setdefaulttimeout` from changing those of ``fd``.
        kind = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)
        line = socket.socket(type=kind, fileno=fd)
        try:
            yield lambda data: line.send(data, socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0))
        finally:
            line.detach()
        return
    own_fd = None
    # Not regular files: the offset of another description would begin anew.
    if stat.S_ISFIFO(mode) or os.isatty(fd):
        path = f"/proc/self/fd/{fd}" if sys.platform == "linux" else f"/dev/fd/{fd}"
        with contextlib.suppress(OSError):
            own_fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        yield functools.partial(os.write, fd if own_fd is None else own_fd)
    finally:
        if own_fd is not None:
            os.close(own_fd)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
