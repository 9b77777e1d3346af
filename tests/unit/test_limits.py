"""How a process is limited: values are checked when the adapter is made, and become words before its command line."""

from __future__ import annotations

import math
import os
import resource
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from snakepit import CallableAdapter, CommandAdapter, JavaScriptAdapter, PythonAdapter, WorkerStartError
from snakepit import _limits as limits
from snakepit._limits import RLIMITS, check_rlimits, exec_chain, told
from snakepit._programs import THREAD_VARIABLES, host_variables, worker_variables
from snakepit.adapters import Adapter

OTHERS = set(THREAD_VARIABLES) - {"OMP_NUM_THREADS"}


class Own(Adapter):
    """A user's adapter with nothing but its program."""

    def executable_path(self) -> str:
        return "sh"


BAD = [
    ("rlimits", 5, TypeError, "must map names .* not 5"),
    ("rlimits", [("AS", 5)], TypeError, "must map names"),
    ("rlimits", {"as": 5}, ValueError, "no limit 'as'; there are AS, .*NOFILE"),
    ("rlimits", {"RLIMIT_AS": 5}, ValueError, "no limit 'RLIMIT_AS'"),
    ("rlimits", {3: 5}, ValueError, "no limit 3"),
    ("rlimits", {"RSS": 5}, ValueError, "ignores the limit 'RSS'; use AS, or PoolConfig"),
    ("rlimits", {"AS": -1}, ValueError, "AS must be from 0 .* None for no limit, not -1"),
    ("rlimits", {"AS": 1 << 63}, ValueError, "AS must be from 0"),
    ("rlimits", {"AS": True}, TypeError, "AS must be an int.* not True"),
    ("rlimits", {"AS": 1e9}, TypeError, "AS must be an int.* not 1000000000.0"),
    ("rlimits", {"AS": math.nan}, TypeError, "AS must be an int.* not nan"),
    ("rlimits", {"AS": "1G"}, TypeError, "AS must be an int.* not '1G'"),
    ("rlimits", {"AS": [1, 2]}, TypeError, "AS must be an int"),
    ("rlimits", {"AS": (1, 2.0)}, TypeError, r"AS must be an int.* not \(1, 2.0\)"),
    ("rlimits", {"AS": (1,)}, ValueError, r"AS must be a number or \(soft, hard\), not \(1,\)"),
    ("rlimits", {"AS": (2, 1)}, ValueError, "soft limit of AS, 2, must not be above the hard one, 1"),
    ("rlimits", {"AS": (None, 1)}, ValueError, "soft limit of AS, unlimited, must not be above"),
    ("nice", -1, ValueError, "nice must be from 0 .* to 19 .* not -1"),
    ("nice", 20, ValueError, "nice must be .* not 20"),
    ("nice", True, TypeError, "nice must be an int .* not True"),
    ("nice", 1.5, TypeError, "nice must be an int .* not 1.5"),
    ("nice", None, TypeError, "nice must be an int .* not None"),
    ("umask", -1, ValueError, "umask must be from 0 to 0o777"),
    ("umask", 1022, ValueError, r"umask must be from 0 to 0o777, not 0o1776 \(1022; was the 0o left out\?\)"),
    ("umask", "077", TypeError, "umask must be an int such as 0o077"),
    ("umask", False, TypeError, "umask must be an int .* not False"),
    ("threads", 0, ValueError, "threads must be >= 1, or None to set nothing, not 0"),
    ("threads", -2, ValueError, "threads must be >= 1"),
    ("threads", True, TypeError, "threads must be an int >= 1, 'auto', or None .* not True"),
    ("threads", math.nan, TypeError, "threads must be .* not nan"),
    ("threads", "all", TypeError, "threads must be .* not 'all'"),
    ("inherit_env", "PATH", TypeError, "inherit_env must be True, False, or a collection of names .* not 'PATH'"),
    ("inherit_env", None, TypeError, "inherit_env must be .* not None"),
    ("inherit_env", 1, TypeError, "inherit_env must be .* not 1"),
    ("inherit_env", ["PATH", 3], TypeError, "inherit_env: a name must be a str, not 3"),
    ("inherit_env", ["A=B"], ValueError, "inherit_env: no variable is called 'A=B'"),
    ("inherit_env", [""], ValueError, "inherit_env: no variable is called ''"),
    ("env", ["A"], TypeError, "env must map names"),
    ("env", {"A=B": "1"}, ValueError, "env: no process can be given the variable 'A=B'"),
    ("cwd", 5, TypeError, "cwd must be a path, not 5"),
    ("cwd", "/no/such/folder", ValueError, "'/no/such/folder' is not a directory"),
    ("wrap", "bwrap", TypeError, r"wrap must be callable with \(argv, worker\), not 'bwrap'"),
]
BAD_IDS = [f"{name}-{value!r}" for name, value, _, _ in BAD]


