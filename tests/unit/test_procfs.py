"""The process table of /proc: who is in it, and killing exactly the process that was meant."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from snakepit._supervision.procfs import (
    kill_verified,
    process_record,
    process_start,
    process_table,
    run_token,
)

from leaks import wait_until

WAIT_S = 10.0


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps, with a run token in its environment."""
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "SNAKEPIT_RUN": "run-1"}) as process:
        yield process
        process.kill()


def test_kill_verified_wants_the_right_start_time(sleeper: subprocess.Popen[bytes]) -> None:
    """Only the process with the known start time is killed."""
    start = process_start(sleeper.pid)

    wrong = kill_verified(sleeper.pid, start + 1)
    right = kill_verified(sleeper.pid, start)

    assert (False, True) == (wrong, right)
    assert -signal.SIGKILL == sleeper.wait(WAIT_S)
    assert not kill_verified(sleeper.pid, start)
    assert not kill_verified(1, process_start(1))


def test_a_zombie_is_not_in_the_table(sleeper: subprocess.Popen[bytes]) -> None:
    """A process that has ended and is not reaped does not count as alive."""
    before = {record.pid for record in process_table() or ()}
    os.kill(sleeper.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)

    after = {record.pid for record in process_table() or ()}

    assert sleeper.pid in before
    assert sleeper.pid not in after


def test_a_record_describes_its_process() -> None:
    """The record of this process has its group and its memory; a pid that nobody has has no record."""
    record = process_record(os.getpid())

    assert record is not None
    assert (os.getpid(), os.getpgrp(), False) == (record.pid, record.pgid, record.ended)
    assert record.rss_pages > 0
    assert record.start == process_start(os.getpid()) > 0
    assert (None, 0) == (process_record(2**30), process_start(2**30))


def test_the_run_token_is_read_from_the_environment(sleeper: subprocess.Popen[bytes]) -> None:
    """A process that carries a token is recognised by it, others have none."""
    wait_until(lambda: run_token(sleeper.pid) == "run-1", WAIT_S, "the exec")

    assert "" == run_token(2**30)
