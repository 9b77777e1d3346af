"""Bad input is refused at the caller with an error that names the value, and the pool goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, config, handler_pool, saboteur_pool

from snakepit import (
    CallableAdapter,
    CommandAdapter,
    EncodeError,
    InvalidArguments,
    JavaScriptAdapter,
    PoolConfig,
    PythonAdapter,
    ResultError,
    SnakepitExecutor,
    UnknownCommand,
    WorkerStartError,
)


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[SnakepitExecutor]:
    """Return a pool that the tests of this file share; each shows that it goes on."""
    with handler_pool(1) as ex:
        ex.wait_ready()
        yield ex


@pytest.fixture
def pool(shared_pool: SnakepitExecutor) -> Iterator[SnakepitExecutor]:
    """Return the shared pool and check after the test that the same worker still serves."""
    pid = shared_pool.execute("pid")
    accepted = shared_pool.stats().requests
    yield shared_pool
    assert pid == shared_pool.execute("pid")
    assert accepted <= shared_pool.stats().requests


# The constructor ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: SnakepitExecutor("python"), TypeError, "'python'"),  # type: ignore[arg-type]
        (lambda: SnakepitExecutor(PythonAdapter), TypeError, r"did you mean PythonAdapter\(\.\.\.\)"),  # type: ignore[arg-type]
        (lambda: SnakepitExecutor(object()), TypeError, "<object object"),  # type: ignore[arg-type]
        (lambda: SnakepitExecutor(True), TypeError, "True"),
        (lambda: SnakepitExecutor(4, 5), TypeError, "twice: 4 and 5"),
        (lambda: SnakepitExecutor(0), ValueError, "0"),
        (lambda: SnakepitExecutor(PythonAdapter(), 0), ValueError, "max_workers .* 0"),
        (lambda: SnakepitExecutor(PythonAdapter(), -1), ValueError, "max_workers .* -1"),
        (lambda: SnakepitExecutor(PythonAdapter(), "4"), TypeError, "max_workers .* '4'"),  # type: ignore[arg-type]
        (lambda: SnakepitExecutor(PythonAdapter(), True), TypeError, "max_workers .* True"),
        (lambda: SnakepitExecutor(PythonAdapter(), 2.0), TypeError, "max_workers .* 2.0"),  # type: ignore[arg-type]
        (lambda: SnakepitExecutor(PythonAdapter(), 1, max_queue_size=-1), ValueError, "max_queue_size .* -1"),
        (lambda: SnakepitExecutor(PythonAdapter(), 1, queue_full="wait"), ValueError, "queue_full .* 'wait'"),
        (lambda: SnakepitExecutor(PythonAdapter(), 1, affinity="loose"), ValueError, "affinity .* 'loose'"),
        (lambda: SnakepitExecutor(PythonAdapter(), 1, name=3), TypeError, "name .* 3"),  # type: ignore[arg-type]
        (lambda: SnakepitExecutor(PythonAdapter(), 1, config={}), TypeError, "config .* {}"),  # type: ignore[arg-type]
        (
            lambda: SnakepitExecutor(PythonAdapter(), 1, max_tasks_per_child=0),
            ValueError,
            "max_tasks_per_child .* 0",
        ),
        (lambda: SnakepitExecutor(PythonAdapter(), 1, initializer=print), ValueError, "PythonAdapter"),
        (
            lambda: SnakepitExecutor(PythonAdapter(), 1, config=config(min_workers=2)),
            ValueError,
            r"min_workers \(2\)",
        ),
        (lambda: SnakepitExecutor(PythonAdapter(), 1, colour="red"), TypeError, "colour"),  # type: ignore[call-arg]
    ],
)
def test_constructor_refuses(make: Callable[[], object], kind: type[Exception], text: str) -> None:
    """A bad parameter raises there, and nothing was started."""
    with pytest.raises(kind, match=text):
        make()


BAD_SECONDS = [
    (0, ValueError, "0"),
    (-1, ValueError, "-1"),
    (-0.5, ValueError, "-0.5"),
    (math.nan, ValueError, "nan"),
    (True, TypeError, "True"),
    ("5", TypeError, "'5'"),
    ([], TypeError, r"\[\]"),
]
SECONDS_IDS = [repr(value) for value, _, _ in BAD_SECONDS]


@pytest.mark.parametrize(("value", "kind", "text"), BAD_SECONDS, ids=SECONDS_IDS)
@pytest.mark.parametrize("name", ["timeout", "queue_timeout"])
def test_constructor_refuses_timeouts(name: str, value: Any, kind: type[Exception], text: str) -> None:
    """A pool's time-outs are seconds above 0 or None."""
    with pytest.raises(kind, match=f"{name} must be seconds > 0 .* {text}"):
        SnakepitExecutor(PythonAdapter(), 1, **{name: value})