@pytest.mark.parametrize(("name", "value", "kind", "text"), BAD, ids=BAD_IDS)
def test_constructors_refuse(name: str, value: Any, kind: type[Exception], text: str) -> None:
    """Every adapter refuses a bad value when it is made, with the adapter, the parameter and the value."""
    makers = {
        "PythonAdapter": lambda: PythonAdapter(**{name: value}),
        "JavaScriptAdapter": lambda: JavaScriptAdapter(**{name: value}),
        "CommandAdapter": lambda: CommandAdapter(["sh"], **{name: value}),
        "CallableAdapter": lambda: CallableAdapter(**{name: value}),
        "Own": lambda: Own(**{name: value}),
    }

    for adapter, make in makers.items():
        with pytest.raises(kind, match=f"^{adapter}: .*{text}"):
            make()


@pytest.mark.parametrize(("name", "value", "kind", "text"), BAD, ids=BAD_IDS)
def test_attributes_are_checked_by_the_pool(name: str, value: Any, kind: type[Exception], text: str) -> None:
    """An adapter that sets a bad attribute on its class is refused before a worker is started."""
    bad = type("Bad", (Own,), {name: value})

    with pytest.raises(kind, match=f"^Bad: .*{text}"):
        bad().argv()


@pytest.mark.parametrize("kind", [PythonAdapter, JavaScriptAdapter, CallableAdapter, Own])
def test_unknown_parameters_are_named(kind: type[Adapter]) -> None:
    """A misspelt keyword is a TypeError with its name and those that exist."""
    with pytest.raises(TypeError, match=rf"{kind.__name__} has no parameter 'rlimit'.*\brlimits\b"):
        kind(rlimit={"AS": 5})  # type: ignore[call-arg]


def test_an_adapter_without_a_constructor_call() -> None:
    """A subclass whose constructor calls no other has the defaults."""

    class Bare(Own):
        def __init__(self) -> None:
            pass

    adapter = Bare()

    assert ("auto", True, None, 0, None) == (
        adapter.threads, adapter.inherit_env, adapter.umask, adapter.nice, adapter.rlimits,
    )
    assert os.path.isabs(adapter.argv()[0])


def test_no_message_shows_a_value_of_the_environment() -> None:
    """Secrets in the environment are in no error about it."""
    for env in ({"TOKEN": "s3cret\0"}, {"": "s3cret"}, {3: "s3cret"}, {"TOKEN": b"s3cret"}, [("TOKEN", "s3cret")]):
        with pytest.raises((TypeError, ValueError)) as caught:
            PythonAdapter(env=env)  # type: ignore[arg-type]
        assert "s3cret" not in str(caught.value)


# Resource limits --------------------------------------------------------------------------------------


@pytest.fixture
def host_limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, int]]:
    """Return the host's limits as the code sees them: all unlimited, no privilege, to be changed by the test."""
    found: dict[int, tuple[int, int]] = {}
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda number: found.get(number, unlimited))
    monkeypatch.setattr(limits, "_may_raise_limits", lambda: False)
    return found


@pytest.mark.parametrize(
    ("given", "pair"),
    [
        ({"AS": 5}, (5, 5)),
        ({"AS": None}, (None, None)),
        ({"AS": (5, None)}, (5, None)),
        ({"NOFILE": (5, 7)}, (5, 7)),
        ({"CORE": 0}, (0, 0)),
        ({"CPU": 5}, (5, 6)),
        ({"CPU": (5, 5)}, (5, 5)),
        ({"RTTIME": 5}, (5, 1_000_005)),
    ],
)
def test_pairs(host_limits: object, given: Mapping[str, Any], pair: tuple[int | None, int | None]) -> None:
    """One number is both limits; where the soft one is told by a signal, the hard one is a second later."""
    assert [pair] == list(check_rlimits("rlimits", given).values())


