"""What a caller passes on from a stranger reaches a worker as data: no code, no other command, no shell."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.workers import pools

from snakepit import (
    CommandAdapter,
    InvalidArguments,
    JavaScriptAdapter,
    PythonAdapter,
    SnakepitExecutor,
    UnknownCommand,
)

PYTHON_HANDLERS = """
from snakepit_bridge import command

@command
def greet(name="nobody"):
    return f"hello {name}"

@command
def pick(**options):
    return options

@command
def clean():
    return [len(dir(object)), callable(len), greet()]
"""

JAVASCRIPT_HANDLERS = """
exports.greet = ({ name }) => `hello ${name === undefined ? 'nobody' : name}`;
exports.pick = (options) => options;
exports.clean = () => [Object.keys(Object.prototype).length, typeof {}.polluted, exports.greet({})];
exports.onStart = () => 0;
"""


@pytest.fixture(params=["python", "javascript"])
def pool(request: pytest.FixtureRequest, tmp_path: Path, require_runtime: Callable[[str], str]) -> Iterator[Any]:
    """A pool of one worker with the commands greet, pick and clean."""
    if request.param == "python":
        (tmp_path / "handlers.py").write_text(PYTHON_HANDLERS)
        adapter: Any = PythonAdapter(tmp_path / "handlers.py")
    else:
        (tmp_path / "handlers.js").write_text(JAVASCRIPT_HANDLERS)
        adapter = JavaScriptAdapter(tmp_path / "handlers.js", node=require_runtime("node"))
    with SnakepitExecutor(adapter, 1, config=pools.QUICK) as ex:
        yield ex


NAMES = (
    "__proto__", "constructor", "prototype", "toString", "hasOwnProperty", "valueOf", "default", "onStart",
    "__class__", "__init__", "__globals__", "__import__", "eval", "exec", "os.system", "greet.__globals__",
    "command", "context", "require", "process", "module", "exports", "../greet", "greet\n", " greet", "GREET",
    "$(id)", "`id`", "; id", "%s%n", "{0.__class__}", "\x1b[2J",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_only_commands_can_be_called(pool: SnakepitExecutor, name: str) -> None:
    """A name that is no command is `UnknownCommand`, whatever else it names in the worker."""
    before = pool.execute("clean", {})

    error = pool.submit(name, {}).exception(pools.LIMIT_S)

    assert isinstance(error, UnknownCommand)
    assert before == pool.execute("clean", {})


KEYS = {
    "__proto__": {"polluted": True},
    "constructor": {"prototype": {"polluted": True}},
    "prototype": 1,
    "hasOwnProperty": 1,
    "toString": 1,
    "then": "no promise",
    "toJSON": "no function",
    "self": 1,
    "__class__": "int",
    "cls": 1,
    "fn": 1,
    "args": [1],
    "kwargs": {"a": 1},
}


def test_keys_are_data(pool: SnakepitExecutor) -> None:
    """Keys that mean something to a language arrive and come back as keys, and change nothing."""
    before = pool.execute("clean", {})

    result = pool.execute("pick", KEYS)

    assert KEYS == result
    assert before == pool.execute("clean", {})


TEXTS = ("$(touch owned)", "`touch owned`", "; touch owned", "| touch owned", "\n", "%s", "'\"")


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_data(pool: SnakepitExecutor, text: str) -> None:
    """Text is not expanded, executed or formatted on its way."""
    assert f"hello {text}" == pool.execute("greet", {"name": text})


def test_arguments_of_another_shape_are_refused(tmp_path: Path) -> None:
    """Arguments that do not fit a handler never reach it."""
    (tmp_path / "handlers.py").write_text(PYTHON_HANDLERS)
    with SnakepitExecutor(PythonAdapter(tmp_path / "handlers.py"), 1, config=pools.QUICK) as ex:
        for args in ({"__class__": 1}, {"name": 1, "self": 2}, [1, 2], {"__code__": "x"}):
            assert isinstance(ex.submit("greet", args).exception(pools.LIMIT_S), InvalidArguments)
        assert "hello nobody" == ex.execute("greet", {})


SHOW_ARGV = """
import json, os, sys
fds = os.environ["SNAKEPIT_FDS"].split(",")
inward, outward = int(fds[0]), int(fds[1])
while True:
    head = os.read(inward, 4)
    if not head:
        break
    request = json.loads(os.read(inward, int.from_bytes(head, "big")))
    result = {"status": "ok", "protocol": {"version": 1}} if request["id"] == 0 else sys.argv[1:]
    reply = json.dumps({"id": request["id"], "success": True, "result": result}).encode()
    os.write(outward, len(reply).to_bytes(4, "big") + reply)
"""


def test_no_shell_reads_the_command_line(tmp_path: Path) -> None:
    """Words of a command line arrive as they are: no expansion, no splitting, no second command."""
    words = ["$HOME", "*", "a b", "; touch owned", "$(touch owned)", "--", "-c", "`touch owned`", "~", "\n", "'"]
    adapter = CommandAdapter([sys.executable, "-I", "-c", SHOW_ARGV, *words], level=1, cwd=tmp_path)
    with SnakepitExecutor(adapter, 1, config=pools.QUICK) as ex:
        assert words == ex.execute("argv", {})

    assert [] == list(tmp_path.iterdir())
