"""Limits hold in each kind of worker and in its children, and a worker that runs into one ends as the docs say."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from integration.workers import limited
from integration.workers.pools import FOLDER, LIMIT_S, config

from snakepit import (
    Adapter,
    CallableAdapter,
    CommandAdapter,
    CommandError,
    JavaScriptAdapter,
    PythonAdapter,
    SnakepitExecutor,
    WorkerDied,
    WorkerStartError,
)
from snakepit._programs import THREAD_VARIABLES
from snakepit._supervision.spawn import find_setpriv

GIB = 1 << 30
PYTHON = str(FOLDER / "limited.py")
NODE = str(FOLDER / "limited.js")
HOST_NICE = os.getpriority(os.PRIO_PROCESS, 0)

Call = Callable[..., Any]


@contextmanager
def worker(kind: str, **options: Any) -> Iterator[tuple[SnakepitExecutor, Call]]:
    """Start one worker of a kind; yields its pool, and ``call(command, **args)`` that returns a future."""
    adapters: dict[str, Callable[[], Adapter]] = {
        "python": lambda: PythonAdapter(PYTHON, **options),
        "node": lambda: JavaScriptAdapter(NODE, **options),
        "callables": lambda: CallableAdapter(**options),
    }
    with SnakepitExecutor(adapters[kind](), 1, config=config(restart_budget=1)) as ex:
        if kind == "callables":
            yield ex, lambda command, **args: ex.submit(getattr(limited, command), **args)
        else:
            yield ex, lambda command, **args: ex.submit(command, args)


@pytest.fixture(params=["python", "node", "callables"])
def kind(request: pytest.FixtureRequest, require_runtime: Callable[[str], str]) -> str:
    """Return the kind of worker; the test runs with each."""
    require_runtime("prlimit")
    if request.param == "node":
        require_runtime("node")
    return str(request.param)


@pytest.fixture(params=["python", "callables"])
def python_kind(request: pytest.FixtureRequest, require_runtime: Callable[[str], str]) -> str:
    """Return the kind of Python worker; the test runs with both."""
    require_runtime("prlimit")
    return str(request.param)


def test_everything_at_once(kind: str, tmp_path: Path) -> None:
    """Limits, niceness, mask and directory hold in the worker and in its children, and it leads its group."""
    cwd = tmp_path / "work"
    cwd.mkdir()
    options = {"rlimits": {"NOFILE": (60, 70)}, "nice": 3, "umask": 0o027, "cwd": cwd}
    with worker(kind, **options) as (ex, call):
        told = call("facts", file=str(tmp_path / "made")).result(LIMIT_S)
        (info,) = ex.workers()

    nice = min(19, HOST_NICE + 3)
    assert (str(cwd.resolve()), nice, 0o640) == (told["cwd"], told["nice"], told["mode"])
    # Node raises its own soft limit to the hard one when it starts.
    assert ["70" if kind == "node" else "60", "70", "unlimited", "0027", str(nice)] == told["child"]
    assert info.pid == told["pid"] == told.get("group", told["pid"])


def test_nothing_is_limited_by_default(kind: str) -> None:
    """Without parameters a worker has the host's own limits, niceness, mask and directory."""
    mask = os.umask(0o022)
    os.umask(mask)
    with worker(kind) as (_, call):
        told = call("facts", file=None).result(LIMIT_S)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert (os.getcwd(), HOST_NICE) == (told["cwd"], told["nice"])
    assert [str(hard if kind == "node" else soft), str(hard)] == told["child"][:2]
    assert [f"{mask:04o}", str(HOST_NICE)] == told["child"][3:]


def test_limits_hold_before_the_first_instruction(tmp_path: Path, require_runtime: Callable[[str], str]) -> None:
    """The program itself begins under its limits, as the process that the pool knows."""
    require_runtime("prlimit")
    note = tmp_path / "note"
    script = f'echo "$$ $(ulimit -n) $(umask) $(nice)" > {note}; exec "$@"'
    argv = ["sh", "-c", script, "sh", sys.executable, PythonAdapter().script_path() or ""]
    kind = CommandAdapter(argv, level=1, rlimits={"NOFILE": 60}, nice=2, umask=0o077)
    with SnakepitExecutor(kind, 1, config=config()) as ex:
        ex.wait_ready(timeout=LIMIT_S)
        (info,) = ex.workers()

    assert f"{info.pid} 60 0077 {min(19, HOST_NICE + 2)}\n" == note.read_text()


def test_the_parent_death_signal_survives(require_runtime: Callable[[str], str]) -> None:
    """The programs that set limits are in between, and the worker still dies with the pool's thread."""
    require_runtime("prlimit")
    with worker("callables", rlimits={"NOFILE": 60}, nice=1) as (_, call):
        number = call("parent_death_signal").result(LIMIT_S)

    assert (signal.SIGKILL if find_setpriv() else 0) == number


