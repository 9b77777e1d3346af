"""What is particular to the Lua bridge: tables, strings that are bytes, errors of any value, both Lua versions."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance.driver import BRIDGES_DIR, TESTS_DIR, Worker, frame

BRIDGE = str(BRIDGES_DIR / "lua" / "snakepit_bridge.lua")
HANDLERS = str(TESTS_DIR / "handlers.lua")


@pytest.fixture(params=["lua5.4", "lua5.3"])
def lua(request: pytest.FixtureRequest, require_runtime: Callable[[str], str]) -> str:
    """Return the path of one Lua after the other."""
    return require_runtime(request.param)


@pytest.fixture
def start(lua: str, tmp_path: Path) -> Callable[..., Worker]:
    """Return a function that starts a worker with a handler file of this text, or with the test handlers."""

    def start_worker(code: str | None = None, level: int = 1, shell: bool = True) -> Worker:
        handlers = HANDLERS
        if code is not None:
            (tmp_path / "own.lua").write_text(code)
            handlers = str(tmp_path / "own.lua")
        launcher = ["sh", BRIDGE, "--lua"] if shell else []
        return Worker([*launcher, lua, BRIDGE, "--handlers", handlers], level)

    return start_worker


@pytest.fixture
def worker(start: Callable[..., Worker]) -> Iterator[Worker]:
    """A started worker with the test handlers."""
    with start() as process:
        process.start()
        yield process


def encode_errors(worker: Worker, *kinds: str) -> list[str]:
    """Return the messages, without the path, for results that cannot be sent."""
    replies = [worker.call(1, "unencodable", {"kind": kind}) for kind in kinds]
    assert {"encode_error"} == {reply["error"]["code"] for reply in replies}
    return [reply["error"]["message"].removeprefix("result/a/0: ") for reply in replies]


def test_tables_become_arrays_or_objects(worker: Worker) -> None:
    """An empty plain table is an object; one from args, or marked, is what it was; whole floats stay floats."""
    result = worker.call(1, "empty")["result"]
    passed = worker.call(2, "identity", {"value": [{}, [], [[]], {"a": {}}, {"1": 2}]})["result"]

    assert {"plain": {}, "array": [], "object": {}, "null": None, "whole": 1.0} == result
    assert isinstance(result["whole"], float)
    assert [{}, [], [[]], {"a": {}}, {"1": 2}] == passed


def test_numbers_keep_their_kind_and_value(worker: Worker) -> None:
    """Integers of 64 bits and doubles come back as they were, with the shortest text."""
    values = [0, -0.0, 1.0, 0.1, 1e15, 1e16, 1e300, 5e-324, 2**63 - 1, -(2**63), 1 / 3, 123456789.125]

    passed = worker.call(1, "identity", {"value": values})["result"]

    assert [repr(value) for value in values] == [repr(value) for value in passed]


def test_strings_with_escapes(worker: Worker) -> None:
    """Each escape is read, each control character written, and pairs of escaped surrogates are one character."""
    text = "".join(map(chr, range(0x80))) + "\u00e9\u6f22\U0001f600\ud7ff\ue000"
    escaped = b'"\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\u00e9\\ud83d\\ude00\\\\ud83d"'

    passed = worker.call(1, "identity", {"value": text})["result"]
    worker.send_bytes(frame(b' {"id" : 2,\n"command":"identity","args": {"value" :%b } } ' % escaped))

    assert text == passed
    assert '"\\/\b\f\n\r\t\0\u00e9\U0001f600\\ud83d' == worker.receive()["result"]


LONG_TEXTS = {
    "three kinds": '"\n\\' * 50_000,
    "each": "".join(map(chr, range(0x80))) * 100,
    "controls": "\x01\x7f\x00" * 10_000,
    "wide": '\u00e9"\U0001f600\n' * 10_000,
    "no escapes": "The quick brown fox. " * 10_000,
}


@pytest.mark.parametrize("case", LONG_TEXTS)
@pytest.mark.parametrize("ascii_alone", [False, True])
def test_long_texts_come_back(worker: Worker, case: str, ascii_alone: bool) -> None:
    """As they were, whether they were sent in UTF-8 or as escapes, and with white space around them."""
    value = [LONG_TEXTS[case], {LONG_TEXTS[case]: ""}]
    message = {"id": 1, "command": "identity", "args": {"value": value}}
    worker.send_bytes(frame(json.dumps(message, ensure_ascii=ascii_alone, indent=1).encode()))

    assert value == worker.receive()["result"]


@pytest.mark.parametrize(
    "value",
    [
        *(b"01", b"-", b"-01", b"1.", b".5", b"1.e5", b"1e", b"1e+", b"+1", b"0x10", b"1.5.5", b"1-1", b"--1"),
        *(b"[1,]", b"[,1]", b"[1 2]", b"{,}", b'{"a":1,}', b'{"a" 1}', b"{a:1}", b"[", b'"', b"nul", b"True", b""),
        *(
            b"\\u0031",
            b'\\u0022a"',
            b"[1,\\n2]",
            b"[\\u0020]",
            b"1\\t",
            b'"\\\\\\x"',
            b'"\\\\ud83d\\ude00"',
            b'"\\n\n"',
            b'"\\n\xfe"',
        ),
        *(b'"\\x"', b'"\\u12"', b'"\\ud83d x"', b'"\\udc00"', b'"\n"', b'"\0"', b"'a'", b"[1}", b"\xc2\xa01"),
    ],
)
def test_only_strict_json_is_read(worker: Worker, value: bytes) -> None:
    """What JSON does not allow is a bad frame with its id."""
    worker.send_bytes(frame(b'{"id":7,"command":"identity","args":{"value":%b}}' % value))
    reply = worker.receive()

    assert (7, "BadFrame") == (reply["id"], reply["error"]["type"])
    assert 1 == worker.call(8, "identity", {"value": 1})["result"]


def test_results_that_are_no_json(worker: Worker) -> None:
    """Bytes in text, holes, mixed keys, objects and functions are named."""
    keys = "a table whose keys are neither all text nor 1 to n (snakepit.null stands for a hole) is not JSON"

    errors = encode_errors(worker, "bytes", "mixed", "hole", "key", "object", "function")

    assert [
        "text with the byte 0xFF at offset 1 is not UTF-8; send bytes as snakepit.bytes(s)",
        *(keys, keys, keys),
        "Thing is not JSON; convert it to a plain table",
        "function is not JSON",
    ] == errors


ERRORS = """
local commands = {
  text = function() error("just text") end,
  bug = function(args) return args.a.b end,
  number = function() error(42) end,
  nothing = function() error() end,
  object = function() error(setmetatable({}, { __name = "Oops", __tostring = function() return "as text" end })) end,
  hostile = function() error(setmetatable({}, { __index = function() error("again") end })) end,
  bytes = function() error("bad \\xFF byte") end,
  deep = function() local function f() return 1 + f() end; return f() end,
}
for name, run in pairs(commands) do command(name, run, "fails") end
"""


def test_errors_of_any_value_are_replies(start: Callable[..., Worker]) -> None:
    """Text has its place in the file; whatever else is raised is described; the worker lives on."""
    with start(ERRORS) as worker:
        assert "fails" == worker.start()["result"]["protocol"]["commands"]["bug"]["doc"]
        names = ["text", "bug", "number", "nothing", "object", "hostile", "bytes", "deep"]
        errors = {name: worker.call(1, name)["error"] for name in names}

        assert {"handler_error"} == {error["code"] for error in errors.values()}
        assert errors["text"]["message"].endswith("own.lua:3: just text")
        assert "own.lua:3: in" in errors["text"]["traceback"]
        assert "snakepit_bridge" not in errors["text"]["traceback"]
        assert "attempt to index a nil value" in errors["bug"]["message"]
        assert ("42", "nil") == (errors["number"]["message"], errors["nothing"]["message"])
        assert ("Oops", "as text") == (errors["object"]["type"], errors["object"]["message"])
        assert "bad \ufffd byte" in errors["bytes"]["message"]
        assert "stack overflow" in errors["deep"]["message"]
        assert "ok" == worker.call(2, "ping")["result"]["status"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("command('a', function()\n", "own.lua:2: 'end' expected"),
        ("error('no model')", "own.lua:1: no model"),
        (
            "command('a', print)\ncommand('a', print)",
            "own.lua:2: command 'a' is defined twice, first at ",
        ),
        ("command('ping', print)", "own.lua:1: command 'ping' belongs to the bridge"),
        ("command('a', 5)", "own.lua:1: command 'a': a number is no function"),
        ("on_start(5)", "own.lua:1: on_start: a number is no function"),
    ],
)
def test_mistakes_in_a_handler_file_fail_the_start(start: Callable[..., Worker], code: str, words: str) -> None:
    """The first ping is answered with Lua's own message and the line; the exit status is 1."""
    with start(code) as worker:
        error = worker.start()["error"]

        assert "handler_error" == error["code"]
        assert words in error["message"]
        assert 1 == worker.wait()


