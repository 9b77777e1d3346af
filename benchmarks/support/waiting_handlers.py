"""A worker whose start is one second of waiting, as for a model or a connection."""

import time

from snakepit_bridge import command, on_start


@on_start
def wait():
    """Wait; the processor is free meanwhile."""
    time.sleep(1)


@command
def nothing():
    """Do nothing."""
