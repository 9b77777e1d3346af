"""What a broken host, a careless handler or a signal does to a bridge: the same in every language."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
from conformance.driver import MAX_FRAME, Bridge, Worker, WorkerGone, dumps, frame, start_bridge

BAD_ARGS = "InvalidArguments"
DEEP = b'{"id":7,"command":"echo","args":' + b"[" * 200_000 + b"]" * 200_000 + b"}"

# name: (payload, id of the answer); each is answered with the code internal, as a BadFrame.
BAD_FRAMES: dict[str, tuple[bytes, int | None]] = {
    "not JSON": (b"not json at all", None),
    "null": (b"null", None),
    "array": (b"[1]", None),
    "number": (b"7", None),
    "cut short": (b'{"id":7,"command":"echo","args":', 7),
    "trailing text": (b'{"id":7,"command":"echo"} {}', 7),
    "not UTF-8": (b'{"id":7,"command":"echo","args":"\xff"}', 7),
    "surrogate in UTF-8": (b'{"id":7,"command":"echo","args":"\xed\xa0\x80"}', 7),
    "id missing": (b'{"command":"echo","args":{}}', None),
    "id a string": (b'{"id":"7","command":"echo","args":{}}', None),
    "id true": (b'{"id":true,"command":"echo","args":{}}', None),
    "id null": (b'{"id":null,"command":"echo","args":{}}', None),
    "NaN": (b'{"id":7,"command":"echo","args":NaN}', 7),
    "Infinity": (b'{"id":7,"command":"echo","args":[-Infinity]}', 7),
    "number out of range": (b'{"id":7,"command":"echo","args":1e400}', 7),
    "lone surrogate": (b'{"id":7,"command":"echo","args":"\\ud800"}', 7),
    "lone surrogate in a key": (b'{"id":7,"command":"echo","args":{"\\uDFFF":1}}', 7),
    "nested deeply": (DEEP, 7),
}

# name: (payload with the id 7, type of the error, how its message begins)
REFUSED: dict[str, tuple[bytes, str, str]] = {
    "command missing": (b'{"id":7,"args":{}}', BAD_ARGS, "request 7: 'command' must be a string"),
    "command a number": (b'{"id":7,"command":5}', BAD_ARGS, "request 7: 'command' must be a string"),
    "session a number": (
        b'{"id":7,"command":"echo","args":{},"session":5}',
        BAD_ARGS,
        "request 7: 'session' must be a string",
    ),
    "deadline a string": (
        b'{"id":7,"command":"echo","args":{},"deadline_ms":"5"}',
        BAD_ARGS,
        "request 7: 'deadline_ms' must be a number",
    ),
    "batch no array": (
        b'{"id":7,"command":"echo","batch":{}}',
        BAD_ARGS,
        "request 7: 'batch' must be an array",
    ),
    "unknown command": (
        b'{"id":7,"command":"no such","args":{}}',
        "UnknownCommand",
        "Unknown command: 'no such'. Available: ",
    ),
}
CODES = {BAD_ARGS: "bad_args", "UnknownCommand": "unknown_command"}


def assert_serves(worker: Worker, request_id: int = 1000) -> None:
    """Assert that the worker answers one more request correctly."""
    assert {"id": request_id, "success": True, "result": "alive"} == worker.call(
        request_id, "identity", {"value": "alive"}
    )


def test_bad_frames_are_answered_and_the_worker_lives(bridge: Bridge) -> None:
    """A payload that is no request gets one reply, the same in every language, and a line on stderr."""
    expected = {case: (request_id, "internal", "BadFrame") for case, (_, request_id) in BAD_FRAMES.items()}
    answers, messages = {}, []
    with start_bridge(bridge) as worker:
        worker.start()

        for case, (payload, _) in BAD_FRAMES.items():
            worker.send_bytes(frame(payload))
            reply = worker.receive()
            error = reply["error"]
            answers[case] = (reply["id"], error["code"], error["type"])
            messages.append(error["message"])
            assert_serves(worker)

        lines = worker.stderr().splitlines()
        assert expected == answers
        assert [] == [message for message in messages if not message.startswith("bad frame: ")]
        assert len(BAD_FRAMES) == len(lines)
        assert [] == [line for line in lines if not line.startswith("snakepit_bridge: bad frame: ")]


def test_impossible_requests_are_refused_in_the_same_words(bridge: Bridge) -> None:
    """A request with an id that cannot be served gets its error under that id, and nothing on stderr."""
    expected = {case: (7, CODES[kind], kind, words) for case, (_, kind, words) in REFUSED.items()}
    answers = {}
    with start_bridge(bridge) as worker:
        worker.start()

        for case, (payload, _, words) in REFUSED.items():
            worker.send_bytes(frame(payload))
            reply = worker.receive()
            error = reply["error"]
            answers[case] = (reply["id"], error["code"], error["type"], error["message"][: len(words)])
            assert_serves(worker)

        assert expected == answers
        assert "" == worker.stderr()


def test_empty_batch_is_not_met_with_silence(bridge: Bridge) -> None:
    """A batch without items has no reply of an item, so it is refused as a whole."""
    with start_bridge(bridge) as worker:
        worker.start()

        worker.send({"id": 7, "command": "echo", "batch": []})
        worker.send({"id": 8, "command": "identity", "args": {"value": 8}})
        reply = worker.receive()

        assert (7, "bad_args") == (reply["id"], reply.get("error", {}).get("code"))
        assert "request 7: 'batch' must not be empty" == reply["error"]["message"]


@pytest.mark.parametrize(
    "head", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"Hello world", (MAX_FRAME + 1).to_bytes(4, "big")], ids=repr
)
def test_length_out_of_range_ends_the_worker(bridge: Bridge, head: bytes) -> None:
    """A length of 0 or above the limit is answered, explained on stderr, and the exit status is 2."""
    with start_bridge(bridge) as worker:
        worker.start()

        worker.send_bytes(head)
        reply = worker.receive()

        assert (None, "internal", "BadFrame") == (reply["id"], reply["error"]["code"], reply["error"]["type"])
        assert 2 == worker.wait()
        assert "snakepit_bridge: bad frame: " in worker.stderr()


def test_length_above_the_agreed_limit_ends_the_worker(bridge: Bridge) -> None:
    """The limit is the agreed one, not the default."""
    with start_bridge(bridge, handlers=False) as worker:
        worker.start(max_frame=4096)

        worker.send_bytes((4097).to_bytes(4, "big"))

        assert "internal" == worker.receive()["error"]["code"]
        assert 2 == worker.wait()


@pytest.mark.parametrize("part", [b"\0", b"\0\0\0\x09", b'\0\0\0\x09{"id"'], ids=repr)
def test_end_inside_a_frame_is_not_silent(bridge: Bridge, part: bytes) -> None:
    """Half a frame and then the end of input: a reply, a line on stderr, exit status 2."""
    with start_bridge(bridge) as worker:
        worker.start()

        worker.send_bytes(part)
        worker.close_requests()
        reply = worker.receive()

        assert (None, "internal") == (reply["id"], reply["error"]["code"])
        assert 2 == worker.wait()
        assert "snakepit_bridge: bad frame: " in worker.stderr()


def test_attachment_frame_of_another_size_ends_the_worker(bridge: Bridge) -> None:
    """A raw frame that is not as long as announced cannot be followed any further."""
    entry = {"path": "/args/data", "kind": "bytes", "len": 5}
    with start_bridge(bridge) as worker:
        worker.start()

        worker.send({"id": 1, "command": "reverse", "args": {"data": None}, "attachments": [entry]}, b"four")

        assert "internal" == worker.receive()["error"]["code"]
        assert 2 == worker.wait()


def test_unknown_message_type_is_ignored(bridge: Bridge) -> None:
    """A message of a later protocol is no error, and neither are unknown keys."""
    with start_bridge(bridge) as worker:
        worker.start()

        worker.send({"type": "of a later version", "id": 1, "x": [1]})
        reply = worker.call(2, "identity", {"value": 2}, later={"key": 1})

        assert {"id": 2, "success": True, "result": 2} == reply
        assert "" == worker.stderr()


def test_requests_split_at_every_byte_are_read(bridge: Bridge) -> None:
    """However the pipe cuts the frames, each request is read whole."""
    with start_bridge(bridge) as worker:
        worker.start()
        requests = [{"id": n, "command": "identity", "args": {"value": n}} for n in (1, 2)]

        for byte in b"".join(frame(dumps(request)) for request in requests):
            worker.send_bytes(bytes([byte]))

        assert [1, 2] == [worker.receive()["result"], worker.receive()["result"]]


def test_large_messages_pass_both_ways(bridge: Bridge) -> None:
    """8 MiB of text and of bytes come back, although no pipe holds them."""
    size = 8 << 20
    text, data = "é" * (size // 2), os.urandom(size)
    with start_bridge(bridge) as worker:
        worker.start()

        echoed = worker.call(1, "identity", {"value": text})["result"]
        entry = {"path": "/args/data", "kind": "bytes", "len": size}
        worker.send({"id": 2, "command": "reverse", "args": {"data": None}, "attachments": [entry]}, data)
        reply = worker.receive()

        assert text == echoed
        assert [data[::-1]] == worker.receive_attachments(reply)


def test_print_in_a_handler_does_not_touch_the_frames(bridge: Bridge) -> None:
    """What a handler prints, also as native code does, arrives on stdout."""
    with start_bridge(bridge) as worker:
        worker.start()

        replies = [
            worker.call(1, "print_text", {"line": "printed line"})["result"],
            worker.call(2, "write_fd_1", {"line": "native line\n"})["result"],
        ]

        assert ["printed", "written"] == replies
        assert "printed line\nnative line\n" == worker.stdout()


def test_child_of_a_handler_reads_no_frames(bridge: Bridge) -> None:
    """A subprocess that reads its inherited stdin sees the null device, even with requests in the pipe."""
    with start_bridge(bridge) as worker:
        worker.start()

        worker.send({"id": 1, "command": "child_reads_stdin", "args": {}})
        worker.send({"id": 2, "command": "identity", "args": {"value": 2}})

        assert ["", 2] == [worker.receive()["result"], worker.receive()["result"]]


def test_child_of_a_handler_inherits_no_frame_descriptor(bridge: Bridge) -> None:
    """A subprocess sees neither the descriptors of the protocol nor the variables that name them."""
    with start_bridge(bridge) as worker:
        worker.start()

        pipes, variables = worker.call(1, "child_sees")["result"]

        assert ("1", "0") == (pipes, variables), "one pipe is the child's own"


def test_handler_exceptions_do_not_end_the_worker(bridge: Bridge) -> None:
    """A hundred failures in a row are a hundred replies from one process."""
    with start_bridge(bridge) as worker:
        worker.start()
        pid = worker.call(1, "pid")["result"]

        messages = [worker.call(n, "fail", {"message": f"m{n}"})["error"]["message"] for n in range(2, 102)]

        assert [f"m{n}" for n in range(2, 102)] == messages
        assert pid == worker.call(200, "pid")["result"]


def test_exit_and_interrupt_in_a_python_handler_are_replies(bridge: Bridge) -> None:
    """SystemExit and KeyboardInterrupt do not end a Python worker; Node has neither."""
    both = {"leave": "SystemExit", "interrupt": "KeyboardInterrupt"}
    commands = both if bridge.language == "python" else {}
    with start_bridge(bridge) as worker:
        worker.start()

        errors = {name: worker.call(1, name)["error"] for name in commands}

        assert commands == {name: error["type"] for name, error in errors.items()}
        assert {"handler_error"} >= {error["code"] for error in errors.values()}
        assert_serves(worker)


def test_long_error_message_is_capped(bridge: Bridge) -> None:
    """Message and traceback of an error hold at most 64 KiB each."""
    with start_bridge(bridge) as worker:
        worker.start()

        error = worker.call(1, "fail", {"message": "é" * 200_000})["error"]

        assert 60_000 < len(error["message"].encode()) <= 65_536
        assert len(error["traceback"].encode()) <= 65_536


def test_end_of_requests_ends_an_idle_worker(bridge: Bridge) -> None:
    """The end of input is exit status 0, before and after the handshake."""
    with start_bridge(bridge) as fresh, start_bridge(bridge) as worker:
        worker.start()

        fresh.close_requests()
        worker.close_requests()

        assert (0, 0) == (fresh.wait(), worker.wait())
        assert ("", "") == (fresh.stderr(), worker.stderr())


def test_end_of_requests_ends_a_waiting_worker(bridge: Bridge) -> None:
    """A handler that waits without computing does not keep the worker after its host has gone."""
    with start_bridge(bridge) as worker:
        worker.start()
        assert "hanging" == worker.call(1, "hang")["message"]

        worker.close_requests()

        assert 0 == worker.wait()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_sigterm_ends_the_worker(bridge: Bridge, busy: bool) -> None:
    """SIGTERM keeps its default action, also while a handler runs."""
    with start_bridge(bridge) as worker:
        worker.start()
        if busy:
            assert "log" == worker.call(1, "hang")["type"]

        worker.process.terminate()

        assert -signal.SIGTERM == worker.wait()


def test_sigint_is_ignored(bridge: Bridge) -> None:
    """Ctrl-C in the host's terminal is the host's business."""
    with start_bridge(bridge) as worker:
        worker.start()

        worker.process.send_signal(signal.SIGINT)

        assert_serves(worker)


@pytest.mark.parametrize(
    "options", [["--no-such"], ["--handlers"], ["stray"]], ids=["unknown", "without value", "positional"]
)
def test_bad_command_line_is_exit_status_2(bridge: Bridge, options: list[str]) -> None:
    """An option that does not exist, or lacks its value, is said on stderr."""
    with Worker([*bridge.argv, *options]) as worker:
        if "command-line" in bridge.cannot:  # it is the user's program's own
            assert "ok" == worker.start()["result"]["status"]
            return
        status = worker.wait()

        assert 2 == status
        assert worker.stderr().startswith("snakepit_bridge: ")


def test_mode_option_of_the_seed_is_accepted(bridge: Bridge) -> None:
    """`--mode pool-worker`, which adapters of 0.1.2 pass, changes nothing."""
    with Worker([*bridge.argv, "--mode", "pool-worker"]) as worker:
        reply = worker.start()

        assert "ok" == reply["result"]["status"]


def test_missing_handler_file_fails_the_start(bridge: Bridge) -> None:
    """The first ping is answered with the reason, and the exit status is 1."""
    with Worker([*bridge.argv, "--handlers", "/nowhere/at_all.py"]) as worker:
        reply = worker.start()

        assert (0, "handler_error") == (reply["id"], reply["error"]["code"])
        assert "/nowhere/at_all.py" in reply["error"]["message"]
        assert 1 == worker.wait()


def test_claim_is_announced_only_with_its_descriptor(bridge: Bridge) -> None:
    """Without SNAKEPIT_CLAIM_FD the capability is not agreed."""
    with start_bridge(bridge, claim=False) as worker:
        agreed: Any = worker.start()["result"]["protocol"]["capabilities"]

        assert "claim" not in agreed
        assert "pipeline" in agreed


def test_host_that_stops_reading_ends_the_worker(bridge: Bridge) -> None:
    """A reply that nobody can read any more ends the worker with status 0, without a traceback."""
    with start_bridge(bridge) as worker:
        worker.start()
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, worker.replies)
        os.close(null)

        worker.send({"id": 1, "command": "identity", "args": {"value": 1}})

        assert 0 == worker.wait()
        assert "Traceback" not in worker.stderr()
        with pytest.raises(WorkerGone):
            worker.receive()
