"""Every error of the Node bridge is a reply that the host can read, and says what the user wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance.driver import Bridge, Worker, starter

ERRORS = r"""
exports.long_message = ({ length }) => { throw new Error('x'.repeat(length) + '\u{1F600}'.repeat(2000)); };
exports.long_type = ({ length }) => { const e = new Error('boo'); e.name = 'N'.repeat(length); throw e; };
exports.escapes = () => { const e = new Error('\x01'.repeat(5000)); e.name = '\x02'.repeat(5000); throw e; };
exports.long_key = ({ length }) => ({ ['x'.repeat(length) + '\u{1F600}'.repeat(200)]: NaN });

const raise = () => { throw new Error('inner'); };
const trapped = (key) => { throw Object.defineProperty(new Error('outer'), key, { get: raise }); };
class Five extends Error { static name = 5; }
const cases = {
  'data trap': () => trapped('data'),
  'cause trap': () => trapped('cause'),
  'stack trap': () => trapped('stack'),
  'name trap': () => trapped('name'),
  'message trap': () => trapped('message'),
  'number as class': () => { throw new Five('outer'); },
  'number as name': () => { const e = new TypeError('outer'); e.name = 5; throw e; },
  'empty name': () => { const e = new TypeError(''); e.name = ''; throw e; },
  'no message': () => { const e = new TypeError(); e.message = undefined; throw e; },
  'empty text': () => { throw ''; },
  'null': () => { throw null; },
  'symbol': () => { throw Symbol('outer'); },
  'no prototype': () => { throw Object.create(null); },
  'revoked': () => { const { proxy, revoke } = Proxy.revocable(new Error('outer'), {}); revoke(); throw proxy; },
  'empty cause': () => { const e = new Error('outer'); e.cause = new TypeError(); throw e; },
};
exports.raise = ({ kind }) => cases[kind]();
exports.revoked_result = () => ({ a: 1n, get b() { return cases.revoked(); } });
"""

FIELDS = """
const trap = { get a() { throw null; } };
const all = { 'null': null, 'array': [1], 'text': 'ab', 'number': 5, 'trap': trap, 'map': new Map() };
exports.log = ({ fields }, ctx) => { ctx.log('m', 'info', all[fields]); };
"""

Start = Callable[[str], Worker]


@pytest.fixture
def start_with(node: Bridge, tmp_path: Path) -> Start:
    """Return what starts a worker with handlers of the given text."""
    return starter(node, tmp_path)


@pytest.mark.parametrize("length", [0, 1])
def test_message_is_cut_between_characters(start_with: Start, length: int) -> None:
    """Half a surrogate pair would be an escape that is no strict JSON."""
    with start_with(ERRORS) as worker:
        worker.start(max_frame=4096)

        message = worker.call(1, "long_message", {"length": length})["error"]["message"]

        assert message.startswith("x" * length + "\N{GRINNING FACE}" * 100)


@pytest.mark.parametrize("length", range(4))
def test_path_is_cut_between_characters(start_with: Start, length: int) -> None:
    """The path of what cannot be sent may be long as well."""
    with start_with(ERRORS) as worker:
        worker.start()

        error = worker.call(1, "long_key", {"length": length})["error"]

        assert ("encode_error", True) == (error["code"], error["message"].endswith("...: NaN is not JSON"))


@pytest.mark.parametrize(("command", "length"), [("long_type", 5_000), ("long_type", 100_000), ("escapes", 0)])
def test_error_too_long_for_a_frame_is_cut_to_what_fits(start_with: Start, command: str, length: int) -> None:
    """Name and message are cut until there is a reply; the code stays."""
    with start_with(ERRORS) as worker:
        worker.start(max_frame=1024)

        error = worker.call(1, command, {"length": length})["error"]

        assert ("handler_error", None) == (error["code"], error["traceback"])
        assert 0 < len(error["type"]) <= 200
        assert error["message"]


def test_text_of_an_error_is_cut_to_what_fits(start_with: Start) -> None:
    """The same holds without the capability `errors`."""
    with start_with(ERRORS) as worker:
        offer = {"versions": [1], "max_frame": 1024, "capabilities": []}
        worker.call(0, "ping", {"protocol": offer})

        assert set(worker.call(1, "escapes")["error"]) == {"\x01"}


def test_limit_below_any_error_ends_the_worker(start_with: Start) -> None:
    """Where no reply fits, the host learns it from the exit and from stderr."""
    with start_with(ERRORS) as worker:
        offer = {"versions": [1], "max_frame": 40, "capabilities": ["errors"]}
        worker.send({"id": 0, "command": "ping", "args": {"protocol": offer}})

        assert 2 == worker.wait()
        assert "snakepit_bridge: a limit of 40 bytes (max_frame) leaves no room for an error: " in worker.stderr()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("data trap", "Error", "outer"),
        ("cause trap", "Error", "outer"),
        ("stack trap", "Error", "outer"),
        ("name trap", "Error", "outer"),
        ("message trap", "Error", "an exception whose message cannot be read"),
        ("number as class", "Error", "outer"),
        ("number as name", "TypeError", "outer"),
        ("empty name", "TypeError", "TypeError"),
        ("no message", "TypeError", "TypeError"),
        ("empty text", "string", "string"),
        ("null", "object", "null"),
        ("symbol", "symbol", "Symbol(outer)"),
        ("no prototype", "Object", "an exception whose message cannot be read"),
        ("revoked", "Object", "an exception whose message cannot be read"),
    ],
)
def test_whatever_is_thrown_keeps_its_name_and_message(start_with: Start, kind: str, name: str, message: str) -> None:
    """A property that cannot be read hides itself alone; what has no name or message gets one."""
    with start_with(ERRORS) as worker:
        worker.start()

        error = worker.call(1, "raise", {"kind": kind})["error"]

        assert ("handler_error", name, message) == (error["code"], error["type"], error["message"])


def test_cause_without_a_message_has_its_name(start_with: Start) -> None:
    """The message of a cause is not empty either."""
    with start_with(ERRORS) as worker:
        worker.start()

        error = worker.call(1, "raise", {"kind": "empty cause"})["error"]

        assert {"type": "TypeError", "message": "TypeError"} == error["cause"]


def test_result_that_throws_anything_is_an_encode_error(start_with: Start) -> None:
    """Also what cannot be asked for its class."""
    with start_with(ERRORS) as worker:
        worker.start()

        error = worker.call(1, "revoked_result")["error"]

        assert "encode_error" == error["code"]
        assert "result: reading it raised an exception whose message cannot be read" == error["message"]


@pytest.mark.parametrize(
    ("args", "path"),
    [
        (r'{"a":1e16,"b":"\ud800"}', "message/args/b"),
        (r'{"a":1e16,"b":[0,{"\udfff":1}]}', "message/args/b/1"),
        ('{"a":%s,"b":"\\ud800"}' % ("[" * 260 + "]" * 260), "message/args/b"),
        (r'{"a":"\\ud800","b/~":["\ud83d\ude00","\ude00\ud83d"]}', "message/args/b~1~0/1"),
    ],
)
def test_lone_surrogate_is_found_behind_anything(start_with: Start, args: str, path: str) -> None:
    """What a result could not hold does not end the search."""
    with start_with(ERRORS) as worker:
        worker.start()

        worker.send_frame(b'{"id":1,"command":"echo","args":%s}' % args.encode())
        message = worker.receive()["error"]["message"]

        assert message.startswith(f"bad frame: {path}: text with a lone surrogate at index 0 is not UTF-8")


@pytest.mark.parametrize("args", [r'{"surrogate":1e16,"t":"\ud83d\ude00"}', r'{"surrogate":1e16,"t":"\\ud800"}'])
def test_whole_pairs_and_backslashes_are_no_lone_surrogates(start_with: Start, args: str) -> None:
    """Neither is a key of that name."""
    expected: Any = json.loads(args)
    with start_with("exports.text = ({ t }) => t;") as worker:
        worker.start()

        worker.send_frame(b'{"id":1,"command":"text","args":%s}' % args.encode())

        assert expected["t"] == worker.receive()["result"]


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ("null", {}),
        ("array", {"fields": [1]}),
        ("text", {"fields": "ab"}),
        ("number", {"fields": 5}),
        ("trap", {"encode_error": "null"}),
        ("map", {"encode_error": "fields: Map is not JSON; convert it to a plain object"}),
    ],
)
def test_fields_of_a_log_record_are_an_object(start_with: Start, fields: str, sent: Any) -> None:
    """Whatever a handler passes."""
    with start_with(FIELDS) as worker:
        worker.start()

        record = worker.call(1, "log", {"fields": fields})

        assert ("log", sent) == (record["type"], record["fields"])
        assert worker.receive()["success"]
