"""Commands for the benchmarks."""

import socket

from snakepit_bridge import command


@command
def nothing():
    """Do nothing."""


@command
def add(a, b):
    """Return the sum."""
    return a + b


@command
def increment(number):
    """Return the next number."""
    return number + 1


@command
def mirror(value):
    """Return the value alone; the built-in echo wraps it."""
    return value


@command
def meet(path):
    """Arrive at the host's socket and stay until it lets go."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.recv(1)
