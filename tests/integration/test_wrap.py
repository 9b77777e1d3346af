"""A worker inside another program: which command line is run, and that supervision is none the worse for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from integration import scripts
from integration.workers.pools import FOLDER, HANDLERS, LIMIT_S, adapter, config, handler_pool, lines, saboteur
from test_docs_code import ROOT, blocks_of

from snakepit import (
    Adapter,
    CallableAdapter,
    CommandTimeout,
    JavaScriptAdapter,
    PoolBroken,
    PythonAdapter,
    SnakepitExecutor,
    WorkerDied,
    WorkerSpec,
    WorkerStartError,
)

import gates
from gates import Gate
from leaks import is_gone, wait_until

WAITING = str(FOLDER / "waiting_wrapper.py")


def waiting(log: Path, *options: str) -> Callable[[Sequence[str], WorkerSpec], Sequence[str]]:
    """Return a wrap that runs the worker in the wrapper that forks and stays between."""
    return lambda argv, worker: [sys.executable, "-I", "-S", WAITING, str(log), *options, "--", *argv]


# The command line -----------------------------------------------------------------------------------


def test_wrap_is_asked_for_each_process() -> None:
    """It gets the worker's own command line and its place, on the watchdog's thread, for replacements too."""
    seen: list[tuple[tuple[str, ...], WorkerSpec, str]] = []

    def wrap(argv: tuple[str, ...], worker: WorkerSpec) -> Sequence[str]:
        seen.append((argv, worker, threading.current_thread().name))
        return argv

    kind = adapter(wrap=wrap)
    with handler_pool(1, adapter=kind, name="w") as ex:
        assert isinstance(ex.submit("die", {"code": 3}).exception(LIMIT_S), WorkerDied)
        ex.execute("pid")

    assert [kind.argv()] * 2 == [argv for argv, _, _ in seen]
    assert [WorkerSpec("w-0-1", 0, 1, "w"), WorkerSpec("w-0-2", 0, 2, "w")] == [worker for _, worker, _ in seen]
    assert {"snakepit-w-watchdog"} == {thread for _, _, thread in seen}


class Overridden(PythonAdapter):
    """Wraps by its method."""

    def wrap(self, argv: tuple[str, ...], worker: WorkerSpec) -> Sequence[str]:
        return ["env", f"WRAPPED={worker.slot}", *argv]


def test_wrap_as_a_method_and_as_a_parameter() -> None:
    """A subclass overrides the method; a function that is given takes its place, None does not."""
    env = {"PYTHONPATH": gates.DIRECTORY}
    kinds = [
        Overridden(HANDLERS, env=env),
        Overridden(HANDLERS, env=env, wrap=None),
        Overridden(HANDLERS, env=env, wrap=lambda argv, worker: ("env", "WRAPPED=given", *argv)),
    ]
    told = []
    for kind in kinds:
        with handler_pool(1, adapter=kind) as ex:
            told.append(ex.execute("env", {"name": "WRAPPED"}))

    assert ["0", "0", "given"] == told


def test_the_wrapper_is_limited_as_the_worker_is(tmp_path: Path, require_runtime: Callable[[str], str]) -> None:
    """The order is nice, prlimit, wrapper, program: the wrapper begins with the limits, directory and variables."""
    require_runtime("prlimit")
    note = tmp_path / "note"
    script = f'echo "$$ $(ulimit -n) $(umask) $PWD $MINE" > {note}; exec "$@"'
    kind = adapter(
        wrap=lambda argv, worker: ["sh", "-c", script, "sh", *argv],
        rlimits={"NOFILE": 60},
        nice=1,
        umask=0o077,
        cwd=tmp_path,
        env={"MINE": "yes"},
    )
    with handler_pool(1, adapter=kind) as ex:
        ex.wait_ready(timeout=LIMIT_S)
        (info,) = ex.workers()

    assert f"{info.pid} 60 0077 {tmp_path.resolve()} yes\n" == note.read_text()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("bwrap", r"wrap\(\) must return a sequence of words, e.g. .* not str"),
        (None, r"wrap\(\) must return a sequence of words, e.g. .* not NoneType"),
        ([], r"wrap\(\) returned no program"),
        ([""], r"wrap\(\) returned no program"),
        (["env", 5], r"wrap\(\): word 1 must be a str or a path, not int"),
        (["env", "a\0b"], r"wrap\(\): no process can be given word 1"),
        (["no-such-wrapper", "x"], r"no-such-wrapper x: .*No such program in PATH"),
    ],
)
def test_a_bad_command_line_is_a_failed_start(given: Any, text: str) -> None:
    """What wrap returns is checked, and the pool breaks with the reason instead of hanging."""
    kind = adapter(wrap=lambda argv, worker: given)
    with handler_pool(1, adapter=kind, config=config(restart_budget=1)) as ex:
        error = ex.submit("pid").exception(LIMIT_S)

    assert isinstance(error, PoolBroken)
    assert isinstance(error.__cause__, WorkerStartError)
    with pytest.raises(WorkerStartError, match=text):
        raise error.__cause__


def test_a_raising_wrap_is_a_failed_start() -> None:
    """Its exception is in the WorkerStartError."""

    def wrap(argv: Sequence[str], worker: WorkerSpec) -> Sequence[str]:
        raise ZeroDivisionError("no sandbox today")

    with (
        handler_pool(1, adapter=adapter(wrap=wrap), config=config(restart_budget=1)) as ex,
        pytest.raises(WorkerStartError, match=r"PythonAdapter.wrap\(\) raised ZeroDivisionError: no sandbox today"),
    ):
        ex.wait_ready(timeout=LIMIT_S)


def test_the_command_line_that_was_run_is_in_the_error(require_runtime: Callable[[str], str]) -> None:
    """A wrapper that fails is told with its own words and status."""
    require_runtime("prlimit")
    script = "echo no namespaces here >&2; exit 9"
    kind = adapter(wrap=lambda argv, worker: ["sh", "-c", script, *argv], rlimits={"CORE": 0})
    with (
        handler_pool(1, adapter=kind, config=config(restart_budget=1)) as ex,
        pytest.raises(WorkerStartError, match="no namespaces here") as caught,
    ):
        ex.wait_ready(timeout=LIMIT_S)

    error = caught.value
    assert 9 == error.exit_code
    assert ("prlimit", "--core=0:0", "sh", "-c", script, *kind.argv()) == (
        os.path.basename(error.argv[0]),
        *error.argv[1:],
    )


# A wrapper that stays between ---------------------------------------------------------------------------


class OnStandardStreams(PythonAdapter):
    """The Python bridge at level 0, for a wrapper that passes no other descriptors on."""

    level = 0


@pytest.fixture(params=["python", "node", "callables", "level 0", "python at level 0"])
def wrapped(
    request: pytest.FixtureRequest, tmp_path: Path, require_runtime: Callable[[str], str]
) -> tuple[Adapter, Path]:
    """Return an adapter in the wrapper that stays between, and its log; the test runs with each kind of worker."""
    log = tmp_path / "log"
    if request.param == "node":
        require_runtime("node")
        return JavaScriptAdapter(wrap=waiting(log)), log
    if request.param == "callables":
        return CallableAdapter(wrap=waiting(log)), log
    if request.param == "level 0":
        return saboteur(0, wrap=waiting(log, "--standard-streams-only")), log
    if request.param == "python at level 0":
        return OnStandardStreams(wrap=waiting(log, "--standard-streams-only")), log
    return adapter(wrap=waiting(log)), log


def test_an_idle_worker_ends_by_the_end_of_its_input(wrapped: tuple[Adapter, Path]) -> None:
    """The wrapper's copies of the descriptors keep nothing open: no signal is needed."""
    kind, log = wrapped
    with SnakepitExecutor(kind, 2, config=config(shutdown_grace_s=LIMIT_S)) as ex:
        ex.wait_ready(LIMIT_S, 2)
        pids = [info.pid for info in ex.workers()]
        inner = [child.pid for pid in pids for child in psutil.Process(pid).children()]

    assert [] == lines(log)
    assert 2 == len(inner)
    assert [] == [pid for pid in (*pids, *inner) if not is_gone(pid)]


