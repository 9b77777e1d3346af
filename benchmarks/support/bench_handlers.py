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
def meet(path):
    """Arrive at the host's socket and stay until it lets go."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.recv(1)