@pytest.mark.parametrize("value", [101, (50, 101), (50, None), None])
def test_a_hard_limit_above_the_hosts(
    host_limits: dict[int, tuple[int, int]], monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    """Without the capability to raise it, a hard limit above the host's own is refused, with that number."""
    host_limits[resource.RLIMIT_NOFILE] = (10, 100)

    with pytest.raises(ValueError, match=r"NOFILE=(101|unlimited) is above the hard limit of this process, 100, "):
        check_rlimits("rlimits", {"NOFILE": value})

    assert {"NOFILE": (100, 100)} == check_rlimits("rlimits", {"NOFILE": 100})
    monkeypatch.setattr(limits, "_may_raise_limits", lambda: True)
    assert 1 == len(check_rlimits("rlimits", {"NOFILE": value}))


@pytest.mark.parametrize(("most", "pair"), [(5, (5, 5)), (6, (5, 6)), (9, (5, 6))])
def test_the_second_after_the_signal_is_not_above_the_hosts(
    host_limits: dict[int, tuple[int, int]], most: int, pair: tuple[int, int]
) -> None:
    """The hard limit of CPU time that was not asked for stays within the host's own."""
    host_limits[resource.RLIMIT_CPU] = (most, most)

    assert {"CPU": pair} == check_rlimits("rlimits", {"CPU": 5})


def test_the_capability_is_read_from_the_system() -> None:
    """Whether a process may raise a hard limit is what the kernel says when it tries."""
    pid = os.fork()
    if pid == 0:
        status = 2
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            try:
                resource.setrlimit(resource.RLIMIT_CORE, (0, 1))
                status = 1
            except ValueError:
                status = 0
        finally:
            os._exit(status)

    allowed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert allowed == limits._may_raise_limits()


def test_every_known_limit_is_one_of_prlimit(require_runtime: Any) -> None:
    """The names are those for which prlimit has an option."""
    text = subprocess.run([require_runtime("prlimit"), "--help"], capture_output=True, text=True, check=True).stdout

    assert [] == [name for name in RLIMITS if f"--{name.lower()}" not in text]
    assert {"AS", "CPU", "NOFILE"} <= set(RLIMITS)


# The words before the command line -----------------------------------------------------------------------


def test_the_chain(host_limits: object) -> None:
    """Niceness first, then the resource limits; nothing where nothing is asked for."""
    chain = exec_chain("A", {"AS": (5, None), "NOFILE": 64}, 3)

    nice, *rest = chain
    assert os.path.isabs(nice) and "nice" == os.path.basename(nice)
    assert ("-n", "3", "--as=5:unlimited", "--nofile=64:64") == (rest[0], rest[1], *rest[3:])
    assert os.path.isabs(rest[2]) and "prlimit" == os.path.basename(rest[2])
    assert ((), ()) == (exec_chain("A", None, 0), exec_chain("A", {}, 0))
    assert ("AS=5, NOFILE=64", "") == (told("A", {"AS": (5, None), "NOFILE": 64}), told("A", None))


@pytest.mark.parametrize(("rlimits", "nice", "name"), [({"AS": 5}, 0, "prlimit"), (None, 5, "nice")])
def test_a_missing_tool_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, rlimits: Any, nice: int, name: str
) -> None:
    """A system without the program that sets a limit says so before a worker is started."""
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(WorkerStartError, match=f"A: {'nice=5' if nice else 'rlimits'} needs the program '{name}'"):
        exec_chain("A", rlimits, nice)


# The environment -------------------------------------------------------------------------------------


def test_what_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """All, nothing, or the variables that are named or fit a pattern, by case."""
    for name in ("SP_ONE", "SP_TWO", "sp_three", "OTHER_SP_ONE"):
        monkeypatch.setenv(name, name)

    assert dict(os.environ) == host_variables(True)
    assert {} == host_variables(False) == host_variables([])
    assert {"SP_ONE": "SP_ONE"} == host_variables(["SP_ONE", "NOT_THERE"])
    assert {"SP_ONE", "SP_TWO"} == set(host_variables({"SP_*"}))
    assert {"SP_ONE", "sp_three"} == set(host_variables(("SP_O?E", "sp_[a-z]*")))


@pytest.mark.parametrize(
    ("host", "threads", "env", "own", "expected"),
    [
        ({}, "auto", {}, {}, dict.fromkeys(THREAD_VARIABLES, "1")),
        ({}, None, {}, {}, {}),
        ({}, 3, {}, {}, dict.fromkeys(THREAD_VARIABLES, "3")),
        ({"MKL_NUM_THREADS": "4"}, "auto", {}, {}, dict.fromkeys(THREAD_VARIABLES, "1") | {"MKL_NUM_THREADS": "4"}),
        ({"MKL_NUM_THREADS": "4"}, None, {}, {}, {"MKL_NUM_THREADS": "4"}),
        ({"OMP_NUM_THREADS": "1"}, 3, {}, {}, dict.fromkeys(THREAD_VARIABLES, "3")),
        ({}, 3, {"OMP_NUM_THREADS": "5"}, {}, dict.fromkeys(OTHERS, "3") | {"OMP_NUM_THREADS": "5"}),
        ({}, 3, {}, {"OMP_NUM_THREADS": "6"}, dict.fromkeys(OTHERS, "3") | {"OMP_NUM_THREADS": "6"}),
    ],
)
def test_threads(
    host: dict[str, str], threads: Any, env: dict[str, str], own: dict[str, str], expected: dict[str, str]
) -> None:
    """A number wins over the host's variables and yields to the adapter's; "auto" yields to both."""
    assert expected == worker_variables(host, threads, env, own)


@pytest.mark.parametrize("place", ["host", "env", "own"])
def test_libraries_that_follow_openmp_are_left_to_it(place: str) -> None:
    """With OMP_NUM_THREADS said, a library's own variable would overrule it, so none is set."""
    given: dict[str, dict[str, str]] = {"host": {}, "env": {}, "own": {}}
    given[place]["OMP_NUM_THREADS"] = "4"

    variables = worker_variables(given["host"], "auto", given["env"], given["own"])

    assert {"OMP_NUM_THREADS": "4", "VECLIB_MAXIMUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"} == variables


def test_the_nearest_variable_wins() -> None:
    """One worker's own variables win over the adapter's, and those over the host's."""
    variables = worker_variables({"A": "host", "B": "host", "C": "host"}, None, {"A": "env", "B": "env"}, {"A": "own"})

    assert {"A": "own", "B": "env", "C": "host"} == variables