def test_start_args_need_a_start_function(start: Callable[..., Worker]) -> None:
    """Start arguments that nobody takes are an error."""
    with start("command('a', print)") as worker:
        args: dict[str, Any] = {"worker_id": "w1", "initialization": True, "start_args": [1]}
        reply = worker.call(0, "ping", {**args, "protocol": {"versions": [1], "capabilities": ["errors"]}})

        assert "bad_args" == reply["error"]["code"]
        assert "no on_start function" in reply["error"]["message"]
        assert 1 == worker.wait()


def test_handlers_require_their_neighbours(start: Callable[..., Worker], tmp_path: Path) -> None:
    """Modules beside the handler file are found."""
    (tmp_path / "neighbour.lua").write_text("return { answer = 42 }")
    code = "command('ask', function() return require('neighbour').answer end)"
    with start(code) as worker:
        worker.start()

        assert 42 == worker.call(1, "ask")["result"]


def test_globals_of_handlers_are_not_the_bridges(start: Callable[..., Worker]) -> None:
    """A forgotten `local` with the name of a function or library spoils it for the handlers, and for nobody else."""
    code = """
    local names = {}
    for name, value in pairs(_G) do if value ~= _G then names[#names + 1] = name end end
    local globals = _G
    command('spoil', function()
      for _, name in ipairs(names) do
        if type(globals[name]) == 'table' and name ~= 'snakepit' then
          for key in next, globals[name] do globals[name][key] = nil end
        end
      end
      for _, name in ipairs(names) do globals[name] = 'spoiled' end
      return 'done'
    end)
    command('value', function() return { list = { 1.5, 'x' } } end)
    command('broken', function(args) return print(args) end)
    """
    with start(code) as worker:
        worker.start()
        assert "done" == worker.call(1, "spoil")["result"]

        assert {"list": [1.5, "x"]} == worker.call(2, "value")["result"]
        assert {"a": [1, {}]} == worker.call(3, "echo", {"a": [1, {}]})["result"]["echoed"]
        assert "unknown_command" == worker.call(4, "no such")["error"]["code"]
        assert "handler_error" == worker.call(5, "broken")["error"]["code"]


