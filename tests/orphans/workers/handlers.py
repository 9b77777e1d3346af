"""The Python bridge's part: a start that may never end, and the deeds as a command."""

from orphans import deeds
from snakepit_bridge import command, on_start


@on_start
def start(deed=None, folder=None):
    if deed:
        deeds.act(deed, folder)


@command
def act(deed, folder):
    return deeds.act(deed, folder)
