"""A chaos run signals a worker that is its own at that instant, or nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from chaos.signals import children_running, processes_with, send
from integration.workers.pools import LIMIT_S, handler_pool

from leaks import is_gone, wait_until

WAIT = "import sys; sys.stdin.read()"


def start(*, own_group: bool, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start a process that waits for the end of its input."""
    argv = (sys.executable, "-S", "-c", WAIT)
    return subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=own_group, env={**os.environ, **(env or {})})


def end(process: subprocess.Popen[bytes]) -> int:
    """Let it end, and return its status."""
    process.communicate(timeout=LIMIT_S)
    return process.returncode


def test_a_worker_is_signalled() -> None:
    """A live worker of a pool gets the signal."""
    with handler_pool(1) as ex:
        pid = ex.execute("pid")

        assert send(pid, signal.SIGKILL)

        wait_until(lambda: is_gone(pid), LIMIT_S)
        assert not send(pid, signal.SIGKILL)


def test_who_leads_no_group_of_its_own_is_spared() -> None:
    """A child in this process's own group is no worker."""
    process = start(own_group=False)

    assert not send(process.pid, signal.SIGKILL)

    assert 0 == end(process)


def test_strangers_are_spared() -> None:
    """Neither this process, nor its parent, nor a zombie gets a signal."""
    zombie = start(own_group=True)
    assert zombie.stdin is not None
    zombie.stdin.close()
    wait_until(lambda: is_gone(zombie.pid), LIMIT_S)

    assert [False] * 4 == [send(pid, signal.SIGKILL) for pid in (os.getpid(), os.getppid(), 1, zombie.pid)]

    assert 0 == zombie.wait(LIMIT_S)


def test_the_program_has_to_fit() -> None:
    """A child with another command line than expected is spared."""
    process = start(own_group=True)

    assert not send(process.pid, signal.SIGKILL, must_run="guardian_main.py")
    # The system's list may leave out a child while another one is being reaped.
    wait_until(lambda: [process.pid] == children_running(WAIT), LIMIT_S)

    assert 0 == end(process)


def test_processes_are_found_by_their_mark(tmp_path: Path) -> None:
    """Live processes with a variable are found, those that have ended are not."""
    mark = f"CHAOS_TEST={tmp_path}"
    process = start(own_group=True, env=dict([mark.split("=", 1)]))
    # Between its fork and its exec the child still has this process's environment.
    wait_until(lambda: [process.pid] == list(processes_with(mark)), LIMIT_S)

    end(process)

    assert {} == processes_with(mark)