def test_a_timeout_ends_both(tmp_path: Path, gate: Gate) -> None:
    """TERM and KILL go to the group: the wrapper that ignores TERM goes too, and the next worker serves."""
    kind = adapter(wrap=waiting(tmp_path / "log"))
    with handler_pool(1, adapter=kind) as ex:
        ex.execute("ignore_term")
        (info,) = ex.workers()
        inner = ex.execute("pid")
        slow = ex.submit("hold", {"gate": gate.path}, timeout=0.2)

        assert isinstance(slow.exception(LIMIT_S), CommandTimeout)
        assert info.pid != inner
        assert inner != ex.execute("pid")
        assert is_gone(info.pid or 0)
        assert is_gone(inner)
    assert ["TERM"] == lines(tmp_path / "log")


def test_term_reaches_the_worker_too(tmp_path: Path, gate: Gate) -> None:
    """TERM goes to the worker itself, so that a wrapper which only waits does not cost the grace and a KILL."""
    kind = adapter(wrap=waiting(tmp_path / "log"))
    with handler_pool(1, adapter=kind, config=config(kill_grace_s=3 * LIMIT_S)) as ex:
        ex.wait_ready(timeout=LIMIT_S)
        slow = ex.submit("hold", {"gate": gate.path}, timeout=0.2)

        assert isinstance(slow.exception(LIMIT_S), CommandTimeout)
        assert isinstance(ex.submit("pid").result(LIMIT_S), int)


