"""Ctrl-C in a terminal: one is enough wherever the program waits, and two leave nothing either."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from integration import scripts
from orphans.driver import BOUND_S, Terminal, all_gone

from gates import Gate
from leaks import is_gone, wait_until

CTRL_C = b"\x03"

PRELUDE = """
import asyncio, concurrent.futures, fcntl, os, signal, sys, termios, threading
from snakepit import PoolConfig, SnakepitExecutor
from snakepit._supervision.guardian import GUARDIAN
from integration import callables_lib as lib

gate, place, grace_s = sys.argv[1], sys.argv[2], float(sys.argv[3])
config = PoolConfig(min_workers=2, shutdown_grace_s=grace_s, kill_grace_s=grace_s)
main_thread = threading.get_ident()

def tell_when_waiting(text, inside):
    # The main thread waits once two looks find it asleep at the same instruction of a function that blocks.  One that
    # is still on its way into the system call would miss the signal: Python has looked for signals for the last time.
    def look():
        frame = sys._current_frames()[main_thread]
        names, innermost = [], (frame, frame.f_lasti)
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        blocks = {"wait", "_wait_for_tstate_lock", "select", "_as_completed"}
        with open("/proc/self/stat") as stat:
            asleep = stat.read().rpartition(")")[2].split()[0] == "S"
        return innermost if asleep and names[0] in blocks and inside in names else None

    def watch():
        seen = None
        while True:
            last, seen = seen, look()
            if seen is not None and seen == last:
                break
            threading.Event().wait(0.01)
        print(text, GUARDIAN.pid, flush=True)

    threading.Thread(target=watch, daemon=True).start()
"""

PROGRAM = """
async def in_a_loop(executor):
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(executor, lib.held, gate)

def wait_somewhere(executor):
    if place == "wait_ready":
        executor.wait_ready(None, 2)
    if place == "start":
        executor.submit(lib.add, 1).result()
    futures = [executor.submit(lib.held, gate) for _ in range(4)]
    if place == "result":
        futures[0].result()
    if place == "execute":
        executor.execute(lib.held, gate)
    if place == "map":
        list(executor.map(lib.held, [gate] * 4))
    if place == "map_unordered":
        list(executor.map_unordered(lib.held, [gate] * 4))
    if place == "wait":
        concurrent.futures.wait(futures)
    if place == "as_completed":
        list(concurrent.futures.as_completed(futures))
    if place == "submit":
        while True:
            executor.submit(lib.held, gate)
    if place == "body":
        threading.Event().wait()
    if place == "asyncio":
        asyncio.run(in_a_loop(executor))
    if place == "shutdown":
        executor.shutdown(wait=True)
    # "leave": the block's end waits for the work.

starting = place in ("wait_ready", "start")
tell_when_waiting("there", "__exit__" if place == "leave" else "wait_somewhere")
with SnakepitExecutor(
    2,
    initializer=lib.held if starting else None,
    initargs=(gate,) if starting else (),
    max_queue_size=12,
    queue_full="block",
    config=config,
) as executor:
    wait_somewhere(executor)
"""

TAKE_TERMINAL = "\nfcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """Return a terminal; what runs in it is ended before it is closed."""
    terminal = Terminal()
    yield terminal
    terminal.close()


@pytest.fixture
def started(terminal: Terminal) -> Iterator[list[subprocess.Popen[str]]]:
    """Return a list of programs that are ended after the test."""
    made: list[subprocess.Popen[str]] = []
    yield made
    for process in made:
        process.kill()
        process.wait(BOUND_S)


def run_in(terminal: Terminal, folder: Path, source: str, *args: object) -> subprocess.Popen[str]:
    """Start a program that has this terminal, in its foreground."""
    fd = terminal.fd
    process = scripts.start(folder, source, *args, stdin=fd, stdout=fd, stderr=fd, start_new_session=True)
    terminal.close_programs_side()
    return process


def family_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the pids of all that a program has started."""
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


PLACES = (
    "result",
    "execute",
    "map",
    "map_unordered",
    "wait",
    "as_completed",
    "submit",
    "body",
    "asyncio",
    "shutdown",
    "leave",
    "wait_ready",
    "start",
)


