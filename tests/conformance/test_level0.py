"""A host of Snakepit 0.1.2 works with our bridges, and a bridge of 0.1.2 with our host's first ping."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance.driver import MAX_FRAME, Bridge, Worker, start_bridge

TIMESTAMP = "2024-01-01T00:00:00.000Z"
# language: (suffix of a handler file, one that raises "no model")
BROKEN_HANDLERS = {
    "python": (".py", "raise ValueError('no model')"),
    #
    "javascript": (".js", "throw new Error('no model');"),
    #
    "java": (
        ".java",
        """
class Broken {
    Broken() { throw new IllegalStateException("no model"); }
    @snakepit.SnakepitBridge.Command int never() { return 0; }
}
""",
    ),
    "ruby": (".rb", "raise 'no model'"),
    "perl": (".pl", "die 'no model';"),
    "lua": (".lua", "error('no model')"),
    "r": (".R", "stop('no model')"),
}
REPLY_KEYS = {True: {"id", "success", "result", "timestamp"}, False: {"id", "success", "error", "timestamp"}}


def call(worker: Worker, request_id: int, command: str, args: Any) -> Any:
    """Send a request as the seed's host does, check the reply's form, return its result or error string."""
    reply = worker.call(request_id, command, args, timestamp=TIMESTAMP)
    assert REPLY_KEYS[reply["success"]] == reply.keys()
    assert request_id == reply["id"]
    return reply["result"] if reply["success"] else reply["error"]


@pytest.mark.parametrize("sockets", [False, True], ids=["pipes", "sockets"])
def test_seed_host_is_served_on_stdin_and_stdout(bridge: Bridge, sockets: bool) -> None:
    """Requests, errors and prints of a handler: every frame is whole, what is printed goes to stderr."""
    with Worker([*bridge.argv, "--handlers", bridge.handlers], level=0, sockets=sockets) as worker:
        ready = call(worker, 0, "ping", {"worker_id": "w1", "initialization": True})

        answers = [
            call(worker, 1, "identity", {"value": [False, 0, "", None]}),
            call(worker, 2, "print_text", {"line": "printed line"}),
            call(worker, 3, "fail", {"message": "as text"}),
            call(worker, 4, "later", {"value": 4}),
        ]

        assert ("ok", "w1") == (ready["status"], ready["worker_id"])
        assert "protocol" not in ready
        assert [[False, 0, "", None], "printed", "as text", 4] == answers
        assert "printed line" in worker.stderr()
        worker.close_requests()
        assert 0 == worker.wait()


def test_descriptors_0_and_1_are_protected(bridge: Bridge) -> None:
    """Without descriptors of their own the frames still survive native writes and children that read."""
    with start_bridge(bridge, 0) as worker:
        call(worker, 0, "ping", {"worker_id": "w1", "initialization": True})

        worker.send({"id": 1, "command": "child_reads_stdin", "args": {}})
        worker.send({"id": 2, "command": "write_fd_1", "args": {"line": "native line\n"}})
        worker.send({"id": 3, "command": "child_sees", "args": {}})

        read, written, (pipes, variables) = (worker.receive()["result"] for _ in range(3))
        assert ("", "written", "0") == (read, written, variables)
        assert ("close-on-exec" in bridge.cannot) == (int(pipes) > 1), "one pipe is the child's own"
        assert "native line\n" in worker.stderr()


def test_bad_frame_at_level_0_is_answered_with_a_string(bridge: Bridge) -> None:
    """Also before a handshake, and at level 0, nothing is met with silence."""
    with start_bridge(bridge, 0) as worker:
        worker.send_bytes(b"\0\0\0\x04junk")

        reply = worker.receive()

        assert REPLY_KEYS[False] == reply.keys()
        assert (None, True) == (reply["id"], reply["error"].startswith("bad frame: "))


def test_failing_start_at_level_0_is_a_string_and_exit_1(bridge: Bridge, tmp_path: Path) -> None:
    """A handler file that raises answers the first ping, in the form that a level-0 host knows."""
    suffix, code = BROKEN_HANDLERS[bridge.language]
    handlers = tmp_path / f"broken_handlers{suffix}"
    handlers.write_text(code)
    texts = {
        "python": "raise ValueError('no model')",
        "javascript": "throw new Error('no model');",
        "php": "<?php throw new Exception('no model');",
    }
    handlers = tmp_path / f"broken_handlers{Path(bridge.handlers).suffix}"
    handlers.write_text(texts[bridge.language])
    with Worker([*bridge.argv, "--handlers", str(handlers)], level=0) as worker:
        error = call(worker, 0, "ping", {"worker_id": "w1", "initialization": True})

        assert "no model" in error
        assert 1 == worker.wait()


def test_level_1_fields_mean_nothing_at_level_0(bridge: Bridge) -> None:
    """A level-0 reply never has an index or attachments: unknown keys are ignored."""
    with start_bridge(bridge, 0) as worker:
        call(worker, 0, "ping", {"worker_id": "w1", "initialization": True})

        first = worker.call(1, "count", {}, session="s", timestamp=TIMESTAMP)
        blob = worker.call(2, "blob", {"size": 2}, timestamp=TIMESTAMP)

        assert 1 == first["result"]
        assert not blob["success"]
        assert blob["error"].startswith("result: ")


@pytest.fixture
def ruby(require_runtime: Callable[[str], str]) -> Callable[[], Worker]:
    """Return a function that starts the bridge in the style of the seed's Ruby example."""
    program = require_runtime("ruby")
    script = str(Path(__file__).resolve().parent / "ruby" / "bridge.rb")
    return lambda: Worker([program, "-rtime", script, "--mode", "pool-worker"], level=0)


def test_ruby_bridge_of_the_seed_answers_a_level_1_offer(ruby: Callable[[], Worker]) -> None:
    """A bridge that has never heard of protocol 1 answers the same first ping, without `protocol`."""
    offer = {"versions": [1], "max_frame": MAX_FRAME, "capabilities": ["errors"]}
    args = {"worker_id": "w1", "initialization": True, "protocol": offer, "start_args": None}
    with ruby() as worker:
        ready = call(worker, 0, "ping", args)

        answers = [
            call(worker, 1, "process_data", {"data": "hello"}),
            call(worker, 2, "generate_report", {"title": "T", "data": {"k": 1}})["report"]["title"],
            call(worker, 3, "no_such", {}),
        ]

        assert {"status": "ok", "message": "pong"} == ready
        assert [{"processed": "HELLO", "length": 5}, "T", "Unknown command: no_such"] == answers
        worker.close_requests()
        assert 0 == worker.wait()


def test_ruby_bridge_of_the_seed_ends_on_sigterm(ruby: Callable[[], Worker]) -> None:
    """Its own handler of SIGTERM exits with 0, which is an expected exit."""
    with ruby() as worker:
        call(worker, 0, "ping", {"worker_id": "w1", "initialization": True})

        worker.process.send_signal(signal.SIGTERM)

        assert 0 == worker.wait()
