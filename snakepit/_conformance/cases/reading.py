"""Cases of rule 2: exact reads, complete writes, a flush after each reply, no silence."""

from __future__ import annotations

import os

from ..case import Trial, case
from ..finding import Finding, SilenceFinding, show_bytes, show_json
from ..peer import MAX_FRAME, Worker, dumps, frame
from ..survey import MIRROR

__all__ = ()

LARGE = 16 << 20
DEEP = b"[" * 200_000 + b"]" * 200_000
ORDER_HINT = "work strictly in order, one request at a time; an asynchronous handler has settled before the next begins"

# name: (payload, id of the answer); each is answered with the code internal, as a BadFrame.
BAD_FRAMES: dict[str, tuple[bytes, int | None]] = {
    "not JSON": (b"not json at all", None),
    "null": (b"null", None),
    "array": (b"[1]", None),
    "number": (b"7", None),
    "cut short": (b'{"id":7,"command":"echo","args":', 7),
    "trailing text": (b'{"id":7,"command":"echo"} {}', 7),
    "id missing": (b'{"command":"echo","args":{}}', None),
    "id a string": (b'{"id":"7","command":"echo","args":{}}', None),
    "id true": (b'{"id":true,"command":"echo","args":{}}', None),
    "id null": (b'{"id":null,"command":"echo","args":{}}', None),
    "nested deeply": (b'{"id":7,"command":"echo","args":' + DEEP + b"}", 7),
}


def check_bad_frames(trial: Trial, bad: dict[str, tuple[bytes, int | None]]) -> None:
    """Check that each payload gets one reply and one line on stderr, and that the worker lives."""
    with trial.worker() as worker:
        for name, (payload, request_id) in bad.items():
            before = worker.stderr()
            worker.send_frame(payload)
            what = f"a bad frame ({name}) was not refused as one"
            trial.expect_error(worker.receive(), request_id, "internal", "BadFrame", "bad frame: ", what, worker)
            trial.survive(worker)
            told = worker.stderr()[len(before) :].splitlines()
            if len(told) != 1 or "bad frame" not in told[0]:
                raise Finding(
                    f"a bad frame ({name}) was not told on stderr",
                    sent=show_bytes(payload),
                    expected="one line: bad frame, the reason, and the first 80 bytes seen, escaped",
                    received=show_bytes("\n".join(told).encode()) or "nothing",
                )


@case("rule 2", "A payload that is no request is answered and told on stderr, and the worker lives", levels=(1, 0))
def bad_frames_are_answered_and_the_worker_lives(trial: Trial) -> None:
    check_bad_frames(trial, BAD_FRAMES)


def _end_by(trial: Trial, data: bytes, *, close: bool = False) -> None:
    with trial.worker() as worker:
        worker.send_bytes(data)
        if close:
            worker.close_requests()
        what = "a stream that cannot be followed was not answered with a bad frame"
        trial.expect_error(worker.receive(), None, "internal", "BadFrame", "bad frame: ", what, worker)
        trial.expect(2, worker.wait(), "the wrong exit status after it", worker, "PROTOCOL.md, section 9")
        if "bad frame" not in worker.stderr():
            raise Finding("it was not told on stderr", sent=worker.sent, expected="a line with: bad frame")


@case("rule 2", "A length of 0 is answered, and ends the worker with status 2", levels=(1, 0))
def length_of_0_ends_the_worker(trial: Trial) -> None:
    _end_by(trial, b"\0\0\0\0")


@case("rule 2", "A length above the limit is answered, and ends the worker with status 2", levels=(1, 0))
def length_out_of_range_ends_the_worker(trial: Trial) -> None:
    for head in (b"\xff\xff\xff\xff", (MAX_FRAME + 1).to_bytes(4, "big")):
        _end_by(trial, head)


@case("rule 2", "Text where a length should be is answered, and ends the worker with status 2")
def text_among_the_requests_ends_the_worker(trial: Trial) -> None:
    _end_by(trial, b"Hello world")


@case("rule 2", "The end of the requests inside a length or a payload is answered, with status 2", levels=(1, 0))
def end_inside_a_frame_is_not_silent(trial: Trial) -> None:
    for part in (b"\0", b"\0\0\0\x09", b'\0\0\0\x09{"id"'):
        _end_by(trial, part, close=True)


@case("attachments", "A raw frame of another length than announced ends the worker", "capability attachments")
def attachment_frame_of_another_size_ends_the_worker(trial: Trial) -> None:
    entry = {"path": "/args/data", "kind": "bytes", "len": 5}
    with trial.worker() as worker:
        request = {"id": 1, "command": "reverse", "args": {"data": None}, "attachments": [entry]}
        worker.send(request, b"four")
        what = "a raw frame of another length than announced was not refused"
        trial.expect_error(worker.receive(), None, "internal", "BadFrame", "bad frame: ", what, worker)
        trial.expect(2, worker.wait(), "the wrong exit status after it", worker)


@case("rule 2", "A message of an unknown type and unknown keys are ignored")
def unknown_message_type_is_ignored(trial: Trial) -> None:
    with trial.worker() as worker:
        before = worker.stderr()
        worker.send({"type": "of a later version", "id": 1, "x": [1]})
        reply = worker.call(2, "ping", {}, later={"key": 1})
        trial.expect((2, True), (reply.get("id"), reply.get("success")), "it was not ignored", worker)
        trial.expect(before, worker.stderr(), "it was complained of on stderr", worker)