@pytest.mark.parametrize("place", PLACES)
def test_one_is_enough(
    tmp_path: Path, gate: Gate, terminal: Terminal, started: list[subprocess.Popen[str]], place: str
) -> None:
    """The caller gets KeyboardInterrupt, the pool ends in bounded time, one traceback is printed, no more."""
    started.append(host := run_in(terminal, tmp_path, PRELUDE + TAKE_TERMINAL + PROGRAM, gate.path, place, 0.2))
    gate.wait_started(2, BOUND_S)
    terminal.wait_for("there")
    family = family_of(host)

    with all_gone(family):
        terminal.press(CTRL_C)
        host.wait(BOUND_S)

    terminal.close()
    assert -signal.SIGINT == host.returncode
    assert 3 == len(family)
    assert 1 == terminal.text.count("KeyboardInterrupt\n"), terminal.text
    assert terminal.text.endswith("KeyboardInterrupt\n")
    # asyncio ends its main task first, and the cancellation is the interrupt's context.
    assert (2 if place == "asyncio" else 1) == terminal.text.count("Traceback"), terminal.text


TWICE = """
tell_when_waiting("there", "body")

def body():
    threading.Event().wait()

with SnakepitExecutor(2, config=config) as executor:
    futures = [executor.submit(lib.held, gate) for _ in range(2)]
    try:
        body()
    finally:
        tell_when_waiting("cleaning", "__exit__")
"""


def test_two_end_the_patience(
    tmp_path: Path, gate: Gate, terminal: Terminal, started: list[subprocess.Popen[str]]
) -> None:
    """A second Ctrl-C while workers have their grace ends them at once."""
    started.append(host := run_in(terminal, tmp_path, PRELUDE + TAKE_TERMINAL + TWICE, gate.path, "", 3600))
    gate.wait_started(2, BOUND_S)
    terminal.wait_for("there")
    family = family_of(host)

    with all_gone(family):
        terminal.press(CTRL_C)
        terminal.wait_for("cleaning")
        terminal.press(CTRL_C)
        host.wait(BOUND_S)

    assert -signal.SIGINT == host.returncode
    assert 3 == len(family)


WITHOUT_WITH = """
tell_when_waiting("there", "body")

def body():
    executor.submit(lib.held, gate).result()

executor = SnakepitExecutor(2, config=config)
try:
    body()
finally:
    tell_when_waiting("exiting", "_shutdown")
"""


def test_two_end_a_program_without_with(
    tmp_path: Path, gate: Gate, terminal: Terminal, started: list[subprocess.Popen[str]]
) -> None:
    """The first interrupts the call, and the exit waits for the work; the second interrupts the exit."""
    started.append(host := run_in(terminal, tmp_path, PRELUDE + TAKE_TERMINAL + WITHOUT_WITH, gate.path, "", 3600))
    gate.wait_started(1, BOUND_S)
    terminal.wait_for("there")
    family = family_of(host)

    with all_gone(family):
        terminal.press(CTRL_C)
        terminal.wait_for("exiting")
        assert host.poll() is None
        terminal.press(CTRL_C)
        host.wait(BOUND_S)

    assert 3 == len(family)


SHELL = """
trap : INT
echo "shell $$"
"$0" "$@"
echo "status $?"
read line
echo "read <$line>"
read line
"""


def test_the_terminal_is_the_users_again(
    tmp_path: Path, gate: Gate, terminal: Terminal, started: list[subprocess.Popen[str]]
) -> None:
    """After Ctrl-C nobody but the shell holds the terminal, its settings are as before, and what is typed is read."""
    before = terminal.settings()
    name = os.ttyname(terminal.fd)
    # `setsid --ctty` makes it what a login shell is, and becomes it; the host is its foreground job.
    shell = ("setsid", "--ctty", "--wait", "sh", "-c", SHELL)
    host = scripts.command_line(tmp_path, PRELUDE + PROGRAM, gate.path, "body", 0.2)
    process = subprocess.Popen(
        (*shell, *host),
        stdin=terminal.fd,
        stdout=terminal.fd,
        stderr=terminal.fd,
        text=True,
        env=scripts.environment(),
    )
    started.append(process)
    terminal.close_programs_side()
    gate.wait_started(2, BOUND_S)
    terminal.wait_for("there")

    terminal.press(CTRL_C)
    terminal.wait_for("status 130")
    holders = holders_of(name)
    terminal.press(b"typed\n")
    terminal.wait_for("read <typed>")
    after = terminal.settings()
    terminal.press(b"\n")
    process.wait(BOUND_S)

    assert {"sh"} == holders
    assert before == after


