"""A host whose standard streams are closed: none of the pool's own descriptors gets their numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snakepit._supervision import guardian_main

ROOT = str(Path(__file__).parents[2])
HOST = """
import os, queue, sys, threading
sys.path.insert(0, sys.argv[1])
from snakepit._inbox import Inbox
from snakepit._pool import poller
from snakepit._supervision.guardian import GUARDIAN
from snakepit._supervision.reports import Exited, Spawned
from snakepit._supervision.spawn import SpawnSpec
from snakepit._supervision.watchdog import Watchdog
said = os.dup(1)
for fd in range(int(sys.argv[2]), 3):
    os.close(fd)
other = poller._Selector()
inbox, turns = Inbox(), poller.make_poller()
turns.watch(inbox.fd, "inbox")
inbox.may_sleep()
inbox.post(None)
assert [("inbox", False)] == turns.poll(10)
events = queue.SimpleQueue()
watchdog = Watchdog("host", events.put, kill_grace_s=1, stderr_tail_bytes=10)
watchdog.start()
def spawn(name, script):
    watchdog.spawn(name, SpawnSpec(("sh", "-c", script), dict(os.environ), level=0, output="inherit"))
    event = events.get(timeout=10)
    assert isinstance(event, Spawned), event
def ended():
    event = events.get(timeout=10)
    assert isinstance(event, Exited), event
    return event.worker_id, event.code
spawn("stays", "exec sleep 60")
guardian = GUARDIAN.pid
for number in range(3):
    spawn(str(number), "echo bye >&2; exit 5")
    assert (str(number), 5) == ended()
assert guardian == GUARDIAN.pid
low = [fd for fd in range(int(sys.argv[2]), 3) if os.path.exists(f"/proc/self/fd/{fd}")]
assert low == [], low
watchdog.kill("stays")
assert ("stays", None) == ended()
watchdog.stop()
assert watchdog.join(10)
os.write(said, b"well")
"""


@pytest.mark.parametrize("first", [0, 1, 2])
def test_closed_standard_streams_stay_closed(first: int) -> None:
    """Inbox, epoll, guardian and workers work with descriptors above 2, and stderr goes to nobody."""
    out_fd, out = os.pipe()
    # fd 1 is the pipe until it is copied; what fails is told on fd 2 only where that is open.
    done = subprocess.run([sys.executable, "-c", HOST, ROOT, str(first)], stdout=out, timeout=60, check=False)
    os.close(out)
    with open(out_fd, "rb") as said:
        assert (0, b"well") == (done.returncode, said.read())


@pytest.mark.parametrize("line", ["", " ", "stray", "bye2", "+ 12", "+ a b", "run", "- x", "end"])
def test_the_guardian_ignores_what_it_does_not_understand(line: str) -> None:
    """A stray line neither ends the guardian nor changes its lists."""
    groups, runs = {7: 8}, {"run"}

    assert not guardian_main._obey(line, groups, runs)
    assert ({7: 8}, {"run"}) == (groups, runs)
    assert guardian_main._obey("bye", groups, runs)