@pytest.mark.parametrize(("value", "kind", "text"), BAD_SECONDS, ids=SECONDS_IDS)
@pytest.mark.parametrize(
    "name",
    [
        "worker_init_timeout_s",
        "startup_timeout_s",
        "health_check_interval_s",
        "health_check_timeout_s",
        "shutdown_grace_s",
        "kill_grace_s",
        "restart_backoff_s",
        "session_ttl_s",
        "session_drain_s",
        "worker_idle_timeout_s",
        "max_worker_age_s",
    ],
)
def test_config_refuses_times(name: str, value: Any, kind: type[Exception], text: str) -> None:
    """Every time of the configuration is checked when it is made."""
    with pytest.raises(kind, match=f"{name} .*{text}"):
        PoolConfig(**{name: value})


@pytest.mark.parametrize(("value", "kind", "text"), BAD_SECONDS, ids=SECONDS_IDS)
def test_calls_refuse_timeouts(pool: SnakepitExecutor, value: Any, kind: type[Exception], text: str) -> None:
    """Every method that takes seconds refuses what is none, names it, and accepts nothing."""
    accepted = pool.stats().requests
    calls: dict[str, Callable[[], object]] = {
        "timeout": lambda: pool.submit("run", {}, timeout=value),
        "queue_timeout": lambda: pool.submit("run", {}, queue_timeout=value),
        "item_timeout": lambda: pool.map("run", [{}], item_timeout=value),
        "timeout ": lambda: pool.map("run", [{}], timeout=value),
        "timeout  ": lambda: pool.map_unordered("run", [{}], timeout=value),
        "timeout   ": lambda: pool.options(timeout=value),
        "queue_timeout ": lambda: pool.options(queue_timeout=value),
        "ttl_s": lambda: pool.session(ttl_s=value),
        "timeout    ": lambda: pool.wait_ready(timeout=value),
        "timeout     ": lambda: pool.shutdown(timeout=value),
        "timeout      ": lambda: pool.execute("run", {}, timeout=value),
    }

    for name, call in calls.items():
        with pytest.raises(kind, match=f"{name.strip()} must be seconds > 0 .* {text}"):
            call()

    assert accepted == pool.stats().requests


