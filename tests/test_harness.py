"""The harness itself: the leak check finds what it has to find, gates hold and let go."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gates import DIRECTORY, Gate
from leaks import assert_no_leaks, end_processes, leaks_since, take_snapshot, wait_until

WAIT_FOR_EOF = [sys.executable, "-c", "import sys; sys.stdin.read()"]


def start_at_gate(gate: Gate, label: str) -> subprocess.Popen[bytes]:
    """Start a Python process that passes the gate."""
    code = f"from gates import pass_gate; pass_gate({gate.path!r}, {label!r})"
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": DIRECTORY})


def test_leak_check_names_a_child() -> None:
    """A child that still runs is reported with its pid and command line, and ended."""
    before = take_snapshot()

    with subprocess.Popen(WAIT_FOR_EOF, stdin=subprocess.PIPE) as child:
        wait_until(lambda: any("sys.stdin.read" in line for line in leaks_since(before)))
        with pytest.raises(AssertionError, match=rf"process {child.pid} .*sys\.stdin\.read"):
            assert_no_leaks(before, timeout_s=0.05)

        with pytest.raises(ProcessLookupError):
            os.kill(child.pid, 0)


def test_leak_check_names_a_zombie() -> None:
    """A child that has ended but was not reaped is a leak."""
    before = take_snapshot()

    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        wait_until(lambda: any(f"{child.pid} " in line and "zombie" in line for line in leaks_since(before)))


def test_leak_check_finds_an_orphan() -> None:
    """A process whose parent has gone and that left its session is found by the token it inherited."""
    before = take_snapshot()
    code = (
        "import subprocess\n"
        f"orphan = subprocess.Popen({WAIT_FOR_EOF!r}, stdout=subprocess.DEVNULL, start_new_session=True)\n"
        "print(orphan.pid, flush=True)\n"
    )

    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        orphan_pid = int(parent.stdout.readline())
        parent.wait(10)
        leaks = [line for line in leaks_since(before) if line.startswith("process ")]

        assert [True] == [line.startswith(f"process {orphan_pid} ") for line in leaks]

        end_processes(before)
    wait_until(lambda: not leaks_since(before))


def test_leak_check_names_a_thread() -> None:
    """A thread that still runs is reported by its name."""
    before = take_snapshot()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, args=(10,), name="left-over")

    thread.start()
    with pytest.raises(AssertionError, match="thread 'left-over'"):
        assert_no_leaks(before, timeout_s=0.05)

    stop.set()
    thread.join(10)
    assert_no_leaks(before)


def test_leak_check_names_a_descriptor(tmp_path: Path) -> None:
    """An open descriptor is reported with the file it leads to."""
    before = take_snapshot()
    fd = os.open(tmp_path / "left-open", os.O_CREAT | os.O_WRONLY)

    with pytest.raises(AssertionError, match=rf"fd {fd} -> .*left-open"):
        assert_no_leaks(before, timeout_s=0.05)

    os.close(fd)
    assert_no_leaks(before)


def test_leak_check_waits_for_what_is_ending() -> None:
    """What ends within the bound is no leak."""
    before = take_snapshot()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, args=(10,))
    thread.start()

    timer = threading.Timer(0.05, stop.set)
    timer.start()

    assert_no_leaks(before)
    assert not thread.is_alive()


def test_wait_until_is_bounded() -> None:
    """A fact that never comes true fails with its name."""
    with pytest.raises(AssertionError, match="the moon is blue"):
        wait_until(lambda: False, timeout_s=0.02, what="the moon is blue")


def test_gate_holds_and_releases_in_the_tests_order(make_gate: Callable[[], Gate]) -> None:
    """Two processes wait at a gate and pass in the order the test wants."""
    gate = make_gate()
    with start_at_gate(gate, "first") as first:
        [arrived_first] = gate.wait_started()
        with start_at_gate(gate, "second") as second:
            [arrived_second] = gate.wait_started()

            assert (first.pid, "first") == (arrived_first.pid, arrived_first.label)
            assert (second.pid, "second") == (arrived_second.pid, arrived_second.label)
            assert (None, None) == (first.poll(), second.poll())

            gate.release(arrived_second)
            assert 0 == second.wait(10)
            assert None is first.poll()

            gate.release()
            assert 0 == first.wait(10)


def test_open_gate_holds_nobody(gate: Gate) -> None:
    """After open(), those who wait unseen and those who come later pass."""
    with start_at_gate(gate, "before") as before:
        wait_until(lambda: not gate.nobody_started())
        gate.open()
        assert 0 == before.wait(10)

    with start_at_gate(gate, "after") as after:
        assert 0 == after.wait(10)


def test_gate_reports_who_is_missing(gate: Gate) -> None:
    """Waiting for an arrival is bounded."""
    with pytest.raises(AssertionError, match="0 of 1 arrived"):
        gate.wait_started(timeout_s=0.02)


def test_gate_fits_into_a_socket_address(tmp_path: Path) -> None:
    """A directory too deep for a socket address is replaced by a short one, removed on close."""
    deep = tmp_path / ("d" * 120)
    deep.mkdir()

    with Gate(deep) as gate:
        assert Path(gate.path).exists()

    assert not Path(gate.path).exists()
    assert not Path(gate.path).parent.exists()


def test_unknown_gate_is_an_error(tmp_path: Path) -> None:
    """A worker with a wrong path fails instead of passing."""
    code = f"from gates import pass_gate; pass_gate({str(tmp_path / 'none')!r})"

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": DIRECTORY},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert 1 == done.returncode
    assert "FileNotFoundError" in done.stderr