def test_descriptors_above_the_limit_reach_the_worker(kind: str, tmp_path: Path) -> None:
    """A host with many open files can start workers that may open few: the pool's pipes are inherited."""
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(100)]
    try:
        with worker(kind, rlimits={"NOFILE": 60}) as (_, call):
            told = call("facts", file=str(tmp_path / "made")).result(LIMIT_S)
    finally:
        for fd in files:
            os.close(fd)

    assert ["60", "60"] == told["child"][:2]


def test_attributes_of_a_subclass(tmp_path: Path, require_runtime: Callable[[str], str]) -> None:
    """What is set on the class or on the instance holds as the keywords do."""
    require_runtime("prlimit")

    class Mine(PythonAdapter):
        rlimits = {"NOFILE": 60}  # noqa: RUF012  # as a user would write it
        umask = 0o077
        threads = 2

    kind = Mine(PYTHON)
    kind.nice = 4
    kind.cwd = tmp_path
    with SnakepitExecutor(kind, 1, config=config()) as ex:
        told = ex.execute("facts", {"file": None})

    assert ["60", "60", "unlimited", "0077", str(min(19, HOST_NICE + 4))] == told["child"]
    assert (str(tmp_path.resolve()), "2") == (told["cwd"], told["env"]["OMP_NUM_THREADS"])


# Over the limit -----------------------------------------------------------------------------------------


def error_of(kind: str, call: Call, command: str, expected: type[Exception], **args: Any) -> BaseException:
    """Return the command's own error: of its class from a callable, a CommandError with its name else."""
    error = call(command, **args).exception(LIMIT_S)
    if kind == "callables":
        assert isinstance(error, expected)
    else:
        assert isinstance(error, CommandError)
        assert expected.__name__ == error.type
    return error


def test_memory(python_kind: str) -> None:
    """Above its address space a command gets a MemoryError, and its worker goes on."""
    with worker(python_kind, rlimits={"AS": GIB}) as (_, call):
        before = call("facts").result(LIMIT_S)["pid"]

        error_of(python_kind, call, "allocate", MemoryError, size=2 * GIB)

        assert 1000 == call("allocate", size=1000).result(LIMIT_S)
        assert before == call("facts").result(LIMIT_S)["pid"]


def test_files_of_python(python_kind: str) -> None:
    """Above its descriptors a command gets an OSError, and its worker goes on."""
    with worker(python_kind, rlimits={"NOFILE": 60}) as (_, call):
        before = call("facts").result(LIMIT_S)["pid"]

        error = error_of(python_kind, call, "open_many", OSError, count=100)

        assert os.strerror(errno.EMFILE) in str(error)
        assert 20 == call("open_many", count=20).result(LIMIT_S)
        assert before == call("facts").result(LIMIT_S)["pid"]


def test_files_of_node(require_runtime: Callable[[str], str]) -> None:
    """In Node too, which raises its soft limit to the hard one: a single number is both."""
    require_runtime("prlimit")
    require_runtime("node")
    with worker("node", rlimits={"NOFILE": 60}) as (_, call):
        before = call("facts").result(LIMIT_S)["pid"]

        error = call("open_many", count=100).exception(LIMIT_S)

        assert isinstance(error, CommandError)
        assert "EMFILE" in str(error)
        assert before == call("facts").result(LIMIT_S)["pid"]


def test_size_of_files(python_kind: str, tmp_path: Path) -> None:
    """Above the size of a file a write is an OSError: Python ignores SIGXFSZ."""
    with worker(python_kind, rlimits={"FSIZE": 1000}) as (_, call):
        error = error_of(python_kind, call, "write", OSError, file=str(tmp_path / "f"), size=2000)

    assert os.strerror(errno.EFBIG) in str(error)


def test_cpu_time(kind: str) -> None:
    """Above its CPU time a worker is ended by SIGXCPU: WorkerDied names it, and a new worker serves."""
    with worker(kind, rlimits={"CPU": 1}) as (_, call):
        before = call("facts").result(LIMIT_S)["pid"]

        error = call("burn").exception(3 * LIMIT_S)

        assert isinstance(error, WorkerDied)
        assert (before, signal.SIGXCPU) == (error.pid, error.signal)
        assert "SIGXCPU" in str(error)
        assert before != call("facts").result(LIMIT_S)["pid"]


