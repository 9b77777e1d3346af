"""Unusual hosts: a worker of another pool, a daemon, one that becomes another program; and a lost guardian."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from integration import callables_lib as lib
from integration import scripts
from orphans.driver import BOUND_S, Figures, Host, all_gone

from snakepit import SnakepitExecutor

from leaks import wait_until


@pytest.mark.parametrize("phase", ["starting", "loop", "c_call", "draining"])
def test_a_worker_as_host(start_host: Callable[..., Host], figures: Figures, phase: str) -> None:
    """When a host is killed whose worker is itself a host, the inner pool's workers go as well, in the same time."""
    host = start_host("callable", phase, nested=True)

    host.signal(signal.SIGKILL, "outermost")
    host.wait_end(role="outermost")
    took_s = host.wait_gone()

    assert host.has_ended("host")
    figures.add("nested hosts", took_s)


def test_a_killed_worker_as_host(start_host: Callable[..., Host]) -> None:
    """When the inner host alone is killed, its pool goes and the outer host lives."""
    host = start_host("callable", "loop", nested=True)

    host.signal(signal.SIGKILL)
    host.wait_end()
    host.wait_gone()

    assert not host.has_ended("outermost")


@pytest.mark.parametrize("language", ["python", "ruby"])
@pytest.mark.parametrize("phase", ["loop", "stopped"])
def test_under_timeout(
    start_host: Callable[..., Host], request: pytest.FixtureRequest, language: str, phase: str
) -> None:
    """`timeout -s KILL` kills itself and its host; what the host has started is in other groups, and goes."""
    if language == "ruby":
        request.getfixturevalue("ruby")
    host = start_host(language, phase, wrapper=("timeout", "-s", "KILL", "3600"))

    host.signal(signal.SIGALRM, "outermost")  # its time is over
    host.wait_end()
    host.wait_gone()

    assert -signal.SIGKILL == host.process.wait()


@pytest.mark.parametrize("phase", ["idle", "c_call"])
def test_a_daemon(start_host: Callable[..., Host], phase: str) -> None:
    """A host that has left its session by two forks is guarded like any other."""
    host = start_host("callable", phase, daemonize=True)
    assert os.getsid(host.pids["host"]) != os.getsid(0)

    host.signal(signal.SIGKILL)
    host.wait_end()

    host.wait_gone()


@pytest.mark.parametrize("phase", ["idle", "loop"])
def test_a_host_that_becomes_another_program(start_host: Callable[..., Host], phase: str) -> None:
    """After exec the process lives on with its number, but nobody is left who could use the workers: they go."""
    host = start_host("python", phase, "exec")

    host.go_on()
    host.wait_gone()

    assert not host.has_ended("host")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGABRT, signal.SIGSEGV])
def test_ended_by_another_signal(start_host: Callable[..., Host], number: int) -> None:
    """Signals that end a host without its exit hooks leave nothing either."""
    host = start_host("callable", "loop")

    host.signal(number)
    host.wait_end()
    host.wait_gone()

    assert -number == host.process.returncode


def test_killed_guardian_is_replaced(start_host: Callable[..., Host]) -> None:
    """With the guardian killed first, the next one does its work; nobody else notices."""
    host = start_host("callable", "loop")
    family = set(host.pids.values())
    children = psutil.Process(host.pids["host"])

    host.signal(signal.SIGKILL, "guardian")
    replacement = wait_until(
        lambda: [child.pid for child in children.children() if child.pid not in family], BOUND_S, "another guardian"
    )
    with all_gone(replacement):
        host.signal(signal.SIGKILL)
        host.wait_end()
        host.wait_gone()

    assert 1 == len(replacement)


THREAD = """
import sys, threading
from snakepit import PythonAdapter, SnakepitExecutor
from integration import callables_lib as lib

kept = []

def first_use():
    kept.append(SnakepitExecutor(1))
    kept.append(SnakepitExecutor(PythonAdapter(), 1))
    kept.append(kept[0].submit(lib.pid_of_worker).result())
    kept[1].wait_ready(20)
    kept.append(kept[1].workers()[0].pid)

thread = threading.Thread(target=first_use)
thread.start()
thread.join()
callables, commands, *pids = kept
print(callables.submit(lib.pid_of_worker).result() == pids[0])
print([info.pid for info in commands.workers()] == pids[1:])
print(callables.stats().restarts, commands.stats().restarts)
"""


def test_pool_made_in_a_thread_that_ends(tmp_path: Path) -> None:
    """The parent-death signal follows a thread: workers outlive the thread that first used their pool."""
    assert (0, "True\nTrue\n0 0\n", "") == scripts.text_of(scripts.run(tmp_path, THREAD))


def test_another_hosts_workers_are_left_alone(start_host: Callable[..., Host]) -> None:
    """The end of one host touches no worker of another."""
    with SnakepitExecutor(1) as executor:
        pid = executor.submit(lib.pid_of_worker).result(BOUND_S)
        host = start_host("callable", "loop")

        host.signal(signal.SIGKILL)
        host.wait_end()
        host.wait_gone()

        assert pid == executor.submit(lib.pid_of_worker).result(BOUND_S)
        assert 0 == executor.stats().restarts
