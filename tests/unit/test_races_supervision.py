"""Processes that come, go and change hands between two looks at them."""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snakepit._supervision import guardian_main, procfs
from snakepit._supervision.spawn import find_setpriv

ROOT = str(Path(__file__).resolve().parents[2])
BOUND_S = 15.0


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is not ours to end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("pidfds", [True, False])
def test_a_pid_that_changes_hands_behind_the_table(
    bystander: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, pidfds: bool
) -> None:
    """The listed process ends, and its pid is a bystander's when the pidfd is opened: nobody is signalled."""
    listed = 1234
    starts = {bystander.pid: listed}
    real_open = os.pidfd_open

    def open_late(pid: int) -> int:
        # Until here a look at the pid would have found the listed process.
        starts[pid] = listed + 1
        if not pidfds:
            raise OSError("no pidfd")
        return real_open(pid)

    monkeypatch.setattr(procfs.os, "pidfd_open", open_late)
    monkeypatch.setattr(procfs, "process_start", lambda pid: starts[pid])

    assert not procfs.kill_verified(bystander.pid, listed)

    assert bystander.poll() is None


def test_a_child_that_shows_its_token_late(
    bystander: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that execs after the guardian's first looks is found by one of those that follow."""
    looks: list[int] = []
    ended: list[int] = []

    def token_late(pid: int) -> str:
        looks.append(pid)
        return "run-1" if len(looks) > 2 and pid not in ended else ""

    def end(pid: int, start: int) -> bool:
        ended.append(pid)
        return True

    record = procfs.process_record(bystander.pid)
    assert record is not None
    monkeypatch.setattr(guardian_main._procfs, "process_table", lambda: [record])
    monkeypatch.setattr(guardian_main._procfs, "run_token", token_late)
    monkeypatch.setattr(guardian_main._procfs, "kill_verified", end)

    guardian_main._kill_all({}, {"run"})

    assert [bystander.pid] == ended
    assert len(looks) > 3


HOST = textwrap.dedent(
    """
    import os, signal, subprocess, sys, threading
    sys.path.insert(0, {root!r})
    from snakepit import CommandAdapter, SnakepitExecutor
    from snakepit._supervision import custody, spawn

    def killed(pid, *rest):
        # The process exists; the guardian has not heard of its group.
        os.write(1, b"%d %d\\n" % (pid, custody.GUARDIAN.pid))
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    custody.GUARDIAN.register = killed
    if {token_only}:
        spawn.find_setpriv = lambda: None
    # A worker that says when it runs, and does not care for the end of its pipes.
    program = "import signal, sys; open(sys.argv[1], 'w').close(); signal.pause()"
    SnakepitExecutor(CommandAdapter([sys.executable, "-c", program, {runs!r}]), 1)
    threading.Event().wait()
    """
)


@pytest.mark.parametrize("line", ["signal", "token"])
def test_a_host_killed_before_the_guardian_hears_of_a_worker(line: str, tmp_path: Path) -> None:
    """The worker ends by the parent-death signal alone, and by its run token alone."""
    if line == "signal" and find_setpriv() is None:
        return  # this system has only the other line
    runs = tmp_path / "runs"
    os.mkfifo(runs)
    source = HOST.format(root=ROOT, token_only=line == "token", runs=str(runs))
    host = subprocess.Popen([sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert host.stdout is not None and host.stdin is not None
    with host:
        worker, guardian = map(int, host.stdout.readline().split())
        pidfds = [os.pidfd_open(pid) for pid in (worker, guardian)]
        # RACE: a parent that dies before setpriv has asked for the signal sends none; the guardian, stopped here, is
        # there for that.  The worker's own program runs after the asking.
        runs.read_bytes()
        if line == "signal":
            os.kill(guardian, signal.SIGSTOP)

        host.stdin.write(b"x")
        host.stdin.flush()
        host.wait(BOUND_S)
        gone = select.select(pidfds[:1], [], [], BOUND_S)[0]
        if line == "signal":
            os.kill(guardian, signal.SIGCONT)

        assert -signal.SIGKILL == host.returncode
        assert pidfds[:1] == gone
        assert pidfds[1:] == select.select(pidfds[1:], [], [], BOUND_S)[0]
    for fd in pidfds:
        os.close(fd)


# The Python worker and the end of its requests ------------------------------------------------------


class Bridge:
    """The bridge's module in this process, its thread that waits for the end, and the host's pipes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        path = Path(ROOT, "bridges", "python", "snakepit_bridge.py")
        spec = importlib.util.spec_from_file_location("races_bridge", path)
        assert spec is not None and spec.loader is not None
        self.module: Any = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "races_bridge", self.module)
        monkeypatch.setitem(sys.modules, "snakepit_bridge", self.module)
        spec.loader.exec_module(self.module)
        self.in_fd, self.requests = os.pipe()
        self.replies, self.out_fd = os.pipe()
        self.exited = threading.Event()
        self.at_grace = threading.Event()
        monkeypatch.setattr(self.module, "EOF_GRACE_MS", 3_600_000)
        monkeypatch.setattr(self.module.os, "_exit", self._exit)
        real_poll, made = self.module.poll, []

        def poll() -> Any:
            made.append(None)
            if len(made) == 2:
                self.at_grace.set()
            return real_poll()

        monkeypatch.setattr(self.module, "poll", poll)
        self.thread = threading.Thread(target=self.module.watch_eof, args=(self,), daemon=True)
        self.stream = self
        self.closing = False
        self.thread.start()

    def _exit(self, status: int) -> None:
        assert 0 == status
        self.exited.set()

    def end(self) -> None:
        """Wait for the thread, and close what is left."""
        self.thread.join(BOUND_S)
        assert not self.thread.is_alive()
        for fd in (self.in_fd, self.out_fd):
            os.close(fd)


def test_a_worker_whose_host_closes_both_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads replies any more: the worker ends at once, however long the grace is."""
    bridge = Bridge(monkeypatch)

    os.close(bridge.replies)
    os.close(bridge.requests)

    assert bridge.exited.wait(BOUND_S)
    bridge.end()


def test_a_worker_whose_host_still_reads_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host has closed the requests only: a reply on its way out arrives before the worker ends."""
    bridge = Bridge(monkeypatch)
    os.close(bridge.requests)
    assert bridge.at_grace.wait(BOUND_S)

    os.write(bridge.out_fd, b"the last reply")

    assert b"the last reply" == os.read(bridge.replies, 100)
    assert not bridge.exited.is_set()
    os.close(bridge.replies)
    assert bridge.exited.wait(BOUND_S)
    bridge.end()
