"""A host that is killed leaves no worker, no descendant and no guardian, whatever they were doing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from integration import callables_lib as lib
from integration import scripts

from snakepit import SnakepitExecutor

from gates import Gate
from leaks import wait_until

ORPHANS_LIMIT_S = 2.0
"""How long anything of a killed host may live; the promise of the documentation."""

HOST = """
import json, os, sys, threading
from snakepit import CallableAdapter, JavaScriptAdapter, PythonAdapter, SnakepitExecutor
from snakepit._supervision.guardian import GUARDIAN
from integration import callables_lib as lib

kind, gate, handlers, file = sys.argv[1:]

def spawn_others():
    import subprocess
    plain = subprocess.Popen(["sleep", "60"])
    escaped = subprocess.Popen(["sleep", "60"], start_new_session=True)
    return [plain.pid, escaped.pid]

def tell(*pids):
    print(json.dumps([*pids, GUARDIAN.pid]), flush=True)
    sys.stdin.read()

if kind == "starting":
    executor = SnakepitExecutor(1, initializer=lib.held, initargs=(gate,))
    executor.submit(lib.add, 1)
    while GUARDIAN.pid is None:
        threading.Event().wait(0.005)
    tell_pids = []
elif kind == "python":
    executor = SnakepitExecutor(PythonAdapter(handlers), 2)
    executor.wait_ready(30, 2)
    executor.submit("spin", {"file": file})
    tell_pids = [info.pid for info in executor.workers()]
elif kind == "javascript":
    executor = SnakepitExecutor(JavaScriptAdapter(handlers), 2)
    executor.wait_ready(30, 2)
    executor.submit("spin", {"file": file})
    tell_pids = [info.pid for info in executor.workers()]
else:
    executor = SnakepitExecutor(2)
    tell_pids = [executor.submit(os.getpid).result()]
    if kind == "loop":
        executor.submit(lib.loop_for_ever, gate)
    if kind == "c_call":
        executor.submit(lib.hold_interpreter_lock, gate, 60)
    if kind == "grandchildren":
        tell_pids += executor.submit(spawn_others).result()
    if kind == "held":
        executor.submit(lib.held, gate)
tell(*tell_pids)
"""

PYTHON_HANDLERS = """
import os
from snakepit_bridge import command

@command
def spin(file):
    with open(file + ".new", "w") as f:
        f.write(str(os.getpid()))
    os.rename(file + ".new", file)
    while True:
        pass
"""

JAVASCRIPT_HANDLERS = """
const fs = require('fs');
exports.spin = ({ file }) => {
  fs.writeFileSync(file + '.new', String(process.pid));
  fs.renameSync(file + '.new', file);
  for (;;) {}
};
"""


class Host:
    """A host program that was told what to have its workers do."""

    def __init__(self, directory: Path, kind: str, gate: Gate) -> None:
        self.file = directory / "spins"
        name, text = "handlers.py", PYTHON_HANDLERS
        if kind == "javascript":
            name, text = "handlers.js", JAVASCRIPT_HANDLERS
        (directory / name).write_text(text)
        self.process = scripts.start(
            directory, HOST, kind, gate.path, directory / name, self.file, stdin=subprocess.PIPE
        )
        assert self.process.stdout is not None
        self.pids: list[int] = json.loads(self.process.stdout.readline())

    def end(self, number: int = signal.SIGKILL) -> None:
        """End the host; the pids it told must be gone in time."""
        self.process.send_signal(number)
        self.process.wait(scripts.BOUND_S)
        for pid in self.pids:
            wait_until(lambda pid=pid: scripts.gone(pid), ORPHANS_LIMIT_S, f"{pid} of {self.pids} ends")  # type: ignore[misc]

    def close(self) -> None:
        """Make sure that the host is gone."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """A list of hosts that are ended after the test."""
    made: list[Host] = []
    yield made
    for host in made:
        host.close()


@pytest.mark.parametrize("kind", ["idle", "grandchildren"])
def test_killed_with_idle_workers(tmp_path: Path, gate: Gate, hosts: list[Host], kind: str) -> None:
    """Idle workers go, and what they have started, also in a session of its own."""
    hosts.append(host := Host(tmp_path, kind, gate))

    host.end()

    assert {"idle": 2, "grandchildren": 4}[kind] == len(host.pids)


@pytest.mark.parametrize("kind", ["loop", "c_call", "held", "starting"])
def test_killed_with_a_busy_worker(tmp_path: Path, gate: Gate, hosts: list[Host], kind: str) -> None:
    """Workers in a loop, in a C call that holds the interpreter's lock, waiting, or still starting go."""
    hosts.append(host := Host(tmp_path, kind, gate))
    arrival = gate.wait_started(1, scripts.BOUND_S)[0]
    if kind in ("loop", "c_call"):
        gate.open()
        if kind == "c_call":
            # In the C call once its thread no longer changes: it sleeps there and nowhere else.
            worker = psutil.Process(arrival.pid)
            wait_until(lambda: worker.status() == psutil.STATUS_SLEEPING, scripts.BOUND_S)
    host.pids.append(arrival.pid)

    host.end()


def test_killed_with_a_stopped_worker(tmp_path: Path, gate: Gate, hosts: list[Host]) -> None:
    """A worker that was stopped cannot act on anything but KILL, and goes."""
    hosts.append(host := Host(tmp_path, "held", gate))
    pid = gate.wait_started(1, scripts.BOUND_S)[0].pid
    os.kill(pid, signal.SIGSTOP)
    host.pids.append(pid)

    host.end()


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_killed_with_commands_running(
    tmp_path: Path, gate: Gate, hosts: list[Host], language: str, request: pytest.FixtureRequest
) -> None:
    """Workers of command adapters go, the spinning one and the idle one."""
    if language == "javascript":
        request.getfixturevalue("node")
    hosts.append(host := Host(tmp_path, language, gate))
    spinning = wait_until(lambda: host.file.exists() and int(host.file.read_text()), scripts.BOUND_S)

    host.end()

    assert spinning in host.pids
    assert 3 == len(host.pids)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGABRT])
def test_ended_by_another_signal(tmp_path: Path, gate: Gate, hosts: list[Host], number: int) -> None:
    """Signals that end a host without its exit hooks leave nothing either."""
    hosts.append(host := Host(tmp_path, "held", gate))
    host.pids.append(gate.wait_started(1, scripts.BOUND_S)[0].pid)

    host.end(number)


def test_killed_guardian_is_replaced(tmp_path: Path, gate: Gate, hosts: list[Host]) -> None:
    """With the guardian killed first, the next one does its work; nobody else notices."""
    hosts.append(host := Host(tmp_path, "held", gate))
    worker = gate.wait_started(1, scripts.BOUND_S)[0].pid
    *workers, guardian = host.pids
    children = psutil.Process(host.process.pid)

    os.kill(guardian, signal.SIGKILL)
    replacement = wait_until(
        lambda: {child.pid for child in children.children()} - {guardian, worker, *workers},
        scripts.BOUND_S,
        "another guardian",
    )

    host.pids += [worker, *replacement]
    host.end()


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


def test_another_hosts_workers_are_left_alone(tmp_path: Path, gate: Gate, hosts: list[Host]) -> None:
    """The end of one host touches no worker of another."""
    with SnakepitExecutor(1) as executor:
        pid = executor.submit(lib.pid_of_worker).result(scripts.BOUND_S)
        hosts.append(host := Host(tmp_path, "idle", gate))

        host.end()

        assert pid == executor.submit(lib.pid_of_worker).result(scripts.BOUND_S)
        assert 0 == executor.stats().restarts
