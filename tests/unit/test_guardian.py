"""The guardian: it ends what its host leaves, nothing else, and is replaced when it ends itself."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from snakepit._supervision import guardian as _guardian
from snakepit._supervision.guardian import GUARDIAN, Guardian
from snakepit._supervision.procfs import process_record, process_start, run_token

from leaks import wait_until

WAIT_S = 10.0

Starter = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def guardian() -> Iterator[Guardian]:
    """A guardian apart from the host's own."""
    guardian = Guardian()
    yield guardian
    for run in list(guardian._runs):
        guardian.release(run)


@pytest.fixture
def sleeper() -> Iterator[Starter]:
    """Start processes that sleep in sessions of their own."""
    started = []

    def start(token: str | None = None) -> subprocess.Popen[bytes]:
        env = {**os.environ, **({"SNAKEPIT_RUN": token} if token else {})}
        started.append(subprocess.Popen(["sleep", "60"], start_new_session=True, env=env))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def die(guardian: Guardian) -> None:
    """Let go of the guardian as the system does for a dead host, and wait for its end."""
    pid = guardian.pid
    assert pid is not None
    guardian.forget()
    pidfd = os.pidfd_open(pid)
    try:
        assert select.select([pidfd], [], [], WAIT_S)[0], "the guardian did not end"
    finally:
        os.close(pidfd)
        os.waitpid(pid, 0)


def is_running(pid: int) -> bool:
    record = process_record(pid)
    return record is not None and not record.ended


def test_ends_the_listed_groups_at_end_of_file(guardian: Guardian, sleeper: Starter) -> None:
    """A listed group is killed, a struck-off one is not."""
    guardian.acquire("run")
    listed, struck_off = sleeper(), sleeper()
    for process in (listed, struck_off):
        guardian.register(process.pid, process_start(process.pid))
    guardian.unregister(struck_off.pid)

    die(guardian)

    assert -signal.SIGKILL == listed.wait(WAIT_S)
    assert is_running(struck_off.pid)


def test_ends_a_stopped_process(guardian: Guardian, sleeper: Starter) -> None:
    """A stopped process is ended too."""
    guardian.acquire("run")
    process = sleeper()
    process.send_signal(signal.SIGSTOP)
    guardian.register(process.pid, process_start(process.pid))

    die(guardian)

    assert -signal.SIGKILL == process.wait(WAIT_S)


def test_spares_a_process_that_only_has_the_pid(guardian: Guardian, sleeper: Starter) -> None:
    """A pid that has another start time than the listed one belongs to somebody else."""
    guardian.acquire("run")
    process = sleeper()
    guardian.register(process.pid, process_start(process.pid) + 1)

    die(guardian)

    assert is_running(process.pid)


def test_ends_what_carries_the_run_in_its_environment(guardian: Guardian, sleeper: Starter) -> None:
    """A descendant that left its group is found by its run; another run's is spared."""
    guardian.acquire("run")
    ours, other = sleeper("run-3"), sleeper("runner-3")

    die(guardian)

    assert -signal.SIGKILL == ours.wait(WAIT_S)
    assert is_running(other.pid)


def test_a_run_that_has_ended_is_not_swept(guardian: Guardian, sleeper: Starter) -> None:
    """After its release, a pool's run is forgotten while another pool keeps the guardian."""
    guardian.acquire("first")
    guardian.acquire("second")
    first, second = sleeper("first-1"), sleeper("second-1")
    guardian.release("first")

    die(guardian)

    assert -signal.SIGKILL == second.wait(WAIT_S)
    assert is_running(first.pid)


def test_leaves_with_the_last_release(guardian: Guardian) -> None:
    """The guardian is gone and reaped when the last pool has released it."""
    guardian.acquire("first")
    guardian.acquire("second")
    pid = guardian.pid
    assert pid is not None

    guardian.release("first")
    still_there = is_running(pid)
    guardian.release("second")

    assert still_there
    assert None is guardian.pid
    assert None is process_record(pid)
    guardian.release("second")


def test_the_last_release_does_not_wait_for_a_stuck_guardian(guardian: Guardian) -> None:
    """A guardian that is stopped is killed after a bounded time."""
    guardian.acquire("run")
    pid = guardian.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)

    guardian.release("run")

    assert None is process_record(pid)


