"""What the pools' workers are asked to do; imports nothing heavy, since a spawned worker imports it."""

from __future__ import annotations

import os
import socket
from typing import Any


def nothing(*_: Any) -> None:
    """Do nothing: what is measured is the way there and back."""


def add(a: int, b: int) -> int:
    """Return the sum: the smallest call that carries something."""
    return a + b


def increment(number: int) -> int:
    """Return the next number, so that each answer can be told from the others."""
    return number + 1


def echo(value: Any) -> Any:
    """Return the value."""
    return value


def meet(path: str) -> int:
    """Arrive at the host's socket, stay until it lets go, and return the process id."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.recv(1)
    return os.getpid()


def spin(loops: int) -> int:
    """Hold the interpreter for that many turns of a loop, and return their number."""
    for _ in range(loops):
        pass
    return loops