@pytest.mark.parametrize(
    ("args", "code"), [({"code": 7}, 7), ({"number": 9}, 128 + 9), ({"number": 6}, 128 + 6)]
)
def test_the_wrappers_status_is_told(tmp_path: Path, args: dict[str, int], code: int) -> None:
    """A crash inside ends the wrapper, and only the request that ran there; the status is the wrapper's."""
    with handler_pool(1, adapter=adapter(wrap=waiting(tmp_path / "log"))) as ex:
        error = ex.submit("die", args).exception(LIMIT_S)

        assert isinstance(error, WorkerDied)
        assert (code, None) == (error.exit_code, error.signal)
        assert isinstance(ex.execute("pid"), int)


def test_a_wrapper_that_is_killed_takes_its_worker_along(tmp_path: Path, gate: Gate) -> None:
    """The exit of the wrapper is the worker's: what is left of the group is ended before a replacement."""
    with handler_pool(1, adapter=adapter(wrap=waiting(tmp_path / "log"))) as ex:
        inner = ex.execute("pid")
        (info,) = ex.workers()
        held = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()

        os.kill(info.pid or 0, signal.SIGKILL)

        error = held.exception(LIMIT_S)
        assert isinstance(error, WorkerDied)
        assert (info.pid, signal.SIGKILL) == (error.pid, error.signal)
        assert inner != ex.execute("pid")
        assert is_gone(inner)


def test_a_killed_host_leaves_neither(tmp_path: Path, gate: Gate) -> None:
    """With the host killed, a busy worker inside a wrapper that ignores TERM is gone all the same."""
    source = """
import sys
from snakepit import PythonAdapter, SnakepitExecutor
wrapper, log, handlers, gate, tests = sys.argv[1:]
wrap = lambda argv, worker: [sys.executable, "-I", "-S", wrapper, log, "--", *argv]
ex = SnakepitExecutor(PythonAdapter(handlers, env={"PYTHONPATH": tests}, wrap=wrap), 1)
ex.wait_ready()
print(ex.workers()[0].pid, flush=True)
ex.submit("hold", {"gate": gate}).result()
"""
    args = (WAITING, tmp_path / "log", HANDLERS, gate.path, gates.DIRECTORY)
    host = scripts.start(tmp_path, source, *args)
    assert host.stdout is not None
    outer = int(host.stdout.readline())
    (arrival,) = gate.wait_started(timeout_s=LIMIT_S)

    host.kill()
    host.communicate(timeout=LIMIT_S)

    wait_until(lambda: is_gone(outer) and is_gone(arrival.pid), LIMIT_S, "the end of both")


# The documented wrappers ----------------------------------------------------------------------------------


@pytest.fixture
def bwrap(require_runtime: Callable[[str], str]) -> str:
    """Return the path of bubblewrap."""
    return require_runtime("bwrap")


def test_the_documented_bubblewrap(bwrap: str, tmp_path: Path) -> None:
    """The how-to guide's block does what it says; where the kernel refuses namespaces, bubblewrap's reason is told."""
    page = ROOT / "docs" / "howto.md"
    (code,) = (block.code for block in blocks_of(page.read_text(encoding="utf-8")) if '"bwrap"' in block.code)
    program = tmp_path / "block.py"
    program.write_text(code)

    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    probe = [bwrap, "--dev-bind", "/", "/", "--unshare-pid", "--unshare-net", "--unshare-ipc", "true"]
    refused = subprocess.run(probe, capture_output=True, text=True, timeout=30, check=False).stderr.strip()
    if refused:
        assert 1 == done.returncode
        assert refused in done.stderr
        assert "WorkerStartError" in done.stderr
    else:
        assert (0, "") == (done.returncode, done.stderr)


def test_a_sandbox_of_its_own_process_numbers(bwrap: str, gate: Gate, tmp_path: Path) -> None:
    """A worker that is no. 2 in its own process namespace is ended at its time-out, and replaced."""
    sandbox = ("--dev-bind", "/", "/", "--unshare-pid", "--proc", "/proc", "--die-with-parent")
    kind = adapter(wrap=lambda argv, worker: [bwrap, *sandbox, "--", *argv])
    with handler_pool(1, adapter=kind) as ex:
        ex.execute("ignore_term")
        (info,) = ex.workers()
        outer = psutil.Process(info.pid)
        everyone = [outer, *outer.children(recursive=True)]
        slow = ex.submit("hold", {"gate": gate.path}, timeout=0.2)

        assert isinstance(slow.exception(LIMIT_S), CommandTimeout)
        assert 2 == ex.execute("pid")
        assert 3 == len(everyone)
        assert [] == [process.pid for process in everyone if not is_gone(process.pid)]
