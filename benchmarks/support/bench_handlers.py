"""Commands for the benchmarks."""

from snakepit_bridge import command


@command
def nothing():
    """Do nothing."""


@command
def add(a, b):
    """Return the sum."""
    return a + b