def holders_of(name: str) -> set[str]:
    """Return the names of the programs that have a terminal open, this test's own copy aside."""
    found = set()
    for process in psutil.process_iter():
        try:
            folder = f"/proc/{process.pid}/fd"
            if name in [os.readlink(os.path.join(folder, fd)) for fd in os.listdir(folder)]:
                found.add(process.name())
        except (OSError, psutil.NoSuchProcess):
            continue
    return found


def test_nobody_reads_from_the_terminal(
    tmp_path: Path, gate: Gate, terminal: Terminal, started: list[subprocess.Popen[str]]
) -> None:
    """While the pool works, no worker and no guardian has the terminal as its input, or as its own."""
    name = os.ttyname(terminal.fd)
    started.append(host := run_in(terminal, tmp_path, PRELUDE + TAKE_TERMINAL + PROGRAM, gate.path, "body", 0.2))
    gate.wait_started(2, BOUND_S)
    terminal.wait_for("there")

    family = family_of(host)
    inputs = {os.readlink(f"/proc/{pid}/fd/0") for pid in family}
    controlling = {psutil.Process(pid).terminal() for pid in family}
    terminal.press(CTRL_C)
    host.wait(BOUND_S)

    assert name not in inputs
    assert {None} == controlling


def test_the_window_is_closed(
    tmp_path: Path, gate: Gate, terminal: Terminal, started: list[subprocess.Popen[str]]
) -> None:
    """When the terminal goes away its host gets SIGHUP, and nothing of it stays."""
    started.append(host := run_in(terminal, tmp_path, PRELUDE + TAKE_TERMINAL + PROGRAM, gate.path, "body", 3600))
    gate.wait_started(2, BOUND_S)
    terminal.wait_for("there")
    family = family_of(host)

    with all_gone(family):
        terminal.hang_up()
        host.wait(BOUND_S)

    assert -signal.SIGHUP == host.returncode
    wait_until(lambda: all(is_gone(pid) for pid in family))


GOES_ON = """
import psutil

tell_when_waiting("there", "__exit__" if place == "leave" else "wait_somewhere")

def wait_somewhere():
    if place == "shutdown":
        executor.shutdown(wait=True)

try:
    with SnakepitExecutor(2, config=config) as executor:
        executor.wait_ready(None, 2)
        pids = [info.pid for info in executor.workers()]
        futures = [executor.submit(lib.held, gate) for _ in range(2)]
        wait_somewhere()
except KeyboardInterrupt:
    # Not by tests/leaks: a process that imports it is marked as a run of its own.
    gone = [not psutil.pid_exists(pid) for pid in pids]
    print("gone", gone, "done", [future.done() for future in futures], flush=True)
"""


@pytest.mark.parametrize("place", ["shutdown", "leave"])
def test_the_block_ends_after_its_workers(
    tmp_path: Path, gate: Gate, terminal: Terminal, started: list[subprocess.Popen[str]], place: str
) -> None:
    """A program that goes on after Ctrl-C has no worker left when it does, although a wait was interrupted."""
    started.append(host := run_in(terminal, tmp_path, PRELUDE + TAKE_TERMINAL + GOES_ON, gate.path, place, 0.2))
    gate.wait_started(2, BOUND_S)
    terminal.wait_for("there")

    terminal.press(CTRL_C)
    host.wait(BOUND_S)

    terminal.close()
    assert 0 == host.returncode
    assert terminal.text.endswith("gone [True, True] done [True, True]\n"), terminal.text
