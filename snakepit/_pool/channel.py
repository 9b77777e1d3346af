"""Non-blocking frames over one worker's descriptors.

Runs on the manager's thread; owns the descriptors and what could not be written yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from collections import deque

from .._wire.frames import Buffer

__all__ = ("READ_BYTES", "Channel")

READ_BYTES = 65536
"""Bytes per read: what a pipe holds unless enlarged, and below the size from which malloc maps pages anew."""

_DRAIN_BYTES = 4 << 20
"""More than any pipe holds; whoever still writes after its worker has ended is not waited for."""

_LARGE_PIPE_BYTES = 1 << 20
"""What a pipe is made to hold once something large passes it: all that an ordinary user may ask for."""

_SMALLER_PIPE_BYTES = 1 << 18
"""What it gets when many others are large already: the pages in all pipes of a user are limited (64 MiB)."""

# INVARIANT: one entry for each pipe that may still become large.  Any manager's thread; each use is one operation.
_grants: list[int] = [_LARGE_PIPE_BYTES] * 16

_BUFFERS_PER_WRITE = 64
"""Arbitrary, below the system's limit of 1,024."""


class Channel:
    """Two pipes to a worker, and the pipe of claim tokens.

    Args:
        request_fd: Write end of the request pipe, non-blocking.
        reply_fd: Read end of the reply pipe, non-blocking.
        claim_read_fd: The host's read end of the claim pipe, or None.
        claim_write_fd: Its write end, or None.

    Attributes:
        closed_by_worker: True once the reply pipe has ended, or could not be read.
        error: Why a pipe cannot be used any more, though the worker may have done nothing; or None.
    """

    def __init__(
        self,
        request_fd: int,
        reply_fd: int,
        claim_read_fd: int | None = None,
        claim_write_fd: int | None = None,
    ) -> None:
        self.request_fd: int | None = request_fd
        self.reply_fd = reply_fd
        self._claim_read_fd = claim_read_fd
        self._claim_write_fd = claim_write_fd
        self._unwritten: deque[memoryview] = deque()
        # INVARIANT: the descriptors whose pipes are to be enlarged when that helps, and how many got a grant.
        self._small = {request_fd, reply_fd}
        self._granted = 0
        self.closed_by_worker = False
        self.error: OSError | None = None

    @property
    def wants_write(self) -> bool:
        """True while something waits for the pipe to take it."""
        return bool(self._unwritten) and self.request_fd is not None

    @property
    def has_claims(self) -> bool:
        """True when requests can be taken back from this worker."""
        return self._claim_read_fd is not None

    def send(self, buffers: list[Buffer]) -> None:
        """Write as much as the pipe takes now; the rest waits for ``flush``, and must not change until then."""
        # A pipe without a reader is not reported here: the worker's exit follows and says more.
        if self.request_fd is None:
            return
        if self._unwritten:
            self._unwritten.extend(map(memoryview, buffers))
            return
        if len(buffers) == 1:
            data = buffers[0]
            try:
                written = os.write(self.request_fd, data)
            except BlockingIOError:
                written = 0
            except OSError as error:
                self._cannot_write(error)
                return
            if written == len(data):
                return
            self._unwritten.append(memoryview(data)[written:])
            self._enlarge(self.request_fd)
            return
        self._unwritten.extend(map(memoryview, buffers))
        self.flush()

    def flush(self) -> None:
        """Write as much of the rest as the pipe takes now."""
        while self._unwritten and self.request_fd is not None:
            try:
                written = os.writev(self.request_fd, list(itertools.islice(self._unwritten, _BUFFERS_PER_WRITE)))
            except BlockingIOError:
                self._enlarge(self.request_fd)
                return
            except OSError as error:
                self._cannot_write(error)
                return
            while written:
                first = self._unwritten[0]
                if written < len(first):
                    self._unwritten[0] = first[written:]
                    break
                written -= len(first)
                self._unwritten.popleft()

    def _cannot_write(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):
            self.error = error
        self.close_requests()

    def receive(self) -> bytes:
        """Return what has arrived, at most READ_BYTES; sets ``closed_by_worker`` at the end of the stream."""
        try:
            data = os.read(self.reply_fd, READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            self.error = error
            self.closed_by_worker = True
            return b""
        if not data:
            self.closed_by_worker = True
        elif len(data) == READ_BYTES:
            self._enlarge(self.reply_fd)
        return data

    def receive_into(self, room: memoryview) -> int:
        """Read what has arrived to ``room`` and return how much that was; otherwise like ``receive``."""
        self._enlarge(self.reply_fd)
        try:
            count = os.readv(self.reply_fd, (room,))
        except BlockingIOError:
            return 0
        except OSError as error:
            self.error = error
            self.closed_by_worker = True
            return 0
        if not count:
            self.closed_by_worker = True
        return count

    def _enlarge(self, fd: int) -> None:
        """Let a pipe hold more, once: the ends that share a large message then wait for each other less often."""
        if fd not in self._small or not hasattr(fcntl, "F_SETPIPE_SZ"):
            return
        self._small.discard(fd)
        try:
            size = _grants.pop()
            self._granted += 1
        except IndexError:
            size = _SMALLER_PIPE_BYTES
        # Not allowed, or no pipe: it is only slower.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)

    def drain(self) -> bytes:
        """Return everything that is left in the reply pipe of a worker that has ended."""
        chunks: list[bytes] = []
        size = 0
        while size < _DRAIN_BYTES:
            try:
                data = os.read(self.reply_fd, READ_BYTES)
            except OSError:
                # Empty, or broken: it has no more to give.
                break
            if not data:
                break
            chunks.append(data)
            size += len(data)
        return b"".join(chunks)

    def grant(self, count: int) -> None:
        """Put ``count`` claim tokens into their pipe; before the requests that need them."""
        # INVARIANT: also when nothing can be written any more: what was never sent must be possible to take back
        # (tests/unit/test_channel.py::test_what_could_not_be_written_can_be_taken_back).
        if self._claim_write_fd is None:
            return
        try:
            granted = os.write(self._claim_write_fd, b"x" * count)
        except BlockingIOError:
            granted = 0
        if granted != count:
            # Few tokens are ever out, so the worker has filled the pipe itself (through /proc/self/fd).
            self.close_requests()

    def take_back(self, count: int) -> int:
        """Read up to ``count`` unclaimed tokens back; each is a request that the worker will not run."""
        if self._claim_read_fd is None or count <= 0:
            return 0
        try:
            return len(os.read(self._claim_read_fd, count))
        except OSError:
            # Empty; or broken, and what cannot be taken back counts as begun.
            return 0

    def close_requests(self) -> None:
        """Close the request pipe: the worker reads the end of its input and should exit."""
        self._unwritten.clear()
        if self.request_fd is not None:
            os.close(self.request_fd)
            self.request_fd = None

    def close(self) -> None:
        """Release every descriptor."""
        self.close_requests()
        for fd in (self.reply_fd, self._claim_read_fd, self._claim_write_fd):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.reply_fd = -1
        _grants.extend([_LARGE_PIPE_BYTES] * self._granted)
        self._granted = 0
        self._claim_read_fd = self._claim_write_fd = None