# Adapters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (lambda: PythonAdapter(python="/no/such/python"), WorkerStartError, "/no/such/python"),
        (lambda: PythonAdapter(python="no-such-python"), WorkerStartError, "no-such-python"),
        (lambda: JavaScriptAdapter(node="no-such-node"), WorkerStartError, "no-such-node"),
        (lambda: PythonAdapter("no/handlers.py"), WorkerStartError, "no/handlers.py"),
        (lambda: PythonAdapter("handlers.txt/"), ValueError, "handlers.txt"),
        (lambda: JavaScriptAdapter("handlers.py"), ValueError, "handlers.py"),
        (lambda: JavaScriptAdapter("no/handlers.js"), WorkerStartError, "no/handlers.js"),
        (lambda: PythonAdapter(3), TypeError, "3"),  # type: ignore[arg-type]
        (lambda: PythonAdapter(python=3), TypeError, "3"),  # type: ignore[arg-type]
        (lambda: PythonAdapter(python=""), TypeError, "''"),
        (lambda: PythonAdapter(output="screen"), ValueError, "'screen'"),
        (lambda: PythonAdapter(env={"A": 1}), TypeError, "'A' to int"),  # type: ignore[dict-item]
        (lambda: PythonAdapter(cwd="/no/such/folder"), ValueError, "/no/such/folder"),
        (lambda: PythonAdapter(start_args={"when": {1}}), EncodeError, "/start_args/when: set"),
        (lambda: PythonAdapter(start_args=b"raw"), EncodeError, "/start_args"),
        (lambda: CommandAdapter("ruby bridge.rb"), TypeError, "'ruby bridge.rb'"),
        (lambda: CommandAdapter([]), TypeError, r"\[\]"),
        (lambda: CommandAdapter(["ruby", 3]), TypeError, "3"),  # type: ignore[list-item]
        (lambda: CommandAdapter(["no-such-program"]), WorkerStartError, "no-such-program"),
        (lambda: CommandAdapter(["ruby"], commands="ping"), TypeError, "'ping'"),
        (lambda: CommandAdapter(["ruby"], level=2), ValueError, "level .* 2"),
        (lambda: CallableAdapter(initializer="setup"), TypeError, "'setup'"),  # type: ignore[arg-type]
    ],
)
def test_adapter_refuses(make: Callable[[], Any], kind: type[Exception], text: str) -> None:
    """A bad adapter raises when it is made, a missing program or file when the executor is."""
    with pytest.raises(kind, match=text):
        SnakepitExecutor(make(), 1)


def test_missing_script_of_a_subclass_is_named() -> None:
    """The script of a user's adapter is looked for by the executor's constructor."""

    class Lost(PythonAdapter):
        def script_path(self) -> str:
            return "no/bridge.py"

    with pytest.raises(WorkerStartError, match=r"Lost: no script 'no/bridge.py'"):
        SnakepitExecutor(Lost(), 1)


def test_a_file_without_the_executable_bit_is_named(tmp_path: Path) -> None:
    """A program that may not be executed is refused, with the way out."""
    program = tmp_path / "tool"
    program.write_text("#!/bin/sh\n")

    with pytest.raises(WorkerStartError, match=r"tool' is not executable \(chmod"):
        SnakepitExecutor(CommandAdapter([str(program)]), 1)


def test_an_unknown_handlers_module_is_told_by_the_worker() -> None:
    """Only the worker can know its modules: the start fails with its traceback."""
    with (
        SnakepitExecutor(PythonAdapter("no_such_module"), 1, config=config(restart_budget=1)) as ex,
        pytest.raises(WorkerStartError, match="no_such_module"),
    ):
        ex.wait_ready(timeout=LIMIT_S)


# submit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["submit", "options", "session", "map", "end_session"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [(3, TypeError), (b"s", TypeError), (["s"], TypeError), ("", ValueError), ("\ud800", ValueError)],
)
def test_bad_session_ids(pool: SnakepitExecutor, call: str, value: Any, kind: type[Exception]) -> None:
    """A session id is a non-empty str of valid text; anything else is named and never reaches the manager."""
    calls: dict[str, Callable[[], object]] = {
        "submit": lambda: pool.submit("run", {}, session=value),
        "options": lambda: pool.options(session=value),
        "session": lambda: pool.session(value),
        "map": lambda: pool.map("run", [{}], session=value),
        "end_session": lambda: pool.end_session(value),
    }

    with pytest.raises(kind, match="session") as raised:
        calls[call]()

    assert repr(value) in str(raised.value)


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"tags": {1, 2}}, "/args/tags: set"),
        ({"x": [1, math.nan]}, "/args/x/1: nan"),
        ({"x": math.inf}, "/args/x: inf"),
        ({"a/b": {"~": object()}}, "/args/a~1b/~0: object"),
        ({"text": "a\ud800"}, "/args/text: .* surrogate"),
        ({"k\ud800": 1}, "/args.*surrogate"),
        ({1: "one"}, "/args: key 1 is int"),
        ({"big": 10**5000}, "/args/big"),
        (cyclic(), "a cycle"),
        ({"in": {"a": cyclic()}}, "a cycle"),
        (deep(100_000), "nested deeper than 256"),
        ([b"x", {2}], "/args/1: set"),
    ],
    ids=[
        "set",
        "nan",
        "inf",
        "pointer",
        "surrogate",
        "surrogate-key",
        "int-key",
        "huge-int",
        "cycle",
        "cycle2",
        "deep",
        "bytes-and-set",
    ],
)
def test_what_cannot_be_encoded(pool: SnakepitExecutor, args: Any, text: str) -> None:
    """EncodeError comes out of submit with the path to the value; nothing was accepted (T45)."""
    accepted = pool.stats().requests

    with pytest.raises(EncodeError, match=text) as raised:
        pool.submit("run", args)

    assert len(str(raised.value)) < 400
    assert accepted == pool.stats().requests


