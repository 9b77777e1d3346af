"""What only the Java bridge does: it reads ahead behind slow handlers, and compiles sources that were not prepared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conformance.driver import Bridge, Worker, find_bridges, start_bridge

SLOW_MS = 250  # more than the bridge's own 100 ms: the watcher then waits for the pipe, not the main thread


@pytest.fixture
def java(require_runtime: Callable[[str], str]) -> Bridge:
    """Return the Java bridge."""
    require_runtime("java")
    (bridge,) = (bridge for bridge in find_bridges() if bridge.runtime == "java")
    return bridge


def test_request_behind_a_slow_one_is_served(java: Bridge) -> None:
    """Whether it comes while the slow handler runs or after it, and however long it is."""
    large = "x" * 200_000
    with start_bridge(java) as worker:
        worker.start()

        for request_id in (1, 4):
            assert SLOW_MS == worker.call(request_id, "stall", {"ms": SLOW_MS})["result"]
            assert large == worker.call(request_id + 1, "identity", {"value": large})["result"]
            assert 1 == worker.call(request_id + 2, "identity", {"value": 1})["result"]
        worker.send({"id": 7, "command": "stall", "args": {"ms": SLOW_MS}})
        for request_id in (8, 9, 10):
            worker.send({"id": request_id, "command": "identity", "args": {"value": large}})

        assert [7, 8, 9, 10] == [worker.receive()["id"] for _ in range(4)]
        worker.close_requests()
        assert 0 == worker.wait()


def test_attachment_behind_a_slow_request_is_whole(java: Bridge) -> None:
    """The bytes are put together from what was read ahead and what was not."""
    data = bytes(range(256)) * 1000
    entry = {"path": "/args/data", "kind": "bytes", "len": len(data)}
    with start_bridge(java) as worker:
        worker.start()
        worker.send({"id": 1, "command": "stall", "args": {"ms": SLOW_MS}})
        worker.send({"id": 2, "command": "reverse", "args": {"data": None}, "attachments": [entry]}, data)

        assert SLOW_MS == worker.receive()["result"]
        assert [data[::-1]] == worker.receive_attachments(worker.receive())


def start_with(java: Bridge, folder: Path, source: str) -> tuple[dict[str, object], int]:
    """Return the answer to the first ping of a worker with a source file that it compiles itself, and its status."""
    path = folder / "Own.java"
    path.write_text(source)
    with Worker([*java.argv, "--handlers", str(path)]) as worker:
        reply = worker.start()
        worker.close_requests()
        return reply, worker.wait()


def test_source_is_compiled_by_the_worker_itself(java: Bridge, tmp_path: Path) -> None:
    """A bridge that was started by hand needs no step before."""
    source = """
package own;

import java.util.Map;
import snakepit.SnakepitBridge.*;

public class Own {
    @Command(value = "shout", doc = "Say it loud.")
    static String shout(String text, Context ctx) {
        return text.toUpperCase();
    }

    @Command
    Object all(Map<String, Object> args) {
        return args;
    }
}
"""
    reply, status = start_with(java, tmp_path, source)

    commands = reply["result"]["protocol"]["commands"]  # type: ignore[index]
    assert {"params": ["text"], "doc": "Say it loud."} == commands["shout"]
    assert {"params": [], "doc": ""} == commands["all"]
    assert 0 == status


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("@Command int x( { return 1; }", "Own.java:2: error: "),
        ('@Command("a") int x() { return 1; } @Command("a") int y() { return 1; }', "command 'a' is defined twice: "),
        ("@Command int ping() { return 1; }", "command 'ping' belongs to the bridge"),
        ("@Command int x(Thread t) { return 1; }", "Own.x: parameter 't' is java.lang.Thread, which no JSON value"),
        ("int x() { return 1; }", "has no method with @Command"),
        ("Own(int a) {} @Command int x() { return 1; }", "Own needs a constructor without parameters"),
    ],
)
def test_handlers_that_cannot_be(java: Bridge, tmp_path: Path, body: str, message: str) -> None:
    """The first ping is answered with the reason, javac's own words where they are javac's, and the status is 1."""
    source = f"import snakepit.SnakepitBridge.*;\nclass Own {{ {body} }}\n"
    reply, status = start_with(java, tmp_path, source)

    error = reply["error"]
    assert isinstance(error, dict)
    assert "handler_error" == error["code"]
    assert message in error["message"]
    assert 1 == status
