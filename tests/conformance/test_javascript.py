"""What only the Node bridge has to prove: its handler files, promises, and strays of the event loop."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from conformance.driver import Bridge, Worker, start_bridge, starter

HERE = Path(__file__).resolve().parent

STRAYS = """
class Failure extends Error {}
let open;
const gate = () => new Promise((resolve) => { open = resolve; });
const throwLater = () => setImmediate(() => { throw new Failure('too late'); });
const thrown = () => new Promise((resolve) => process.once('uncaughtExceptionMonitor', () => setImmediate(resolve)));

gate().then(throwLater);
exports.open_for_ever = () => { open(); return new Promise((resolve) => setInterval(() => resolve, 1000)); };
exports.visit = async ({ leave }) => {
  if (leave) {
    gate().then(throwLater);
    return 'left';
  }
  open();
  await thrown();
  return 'innocent';
};
exports.reject = async () => {
  Promise.reject(new Failure('nobody waits'));
  await new Promise((resolve) => setImmediate(resolve));
};
"""


def start_with(node: Bridge, handlers: Path | str) -> Worker:
    """Start the Node bridge with one handler file."""
    return Worker([*node.argv, "--handlers", str(handlers)])


def test_es_module_is_a_handler_file(node: Bridge) -> None:
    """Named exports and a default object are commands; a top-level await is finished first."""
    with start_with(node, HERE / "handlers.mjs") as worker:
        worker.start()

        assert "hello Ada" == worker.call(1, "named", {"name": "Ada"})["result"]
        assert "default" == worker.call(2, "fromDefault")["result"]


def test_js_file_of_a_module_package_is_a_handler_file(node: Bridge, tmp_path: Path) -> None:
    """A .js file is an ES module where package.json says so."""
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "commands.js").write_text("export const hi = () => 'hi';")
    with start_with(node, tmp_path / "commands.js") as worker:
        worker.start()

        assert "hi" == worker.call(1, "hi")["result"]


def test_handlers_override_built_in_commands_but_ping(node: Bridge) -> None:
    """A handler file may replace `echo`; `ping` belongs to the bridge."""
    with start_with(node, HERE / "handlers.cjs") as worker:
        worker.start()

        assert {"mine": {"a": 1}} == worker.call(1, "echo", {"a": 1})["result"]
        assert "ok" == worker.call(2, "ping")["result"]["status"]


def test_handshake_lists_the_destructured_parameters(node: Bridge) -> None:
    """The handshake names what a handler takes out of its args, when it says so."""
    with start_with(node, HERE / "handlers.cjs") as worker:
        commands = worker.start()["result"]["protocol"]["commands"]

        assert {"params": ["name"], "doc": ""} == commands["named"]
        assert ["operation", "a", "b"] == commands["compute"]["params"]


def test_exception_from_a_timer_is_the_reply_of_the_running_request(node: Bridge) -> None:
    """What a handler throws outside of its promise still answers its request, once."""
    with start_bridge(node) as worker:
        worker.start()

        error = worker.call(1, "throw_later")["error"]

        assert ("handler_error", "Failure") == (error["code"], error["type"])
        assert "from a timer" == error["message"]
        assert 2 == worker.call(2, "identity", {"value": 2})["result"]


def test_promise_that_resolves_after_its_request_was_answered_is_ignored(node: Bridge) -> None:
    """Its value is neither a second reply nor the reply of the request that runs by then."""
    with start_bridge(node) as worker:
        worker.start()
        assert "from a timer" == worker.call(1, "throw_then_resolve")["error"]["message"]

        second = worker.call(2, "resolve_earlier")
        third = worker.call(3, "identity", {"value": 3})

        assert {"id": 2, "success": True, "result": "in time"} == second
        assert {"id": 3, "success": True, "result": 3} == third


def test_reading_pauses_and_goes_on(node: Bridge) -> None:
    """What waits behind a pending promise is bounded by the frame limit, and all of it is answered."""
    args = {"value": "x" * 1000}
    with start_bridge(node) as worker:
        worker.start(max_frame=8192)

        for n in range(1, 65):
            worker.send({"id": n, "command": "later", "args": args})

        assert list(range(1, 65)) == [worker.receive()["id"] for _ in range(1, 65)]


@pytest.mark.parametrize("named", ["", "3", "a,b", "900,901"])
def test_bad_descriptors_are_exit_status_2(node: Bridge, named: str) -> None:
    """SNAKEPIT_FDS that names no two open descriptors is said on stderr."""
    with Worker(node.argv, level=0, env={"SNAKEPIT_FDS": named}) as worker:
        assert 2 == worker.wait()
        assert "SNAKEPIT_FDS" in worker.stderr()


def test_rejection_that_nobody_awaits_is_a_line_on_stderr(node: Bridge) -> None:
    """It is not the request's failure, and it does not end the worker."""
    with start_bridge(node) as worker:
        worker.start()

        assert "still here" == worker.call(1, "reject_aside")["result"]
        assert "unhandled rejection" in worker.stderr()
        assert "nobody waits" in worker.stderr()