def test_bytes_need_a_level_1_worker() -> None:
    """Bytes never become text: level 0 refuses them in submit, a worker without attachments on the future."""
    with saboteur_pool(level=0) as level0, saboteur_pool(level=1) as level1:
        with pytest.raises(EncodeError, match="level 0"):
            level0.submit("do", {"value": b"raw"})
        future = level1.submit("do", {"value": b"raw"})

        assert isinstance(future.exception(LIMIT_S), EncodeError)
        assert "attachments" in str(future.exception())
        assert [1, 1] == [ex.submit("do", {"value": 1}).result(LIMIT_S) for ex in (level0, level1)]


def test_args_beyond_the_frame_limit() -> None:
    """JSON text above max_frame_bytes is refused in submit, bytes above max_message_bytes as well."""
    with handler_pool(1, config=config(max_frame_bytes=2048, max_message_bytes=8192)) as ex:
        with pytest.raises(EncodeError, match=r"5002 bytes .*max_frame_bytes is 2048"):
            ex.submit("give", "x" * 5000)
        with pytest.raises(EncodeError, match=r"max_message_bytes \(8192\)"):
            ex.submit("give", {"value": b"x" * 9000})
        with pytest.raises(EncodeError, match="max_frame_bytes"):
            ex.submit("pid", {}, session="s" * 3000)

        assert b"x" * 5000 == ex.execute("give", {"value": b"x" * 5000})


def test_commands_and_arguments_that_do_not_fit(pool: SnakepitExecutor) -> None:
    """Unknown commands, wrong arguments and wrong calls each have their class and name what is wrong."""
    assert isinstance(pool.submit("no_such", {}).exception(LIMIT_S), UnknownCommand)
    assert "no_such" in str(pool.submit("no_such", {}).exception(LIMIT_S))
    assert isinstance(pool.submit("give", {"wrong": 1}).exception(LIMIT_S), InvalidArguments)
    assert "wrong" in str(pool.submit("give", {"wrong": 1}).exception(LIMIT_S))
    with pytest.raises(TypeError, match="'retries'"):
        pool.submit("run", {}, retries=3)
    with pytest.raises(TypeError, match="takes one args value, not 2"):
        pool.submit("run", 1, 2)
    with pytest.raises(TypeError, match=r"priority .* 'high'"):
        pool.submit("run", {}, priority="high")
    with pytest.raises(TypeError, match=r"priority .* True"):
        pool.submit("run", {}, priority=True)
    with pytest.raises(ValueError, match="''"):
        pool.submit("", {})
    with pytest.raises(EncodeError, match="surrogate"):
        pool.submit("run\ud800", {})
    with pytest.raises(TypeError, match="not callables: print"):
        pool.submit(print, 1)
    with pytest.raises(TypeError, match="not callables: print"):
        list(pool.map(print, [1]))
    with pytest.raises(TypeError, match="None"):
        pool.submit(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pool.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="3"):
        pool.map(3, [1])  # type: ignore[arg-type]
    with pytest.raises(LookupError, match="no worker 'w9'"):
        pool.restart_worker("w9")
    with pytest.raises(ValueError, match="not 2"):
        pool.wait_ready(workers=2)
    with pytest.raises(ValueError, match="not 0"):
        pool.wait_ready(workers=0)