@case("rule 2", "However the pipe cuts the frames, each request is read whole", MIRROR, levels=(1, 0))
def requests_split_at_every_byte_are_read(trial: Trial) -> None:
    hint = "a read may return less than asked for: read on until the length is there, then the payload"
    with trial.worker() as worker:
        for number in (1, 2):
            for byte in frame(dumps(trial.mirror.request(number, f"é{number}"))):
                worker.send_bytes(bytes([byte]))
                worker.wait_until_read()
            value = trial.mirror.value(worker.receive().get("result"))
            trial.expect(f"é{number}", value, "a request in pieces was not read whole", worker, hint)


@case("pipeline", "Requests that arrive in one write are read one by one", MIRROR, "capability pipeline")
def requests_in_one_write_are_read(trial: Trial) -> None:
    numbers = list(range(1, 51))
    with trial.worker() as worker:
        worker.send_bytes(b"".join(frame(dumps(trial.mirror.request(n, n))) for n in numbers))
        _check_order(trial, worker, numbers)


@case("pipeline", "Requests in the pipe are answered in the order in which they came", MIRROR, "capability pipeline")
def answers_in_order(trial: Trial) -> None:
    """Long and short ones mixed: a bridge with threads would let the short ones pass."""
    numbers = list(range(1, 41))
    with trial.worker() as worker:
        for number in numbers:
            size = 500_000 if number % 8 == 1 else 1
            value = [number, "x" * size]
            worker.send(trial.mirror.request(number, value), reading=True)
        _check_order(trial, worker, numbers)


def _check_order(trial: Trial, worker: Worker, numbers: list[int]) -> None:
    received = []
    for number in numbers:
        reply = worker.receive()
        received.append(reply.get("id"))
        value = trial.mirror.value(reply.get("result"))
        echoed = value[0] if isinstance(value, list) and value else value
        if received[-1] != number:
            raise Finding(
                "answers in the wrong order",
                sent=f"requests with the ids {numbers[0]} to {numbers[-1]}, one after the other",
                expected=f"the answer to request {number}",
                received=f"answers to {received[-5:]}",
                hint=ORDER_HINT,
            )
        trial.expect(number, echoed, f"the answer to request {number} holds another's result", worker, ORDER_HINT)


@case("rule 2", "A reply leaves as soon as it exists: no further request has to push it out", levels=(1, 0))
def each_reply_is_flushed(trial: Trial) -> None:
    with trial.worker() as worker:
        for number in range(1, 21):
            reply = worker.call(number, "ping", {"n": number})
            trial.expect(number, reply.get("id"), "not the reply to this request", worker)


@case(
    "pipeline",
    "A reply does not wait for the request behind it to be done",
    "capability pipeline",
    "command stall",
    MIRROR,
)
def each_reply_leaves_before_the_next_request_begins(trial: Trial) -> None:
    with trial.worker() as worker:
        endless = {"id": 2, "command": "stall", "args": {"ms": None}}
        worker.send_bytes(frame(dumps(trial.mirror.request(1, 1))) + frame(dumps(endless)))
        try:
            reply = worker.receive()
        except SilenceFinding as finding:
            finding.what = "a missed flush: a reply waits for the handler of the next request"
            finding.hint = "flush each reply before the next request is begun"
            raise
        trial.expect(1, reply.get("id"), "not the reply to the first request", worker)


@case("rule 2", "8 MiB of text come back, although no pipe holds them", MIRROR, levels=(1, 0))
def large_messages_pass_both_ways(trial: Trial) -> None:
    text = "é" * (4 << 20)
    with trial.worker() as worker:
        worker.send(trial.mirror.request(1, text))
        echoed = trial.mirror.value(worker.receive().get("result"))
        if echoed != text:
            raise _changed("8 MiB of text changed on their way", text, echoed)


@case("attachments", "8 MiB of bytes come back", "capability attachments", "command reverse")
def large_attachments_pass_both_ways(trial: Trial) -> None:
    data = os.urandom(8 << 20)
    entry = {"path": "/args/data", "kind": "bytes", "len": len(data)}
    with trial.worker() as worker:
        worker.send({"id": 2, "command": "reverse", "args": {"data": None}, "attachments": [entry]}, data)
        if worker.receive_attachments(worker.receive()) != [data[::-1]]:
            raise Finding("8 MiB of bytes changed on their way", hint="they are raw bytes, whatever their first one is")


@case("rule 2", "16 MiB in each direction, and more behind them, while nothing is read at first", MIRROR, levels=(1, 0))
def large_requests_do_not_deadlock(trial: Trial) -> None:
    texts = [letter * LARGE for letter in ("abc" if _pipelines(trial) else "a")]
    with trial.worker() as worker:
        try:
            worker.send(trial.mirror.request(1, texts[0]))
            for number, text in enumerate(texts[1:], start=2):
                worker.send(trial.mirror.request(number, text), reading=True)
            for text in texts:
                echoed = trial.mirror.value(worker.receive().get("result"))
                if echoed != text:
                    raise _changed("16 MiB of text changed on their way", text, echoed)
        except SilenceFinding as finding:
            finding.what = f"a deadlock with 16 MiB in each direction: {finding.what}"
            raise


def _pipelines(trial: Trial) -> bool:
    return trial.level == 1 and "capability pipeline" in trial.survey.offers


def _changed(what: str, expected: str, received: object) -> Finding:
    return Finding(
        what,
        expected=f"{len(expected)} characters: {expected[:20]}...",
        received=f"{len(received)} characters: {show_json(received)}"
        if isinstance(received, str)
        else show_json(received),
    )