def test_exception_of_an_ended_request_is_a_line_on_stderr(node: Bridge, tmp_path: Path) -> None:
    """The request that runs by then keeps its own result."""
    with starter(node, tmp_path)(STRAYS) as worker:
        worker.start()

        assert "left" == worker.call(1, "visit", {"leave": True})["result"]
        assert {"id": 2, "success": True, "result": "innocent"} == worker.call(2, "visit", {"leave": False})
        assert "snakepit_bridge: exception of request 1 after its reply: Error: too late\n" in worker.stderr()


def test_exception_of_an_ended_item_is_not_the_next_items(node: Bridge, tmp_path: Path) -> None:
    """Each item of a batch has its own errors."""
    with starter(node, tmp_path)(STRAYS) as worker:
        worker.start()

        worker.send({"id": 1, "command": "visit", "batch": [{"leave": True}, {"leave": False}]})

        assert ["left", "innocent"] == [worker.receive()["result"] for _ in range(2)]
        assert "snakepit_bridge: exception of request 1 after its reply: Error: too late\n" in worker.stderr()


def test_exception_of_no_request_answers_the_running_one(node: Bridge, tmp_path: Path) -> None:
    """A request that waits for what the loading of the file began does not wait for ever."""
    with starter(node, tmp_path)(STRAYS) as worker:
        worker.start()

        error = worker.call(1, "open_for_ever")["error"]

        assert ("handler_error", "Failure", "too late") == (error["code"], error["type"], error["message"])


def test_unhandled_rejection_names_its_request(node: Bridge, tmp_path: Path) -> None:
    """It is a line on stderr and not the reply."""
    with starter(node, tmp_path)(STRAYS) as worker:
        worker.start()

        assert worker.call(7, "reject")["success"]
        assert "snakepit_bridge: unhandled rejection of request 7: Error: nobody waits\n" in worker.stderr()


def test_thrown_text_is_a_reply(node: Bridge) -> None:
    """JavaScript can throw anything; the message says what it was."""
    with start_bridge(node) as worker:
        worker.start()

        error: Any = worker.call(1, "throw_text")["error"]

        assert ("handler_error", "string", "just text") == (error["code"], error["type"], error["message"])


def test_requests_behind_a_pending_promise_wait(node: Bridge) -> None:
    """A synchronous command does not overtake an asynchronous one."""
    with start_bridge(node) as worker:
        worker.start()

        for n in range(1, 200):
            worker.send({"id": n, "command": "later" if n % 3 else "identity", "args": {"value": n}})

        assert list(range(1, 200)) == [worker.receive()["result"] for _ in range(1, 200)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"type": "cauchy"}, "random: unknown type 'cauchy'; one of integer, normal, uniform"),
        ({"min": "0"}, "random: field 'min' must be a number"),
        ([], "random: args must be an object"),
    ],
)
def test_mistakes_in_random_are_bad_args(node: Bridge, args: Any, message: str) -> None:
    """The command that only JavaScript has follows the same rules."""
    with start_bridge(node) as worker:
        worker.start()

        error = worker.call(1, "random", args)["error"]

        assert ("bad_args", message) == (error["code"], error["message"])