def test_bytes_that_are_none_are_refused(start: Callable[..., Worker]) -> None:
    """Whatever a handler puts into `data`, the reply says so."""
    with start("command('odd', function() local b = snakepit.bytes('x'); b.data = 5; return { b } end)") as worker:
        worker.start()

        assert "result/0: bytes whose data is a number, not a string" == worker.call(1, "odd")["error"]["message"]


COMMA = """LC_NUMERIC
decimal_point ","
thousands_sep ""
grouping -1
END LC_NUMERIC
"""


def test_floats_where_the_decimal_point_is_a_comma(
    start: Callable[..., Worker], require_runtime: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A locale that a handler sets changes how numbers are written, but not in JSON."""
    (tmp_path / "comma.src").write_text(COMMA)
    # Of a locale with one category it says that the others are missing, and makes it all the same.
    words = [require_runtime("localedef"), "-c", "--no-archive", "-i", "./comma.src", str(tmp_path / "comma")]
    subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=30, check=False)
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    code = """
    command('set', function() return { os.setlocale('comma', 'numeric'), ('%.1f'):format(0.5) } end)
    command('values', function(args) return { 1.5, -2.25e-300, 3.0, args.value } end)
    """
    with start(code) as worker:
        worker.start()

        assert ["comma", "0,5"] == worker.call(1, "set")["result"]
        assert [1.5, -2.25e-300, 3.0, 0.1] == worker.call(2, "values", {"value": 0.1})["result"]


def test_a_handler_cannot_yield(start: Callable[..., Worker]) -> None:
    """Outside of a coroutine of its own a yield is an error with its line, as in plain Lua; inside it works."""
    code = """
    command('stray', function()
      return coroutine.yield(1)
    end)
    command('own', function()
      local values = {}
      for value in coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i) end end) do
        values[#values + 1] = value
      end
      return values
    end)
    command('caught', function() return { pcall(coroutine.yield), coroutine.isyieldable() } end)
    """
    with start(code) as worker:
        worker.start()
        error = worker.call(1, "stray")["error"]

        assert "handler_error" == error["code"]
        assert error["message"].endswith("own.lua:3: attempt to yield from outside a coroutine")
        assert "own.lua:3: in" in error["traceback"]
        assert [1, 2, 3] == worker.call(2, "own")["result"]
        assert [False, False] == worker.call(3, "caught")["result"]


def test_a_start_that_yields_fails(start: Callable[..., Worker]) -> None:
    """The handler file and its start function are in no coroutine either."""
    with start("on_start(function() coroutine.yield() end)") as worker:
        assert worker.start()["error"]["message"].endswith("own.lua:1: attempt to yield from outside a coroutine")
        assert 1 == worker.wait()


LARGE = {
    "deep": (b'{"items":[1,{"a/b":[2,99999999999999999999]}]}', "args/items/1/a~1b/1: integer 99999999999999999999"),
    "first": (b"[-9223372036854775809,99999999999999999999]", "args/0: integer -9223372036854775809"),
    "all": (b"18446744073709551616", "args: integer 18446744073709551616"),
}


@pytest.mark.parametrize("case", LARGE)
def test_an_integer_that_is_too_large_is_named_by_its_path(worker: Worker, case: str) -> None:
    """The first in the text; what a later key of the same name replaced does not count."""
    args, words = LARGE[case]
    worker.send_bytes(frame(b'{"id":1,"command":"identity","args":%b}' % args))
    error = worker.receive()["error"]
    worker.send_bytes(frame(b'{"id":2,"command":"identity","args":{"value":99999999999999999999,"value":1}}'))

    assert ("bad_args", "InvalidArguments") == (error["code"], error["type"])
    assert f"{words} is beyond 64 bits and would be rounded; send it as text" == error["message"]
    assert 1 == worker.receive()["result"]


def test_an_integer_that_is_too_large_costs_one_item(worker: Worker) -> None:
    """The other items of a batch run."""
    worker.send_bytes(frame(b'{"id":1,"command":"identity","batch":[{"value":1},{"value":99999999999999999999}]}'))
    done, refused = worker.receive(), worker.receive()

    assert 1 == done["result"]
    assert refused["error"]["message"].startswith("args/value: integer 99999999999999999999 is beyond 64 bits")


def test_start_args_are_not_rounded(start: Callable[..., Worker]) -> None:
    """A start argument that is too large fails the start."""
    with start("on_start(print)") as worker:
        ping = b'{"worker_id":"w1","protocol":{"versions":[1],"capabilities":["errors"]},"start_args":{"n":%d}}'
        worker.send_bytes(frame(b'{"id":0,"command":"ping","args":%b}' % (ping % 2**64)))

        assert worker.receive()["error"]["message"].startswith("args/start_args/n: integer 18446744073709551616 ")
        assert 1 == worker.wait()


@pytest.mark.parametrize("level", [1, 0])
def test_bridge_runs_without_the_shell(start: Callable[..., Worker], level: int) -> None:
    """Started by Lua itself it serves as well; what a handler prints stays off the stream."""
    with start(level=level, shell=False) as worker:
        assert "ok" == worker.start()["result"]["status"]
        replies = [worker.call(1, "print_text", {"line": "printed"}), worker.call(2, "identity", {"value": 2})]
        worker.close_requests()

        assert ["printed", 2] == [reply["result"] for reply in replies]
        assert 0 == worker.wait()
        assert "printed\n" == (worker.stdout() if level else worker.stderr())


def test_a_descriptor_that_is_a_socket_is_refused(lua: str) -> None:
    """Lua cannot open a socket by its number: said on stderr, exit status 2."""
    with Worker(["sh", BRIDGE, "--lua", lua, BRIDGE], packets=True) as worker:
        assert 2 == worker.wait()
        assert worker.stderr().startswith("snakepit_bridge: descriptor ")
        assert "not sockets" in worker.stderr()


def test_log_fields_must_be_an_object(start: Callable[..., Worker]) -> None:
    """Fields that cannot be sent are replaced by the reason; after its request a context logs to stderr."""
    code = """
    local kept
    command('log', function(_, ctx)
      kept = ctx
      ctx:log('a', nil, {1})
      ctx:log('b', nil, {f = print})
      ctx:log('c')
    end)
    command('late', function() kept:log('late', 'debug', {x = 1}) end)
    """
    with start(code) as worker:
        worker.start()
        worker.send({"id": 1, "command": "log", "args": {}})
        entries = [worker.receive() for _ in range(3)]
        done = worker.receive()
        worker.call(2, "late")

        assert ["fields: not an object", "fields/f: function is not JSON", None] == [
            entry["fields"].get("encode_error") for entry in entries
        ]
        assert {"info"} == {entry["level"] for entry in entries}
        assert done["result"] is None
        assert 'snakepit_bridge: [debug] late {"x":1}\n' == worker.stderr()