@pytest.mark.parametrize("limit", [{"AS": 1_000_000}, {"NOFILE": 3}, {"STACK": 1000}])
def test_limits_too_small_to_start(kind: str, limit: dict[str, int]) -> None:
    """A limit that the program cannot start under is a WorkerStartError that names it."""
    ((name, number),) = limit.items()
    with worker(kind, rlimits=limit) as (ex, _), pytest.raises(WorkerStartError) as caught:
        ex.wait_ready(timeout=LIMIT_S)

    assert f"it had the limits {name}={number}, and one too small keeps a program from starting" in str(caught.value)
    assert f"--{name.lower()}={number}:{number}" in caught.value.argv


def test_no_error_shows_the_environment(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The variables of a worker that does not start are in no message, no repr and no log."""
    caplog.set_level(logging.DEBUG)
    with (
        worker(kind, rlimits={"AS": 1_000_000}, env={"TOKEN": "s3cret"}) as (ex, call),
        pytest.raises(WorkerStartError) as caught,
    ):
        broken = call("facts").exception(LIMIT_S)
        ex.wait_ready(timeout=LIMIT_S)

    said = [str(caught.value), repr(caught.value), str(caught.value.argv), repr(broken), repr(broken.__cause__)]
    assert "AS=1000000" in caplog.text
    assert [] == [text for text in (*said, caplog.text) if "s3cret" in text]


def test_a_limit_that_the_system_refuses(require_runtime: Callable[[str], str]) -> None:
    """What only the system can refuse is told in its words, and the program did not run."""
    require_runtime("prlimit")
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    options = {"rlimits": {"NOFILE": most + 1}}
    try:
        context = worker("python", **options)
        with context as (ex, _), pytest.raises(WorkerStartError, match=r"prlimit: .*NOFILE"):
            ex.wait_ready(timeout=LIMIT_S)
    except ValueError as error:  # without the capability the constructor refuses it already
        assert "is above the hard limit" in str(error)


# The environment ----------------------------------------------------------------------------------------


def test_threads_are_one_by_default(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every numerical library is told to use one thread, but for what the host says itself."""
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with worker(kind) as (_, call):
        plain = call("facts", file=None).result(LIMIT_S)["env"]
    monkeypatch.setenv("MKL_NUM_THREADS", "4")
    with worker(kind) as (_, call):
        merged = call("facts", file=None).result(LIMIT_S)["env"]
    with worker(kind, threads=None) as (_, call):
        untouched = call("facts", file=None).result(LIMIT_S)["env"]

    def threads(env: dict[str, str]) -> dict[str, str]:
        return {name: env[name] for name in THREAD_VARIABLES if name in env}

    assert dict.fromkeys(THREAD_VARIABLES, "1") == threads(plain)
    assert dict.fromkeys(THREAD_VARIABLES, "1") | {"MKL_NUM_THREADS": "4"} == threads(merged)
    assert {"MKL_NUM_THREADS": "4"} == threads(untouched)


def test_an_allow_list(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only variables that are named or fit a pattern come from the host; env is added to them."""
    for name in ("SP_ONE", "SP_TWO", "AWS_SECRET"):
        monkeypatch.setenv(name, "host")
    with worker(kind, inherit_env=["PATH", "SP_*"], env={"SP_TWO": "mine"}, threads=None) as (_, call):
        env = call("facts", file=None).result(LIMIT_S)["env"]

    # What the programs on the way and the interpreter itself add is not from the host.
    added = {"LC_CTYPE", "PWD", "OLDPWD", "SHLVL", "_"}
    assert {"PATH", "SP_ONE", "SP_TWO"} == {
        name for name in env if name not in added and not name.startswith("SNAKEPIT_")
    }
    assert ("host", "mine") == (env["SP_ONE"], env["SP_TWO"])


def test_one_workers_own_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    """environment() wins over env, the host's variables and the number of threads."""

    class ByDevice(PythonAdapter):
        def environment(self, worker: Any) -> dict[str, str]:
            return {"CUDA_VISIBLE_DEVICES": str(worker.slot), "OMP_NUM_THREADS": "7"}

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    kind = ByDevice(PYTHON, env={"CUDA_VISIBLE_DEVICES": "all", "OMP_NUM_THREADS": "5"}, threads=3)
    with SnakepitExecutor(kind, 1, config=config()) as ex:
        env = ex.execute("facts", {"file": None})["env"]

    assert ("0", "7", "3") == (env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"], env["MKL_NUM_THREADS"])


def test_the_directory_of_callables(tmp_path: Path) -> None:
    """A callable runs in cwd, and its modules are still found where the host finds them."""
    with SnakepitExecutor(CallableAdapter(cwd=tmp_path), 1, config=config()) as ex:
        cwd, path = ex.execute(limited.path)

    assert str(tmp_path.resolve()) == cwd
    assert [entry or os.getcwd() for entry in sys.path] == path