def test_random_numbers_are_in_range(node: Bridge) -> None:
    """Each distribution gives a number of its kind, also with a lower bound of 0."""
    with start_bridge(node) as worker:
        worker.start()

        uniform = worker.call(1, "random", {"min": -1, "max": 0})["result"]
        integer = worker.call(2, "random", {"type": "integer", "min": 0, "max": 3})["result"]
        normal = worker.call(3, "random", {"type": "normal", "mean": 5, "std": 0})["result"]

        assert -1 <= uniform["value"] <= 0
        assert integer["value"] in range(4)
        assert 5 == normal["value"]
        assert {"type": "normal", "mean": 5, "std": 0} == normal["parameters"]


@pytest.mark.parametrize("shift", [0, 1])
def test_long_text_comes_back_whole(node: Bridge, shift: int) -> None:
    """Text that is written piece by piece is cut inside no character."""
    text = "x" * shift + "\N{GRINNING FACE}" * 100_000 + "é" * 100_000 + "x" * 100_000
    with start_bridge(node) as worker:
        worker.start()

        assert text == worker.call(1, "identity", {"value": text})["result"]


def test_long_bytes_arrive_in_their_places(node: Bridge) -> None:
    """Attachments in frames longer and shorter than a read, and a request right behind them."""
    items = [os.urandom(size) for size in (200_001, 5, 70_000, 65_536)]
    entries = [{"path": f"/args/value/{n}", "kind": "bytes", "len": len(data)} for n, data in enumerate(items)]
    args = {"value": [None] * len(items)}
    message = {"id": 1, "command": "identity", "args": args, "attachments": entries}
    parts = [data[at : at + 70_000] for data in items for at in range(0, len(data), 70_000)]
    with start_bridge(node) as worker:
        worker.start(max_frame=70_000)

        worker.send(message, *parts)
        worker.send({"id": 2, "command": "identity", "args": {"value": 2}})
        reply = worker.receive()

        assert items == worker.receive_attachments(reply, 70_000)
        assert 2 == worker.receive()["result"]


@pytest.mark.parametrize("offset", range(17))
def test_integer_that_would_be_rounded_is_found_anywhere(node: Bridge, offset: int) -> None:
    """Sixteen digits too many are refused wherever they stand; those of a fraction or a text are not."""
    fine = {"a": " " * offset, "b": 0.1234567890123456, "c": "12345678901234567890", "d": "e999"}
    with start_bridge(node) as worker:
        worker.start()

        exact = worker.call(1, "identity", {"value": [fine, 2**53 - 1]})["result"]
        error = worker.call(2, "identity", {"value": [fine, 2**53]})["error"]

        assert [fine, 2**53 - 1] == exact
        assert ("bad_args", True) == (error["code"], str(2**53) in error["message"])


def test_refused_integer_beside_bytes_leaves_the_stream_whole(node: Bridge) -> None:
    """The bytes of a message that is refused are read with it, and the next request is served."""
    entries = [{"path": "/args/data", "kind": "bytes", "len": 4}]
    message = {"id": 1, "command": "identity", "args": {"data": None, "n": 2**60}, "attachments": entries}
    with start_bridge(node) as worker:
        worker.start()

        worker.send(message, b"\0\0\0\x01")
        worker.send({"id": 2, "command": "identity", "args": {"value": 2}})

        assert worker.receive()["error"]["message"].startswith(f"args/n: integer {2**60} is beyond 2^53-1")
        assert 2 == worker.receive()["result"]


def test_integers_are_named_by_their_path(node: Bridge) -> None:
    """Whatever stands around them: keys with digits, empty and nested values, escapes, several in one message."""
    value = {"12345678901234567890": [], "a\"/~": [{}, [[], "x", {"k": [1, 2**70]}], 2**71], "b": {"": -(2**72)}}
    with start_bridge(node) as worker:
        worker.start()

        error = worker.call(1, "identity", {"value": value})["error"]

        assert error["message"].startswith(f"args/value/a\"~1~0/1/2/k/1: integer {2**70} is beyond")


def test_integer_in_start_args_is_a_failed_start(node: Bridge) -> None:
    """It is refused before the handlers are loaded."""
    with start_bridge(node) as worker:
        offer = {"versions": [1], "max_frame": 1 << 20, "capabilities": ["errors"]}

        reply = worker.call(0, "ping", {"protocol": offer, "start_args": {"seed": 2**60}})

        assert reply["error"]["message"].startswith(f"args/start_args/seed: integer {2**60}")
        assert 1 == worker.wait()
