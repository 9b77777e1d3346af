"""A place where all workers of a pool have to be at once: the proof that so many are ready."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT_S = 60.0
"""A pool that is not there after that will not come; far above any figure of the benchmarks."""


class Meeting:
    """The host's end of the task ``meet``.

    Args:
        folder: Where the socket is made.
        limit_s: How long to wait for one worker.
    """

    def __init__(self, folder: Path, limit_s: float = LIMIT_S) -> None:
        self.path = str(folder / "meeting")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(128)
        self._listener.settimeout(limit_s)

    def wait(self, count: int) -> None:
        """Return when so many have arrived, and let them go; raises TimeoutError."""
        with self.held(count):
            pass

    @contextmanager
    def held(self, count: int) -> Iterator[None]:
        """Wait until so many have arrived, and let them go at the end of the block; raises TimeoutError."""
        here: list[socket.socket] = []
        try:
            for _ in range(count):
                here.append(self._listener.accept()[0])
            yield
        finally:
            for connection in here:
                # A byte, not only the end: a worker that was forked meanwhile holds the connection open too.
                connection.sendall(b"x")
                connection.close()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
