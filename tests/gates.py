"""Gates: a worker reports that it has arrived and waits there until the test lets it go.

The host's half (``Gate``) runs on the test's thread; the worker's half (``pass_gate``) runs in any
process that can import this file by path, also under Python 3.8.  Both talk over a Unix socket, so a
gate needs no port, and a peer that dies is noticed at once.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

__all__ = ("DIRECTORY", "Arrival", "Gate", "pass_gate")

DIRECTORY = str(Path(__file__).resolve().parent)
"""Put it on a worker's PYTHONPATH, so that a handler file can ``from gates import pass_gate``."""

HELD_AT_MOST_S = 110.0
"""Below the limit of a test, and no smaller: on a starved machine a test may need nearly all of its time."""
SUN_PATH_LIMIT = 100
"""Bytes that fit into a socket address everywhere (Linux 108, macOS 104, with the closing zero)."""


def pass_gate(path: str, label: str = "", timeout_s: float = HELD_AT_MOST_S) -> None:
    """Report the arrival and wait until the gate lets this process pass.

    Args:
        path: ``Gate.path``.
        label: Told to the test, without line ends; e.g. the number of the request.
        timeout_s: Seconds, > 0.

    Raises:
        FileNotFoundError: There never was such a gate; raised here.
        TimeoutError: Held for ``timeout_s``; raised here.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        # RACE: 1. the worker connects, 2. the test opens the gate: the listener, closed, refuses or
        # resets.  Either means that the gate is open.
        try:
            connection.connect(path)
            connection.sendall(f"{os.getpid()} {label}\n".encode())
            connection.recv(1)
        except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
            return
        except socket.timeout:
            raise TimeoutError(f"held at the gate {path} for {timeout_s} s") from None


class Arrival(NamedTuple):
    """One stay at a gate."""

    pid: int
    label: str
    connection: socket.socket


class Gate:
    """A place where worker processes wait until the test lets them go; a context manager.

    Args:
        directory: Where the socket is made, usually ``tmp_path``; a short temporary directory is used
            when the path would not fit into a socket address.
        name: File name of the socket.

    Attributes:
        path: What the worker gives to ``pass_gate``.
        arrived: Every arrival that ``wait_started`` has seen, oldest first.
    """

    def __init__(self, directory: str | os.PathLike[str], name: str = "gate") -> None:
        self._own_directory: str | None = None
        self.path = str(Path(directory) / name)
        if len(os.fsencode(self.path)) > SUN_PATH_LIMIT:
            self._own_directory = tempfile.mkdtemp(prefix="gate-")
            self.path = str(Path(self._own_directory) / "gate")
        self.arrived: list[Arrival] = []
        self._held: list[Arrival] = []
        self._listener: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1024)

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_started(self, count: int = 1, timeout_s: float = 10.0) -> list[Arrival]:
        """Return the next ``count`` arrivals, waiting for them.

        Raises:
            AssertionError: Fewer came within ``timeout_s`` seconds, or the gate is open; raised here.
        """
        if self._listener is None:
            raise AssertionError("the gate is open: nobody stops there any more")
        came: list[Arrival] = []
        deadline = time.monotonic() + timeout_s
        while len(came) < count:
            arrival = self._accept(max(0.0, deadline - time.monotonic()))
            if arrival is None:
                pids = [arrival.pid for arrival in came]
                raise AssertionError(f"{len(came)} of {count} arrived within {timeout_s} s: {pids}")
            came.append(arrival)
        self.arrived += came
        self._held += came
        return came

    def nobody_started(self) -> bool:
        """Return whether no arrival waits to be seen by ``wait_started``; does not wait."""
        if self._listener is None:
            return True
        arrival = self._accept(0.0)
        if arrival is None:
            return True
        self.arrived.append(arrival)
        self._held.append(arrival)
        return False

    def release(self, arrival: Arrival | None = None) -> Arrival:
        """Let one pass: the one given, else the one that has waited longest.

        Raises:
            AssertionError: Nobody who has been seen waits here; raised here.
        """
        if not self._held:
            raise AssertionError("nobody waits at the gate")
        chosen = self._held[0] if arrival is None else arrival
        self._held.remove(chosen)
        _let_go(chosen.connection)
        return chosen

    def open(self) -> None:
        """Let everyone pass, now and from now on."""
        while self._held:
            self.release()
        if self._listener is None:
            return
        while True:
            arrival = self._accept(0.0)
            if arrival is None:
                break
            _let_go(arrival.connection)
        self._listener.close()
        self._listener = None

    def close(self) -> None:
        """Open the gate and remove what it made."""
        self.open()
        if os.path.exists(self.path):
            os.unlink(self.path)
        if self._own_directory is not None and os.path.exists(self._own_directory):
            os.rmdir(self._own_directory)

    def _accept(self, timeout_s: float) -> Arrival | None:
        assert self._listener is not None
        self._listener.settimeout(timeout_s)
        try:
            connection, _ = self._listener.accept()
        except (socket.timeout, BlockingIOError):
            return None
        connection.settimeout(HELD_AT_MOST_S)
        line = b""
        while not line.endswith(b"\n"):
            piece = connection.recv(4096)
            if not piece:  # died between connecting and reporting
                connection.close()
                return Arrival(-1, "", connection)
            line += piece
        pid, _, label = line.decode().rstrip("\n").partition(" ")
        return Arrival(int(pid), label, connection)


def _let_go(connection: socket.socket) -> None:
    try:
        connection.sendall(b"\n")
    except OSError:  # the worker was ended while it waited
        connection.close()
    connection.close()