def test_a_replacement_knows_everything(guardian: Guardian, sleeper: Starter) -> None:
    """A killed guardian is replaced, and the replacement ends what the first one knew."""
    guardian.acquire("run")
    group, escaped = sleeper(), sleeper("run-1")
    guardian.register(group.pid, process_start(group.pid))
    first, exit_fd = guardian.pid, guardian.open_exit_fd()
    assert first is not None
    assert exit_fd is not None

    os.kill(first, signal.SIGKILL)
    assert select.select([exit_fd], [], [], WAIT_S)[0]
    os.close(exit_fd)
    guardian.ensure()

    assert guardian.pid not in (None, first)
    die(guardian)
    assert -signal.SIGKILL == group.wait(WAIT_S)
    assert -signal.SIGKILL == escaped.wait(WAIT_S)


def test_a_dead_guardian_is_replaced_by_the_next_message(guardian: Guardian, sleeper: Starter) -> None:
    """A registration that finds the guardian dead starts another, which knows it."""
    guardian.acquire("run")
    first = guardian.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not is_running(first), WAIT_S, "the guardian's end")
    process = sleeper()

    guardian.register(process.pid, process_start(process.pid))

    assert first != guardian.pid
    die(guardian)
    assert -signal.SIGKILL == process.wait(WAIT_S)


def test_a_stuck_guardian_is_replaced_and_never_blocks(guardian: Guardian, sleeper: Starter) -> None:
    """When the lifeline is full, the guardian is replaced; nothing waits and nothing is lost."""
    guardian.acquire("run")
    first = guardian.pid
    assert first is not None
    process = sleeper()
    guardian.register(process.pid, process_start(process.pid))
    os.kill(first, signal.SIGSTOP)

    for _ in range(20_000):
        guardian.unregister(1)
        guardian.register(1, 1)
        if guardian.pid != first:
            break

    assert first != guardian.pid
    guardian.unregister(1)
    die(guardian)
    assert -signal.SIGKILL == process.wait(WAIT_S)


def test_ignores_the_signals_of_a_terminal(guardian: Guardian, sleeper: Starter) -> None:
    """SIGINT, SIGTERM and SIGHUP do not end the guardian."""
    guardian.acquire("run")
    pid = guardian.pid
    assert pid is not None
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    wanted = sum(1 << (number - 1) for number in numbers)

    def ignored() -> bool:
        with open(f"/proc/{pid}/status") as status:
            mask = next(line for line in status if line.startswith("SigIgn")).split()[1]
        return int(mask, 16) & wanted == wanted

    wait_until(ignored, WAIT_S, "the guardian's signal dispositions")
    process = sleeper()
    guardian.register(process.pid, process_start(process.pid))
    for number in numbers:
        os.kill(pid, number)

    die(guardian)

    assert -signal.SIGKILL == process.wait(WAIT_S)


def test_a_program_that_cannot_run_is_given_up(
    guardian: Guardian, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the guardian fails at every start, that is said, and the starts end."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    caplog.set_level(logging.ERROR, "snakepit.guardian")
    guardian.acquire("run")

    for _ in range(_guardian._MAX_FAILURES):
        pid = guardian.pid
        assert pid is not None
        wait_until(lambda pid=pid: not is_running(pid), WAIT_S, "the failed start")  # type: ignore[misc]
        guardian.ensure()

    assert None is guardian.pid
    assert None is guardian.open_exit_fd()
    assert 1 == len(caplog.records)
    guardian.register(1, 1)


def test_no_process_to_be_had(guardian: Guardian, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the guardian cannot be started, acquire raises and holds nothing."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")

    with pytest.raises(FileNotFoundError):
        guardian.acquire("run")

    assert (None, set()) == (guardian.pid, guardian._runs)
    monkeypatch.undo()
    guardian.acquire("run")
    assert guardian.pid is not None


def test_keeps_nothing_of_the_hosts_open_and_no_token(
    guardian: Guardian, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guardian has no stream of the host's and no run token of its own."""
    monkeypatch.setenv("SNAKEPIT_RUN", "outer-1")

    guardian.acquire("run")

    assert guardian.pid is not None
    links = {fd: os.readlink(f"/proc/{guardian.pid}/fd/{fd}") for fd in (1, 2)}
    assert {1: os.devnull, 2: os.devnull} == links
    assert "" == run_token(guardian.pid)


def test_a_forked_child_does_not_hold_the_lifeline() -> None:
    """The host's own guardian sees the end of its host although a forked sibling lives on."""
    GUARDIAN.acquire("run")
    assert GUARDIAN._helper is not None
    fd = GUARDIAN._helper.lifeline.fileno()

    pid = os.fork()
    if pid == 0:
        os._exit(int(os.path.exists(f"/proc/self/fd/{fd}") or GUARDIAN.pid is not None))

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert GUARDIAN.pid is not None
    GUARDIAN.release("run")