@pytest.mark.parametrize("kind", ["set", "nan", "surrogate"])
def test_results_that_cannot_be_encoded(pool: SnakepitExecutor, kind: str) -> None:
    """A result that JSON cannot carry is a ResultError with its place; the worker lives."""
    error = pool.submit("bad_result", {"kind": kind}).exception(LIMIT_S)

    assert isinstance(error, ResultError)
    assert str(error).startswith("result: ")


def test_a_command_for_callables() -> None:
    """A command's name sent to a pool of callables is refused with the way out."""
    with SnakepitExecutor(max_workers=1) as ex:
        with pytest.raises(TypeError, match=r"callables, not commands: 'echo' .*PythonAdapter"):
            ex.submit("echo", {})
        with pytest.raises(TypeError, match="callables, not commands: 'echo'"):
            list(ex.map("echo", [{}]))
        with pytest.raises(TypeError, match="not 3"):
            ex.submit(3)  # type: ignore[arg-type]


def test_after_shutdown() -> None:
    """Every way to submit raises RuntimeError after shutdown, also for input that is bad as well."""
    ex = handler_pool(1)
    view, bound = ex.session("s"), ex.options(timeout=1)
    ex.shutdown()

    calls: list[Callable[[], object]] = [
        lambda: ex.submit("run", {}),
        lambda: ex.execute("run", {}),
        lambda: ex.submit("run", {1, 2}),
        lambda: ex.map("run", [{}]),
        lambda: ex.map_unordered("run", [{}]),
        lambda: view.submit("run", {}),
        lambda: bound.submit("run", {}),
    ]

    for call in calls:
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            call()
    with pytest.raises(RuntimeError, match="after shutdown"):
        ex.wait_ready()
    assert () == ex.workers()
    assert 0 == ex.stats().requests


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"chunksize": 0}, ValueError, "chunksize .* 0"),
        ({"chunksize": "2"}, TypeError, "chunksize .* '2'"),
        ({"buffersize": 0}, ValueError, "buffersize .* 0"),
        ({"buffersize": True}, TypeError, "buffersize .* True"),
        ({"retries": 1}, TypeError, "'retries'"),
    ],
)
def test_map_refuses(
    pool: SnakepitExecutor, options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    """A bad parameter of map raises in the call, before anything is submitted."""
    accepted = pool.stats().requests

    for method in (pool.map, pool.map_unordered, pool.options().map, pool.session("m").map_unordered):
        with pytest.raises(kind, match=text):
            method("run", [{}], **options)

    assert accepted == pool.stats().requests


@pytest.mark.parametrize(
    "setup", [["load"], [()], [3], [("run", 1, 2)], [("run", {1})]], ids=["str", "empty", "int", "two", "set"]
)
def test_bad_setup_steps(pool: SnakepitExecutor, setup: Any) -> None:
    """A set-up that cannot be sent is refused when the view is made."""
    with pytest.raises((TypeError, EncodeError)):
        pool.session("s", setup=setup)
    with pytest.raises(ValueError, match="'loose'"):
        pool.session("s", affinity="loose")


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"env": "A=5"}, TypeError, "env must map names to values"),
        ({"env": {"A": 5}}, TypeError, "'A' to int"),
        ({"env": {"A=B": "5"}}, ValueError, "'A=B'"),
        ({"env": {"A": "secret\0"}}, ValueError, "variable 'A'"),
        ({"cwd": 5}, TypeError, "cwd must be a path"),
    ],
    ids=str,
)
def test_variables_and_directory_that_no_process_can_have(
    given: dict[str, Any], error: type[Exception], said: str
) -> None:
    """A bad env or cwd is refused by the adapter's constructor, and no value of a variable is shown."""
    with pytest.raises(error, match=said) as raised:
        PythonAdapter(**given)

    assert "secret" not in str(raised.value)


def test_sessions_must_be_a_store() -> None:
    """Anything but a SessionStore is refused by the constructor."""
    with pytest.raises(TypeError, match="SessionStore"):
        SnakepitExecutor(PythonAdapter(), max_workers=1, sessions={})  # type: ignore[arg-type]
