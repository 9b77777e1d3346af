"""What a worker may send hurts nobody but its own call: no memory without end, no forged log, no code run."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import attrs
import pytest
from integration.workers import pools

from snakepit import (
    CommandAdapter,
    CommandError,
    CommandTimeout,
    PoolBroken,
    ProtocolError,
    SnakepitExecutor,
    WorkerDied,
)
from snakepit._wire.messages import MessageDecoder

from leaks import wait_until

HOSTILE = str(Path(__file__).with_name("hostile.py"))
MIB = 1 << 20
SMALL = attrs.evolve(pools.QUICK, max_frame_bytes=MIB, max_message_bytes=2 * MIB)


def hostile_pool(max_workers: int = 1, start: str | None = None, **options: Any) -> SnakepitExecutor:
    """Return a pool of hostile workers; ``start`` is the JSON text with which they answer the handshake."""
    env = {} if start is None else {"HOSTILE_START": start}
    options.setdefault("config", SMALL)
    adapter = CommandAdapter([sys.executable, "-I", "-S", HOSTILE], level=1, env=env)
    return SnakepitExecutor(adapter, max_workers, **options)


def frame(payload: bytes) -> bytes:
    """Return one frame of a payload whose ``@ID@`` will take one digit."""
    return (len(payload) - 3 * payload.count(b"@ID@")).to_bytes(4, "big") + payload


def attack(data: bytes, *, forever: bool = False) -> dict[str, Any]:
    """Return the args of the command that writes ``data``."""
    return {"write": base64.b64encode(data).decode(), "forever": forever}


def serves_again(ex: SnakepitExecutor) -> bool:
    """Say whether the next call reaches a worker."""
    return ex.execute("do", {}, timeout=pools.LIMIT_S) > 1


REPLY = frame(b'{"id":@ID@,"success":true,"result":1}')

ENDLESS = {  # name: (bytes, a part of the error)
    "a frame longer than allowed": (b"\x7f\xff\xff\xff", "a frame of 2147483647 bytes"),
    "an attachment longer than announced": (
        frame(b'{"id":@ID@,"success":true,"result":null,"attachments":[{"path":"/result","kind":"bytes","len":5}]}')
        + frame(b"123456"),
        "longer than the 5 bytes announced",
    ),
    "attachments that never come to an end": (
        frame(b'{"id":@ID@,"success":true,"result":null,"attachments":[{"path":"/result","len":9999999999999}]}'),
        "max_message_bytes is 2097152",
    ),
    "a great many attachments": (
        frame(
            b'{"id":@ID@,"success":true,"result":null,"attachments":['
            + b",".join([b'{"path":"/result","len":1048570}'] * 3)
            + b"]}"
        ),
        "max_message_bytes is 2097152",
    ),
}


@pytest.mark.parametrize(("data", "text"), ENDLESS.values(), ids=ENDLESS)
def test_what_has_no_end_is_cut_off(data: bytes, text: str) -> None:
    """A worker that announces more than it may send fails with what it wrote and is replaced."""
    with hostile_pool() as ex:
        error = ex.submit("do", attack(data)).exception(pools.LIMIT_S)
        again = serves_again(ex)
        restarts = ex.stats().restarts

    assert isinstance(error, ProtocolError)
    assert text in str(error)
    assert again
    assert 1 == restarts


def test_a_flood_of_replies_ends_its_worker() -> None:
    """A worker that answers one request for ever is replaced; the first answer counts."""
    with hostile_pool() as ex:
        result = ex.submit("do", attack(REPLY, forever=True)).result(pools.LIMIT_S)
        wait_until(lambda: ex.stats().restarts == 1, pools.LIMIT_S)
        again = serves_again(ex)

    assert 1 == result
    assert again


@pytest.mark.parametrize(
    "payload", [b'{"type":"log","level":"info","message":"x"}', b'{"type":"weather","sunny":true}'], ids=["log", "?"]
)
def test_a_flood_of_notices_stops_nobody_else(payload: bytes) -> None:
    """A worker that floods the host with notices is ended by its time-out while another one serves."""
    with hostile_pool(2) as ex:
        flood = ex.submit("do", attack(frame(payload) * 500, forever=True), timeout=1)
        others = 0
        while not flood.done():
            others += ex.execute("do", {}) > 1
        error = flood.exception(pools.LIMIT_S)
        again = serves_again(ex)

    assert isinstance(error, CommandTimeout)
    assert others > 0
    assert again


DANGEROUS = "\x1b[2J\x1b]0;owned\x07\r\nERROR root: forged\u2028\x9b31m"


def test_no_control_character_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Messages, fields and odd types of log notices are one line each, without control characters, and bounded."""
    notices = [
        {"type": "log", "level": "error", "message": DANGEROUS},
        {"type": "log", "level": DANGEROUS, "message": "level"},
        {"type": "log", "level": ["info"], "message": [DANGEROUS]},
        {"type": "log", "message": "fields", "fields": DANGEROUS},
        {"type": "log", "message": "fields", "fields": {DANGEROUS: DANGEROUS}},
        {"type": "log", "message": "long " * 10_000, "fields": ["long " * 1000] * 100},
    ]
    frames = b"".join(frame(json.dumps(notice).encode()) for notice in notices)
    with caplog.at_level(logging.INFO, logger="snakepit.worker"), hostile_pool() as ex:
        ex.execute("do", attack(frames + REPLY))

    lines = [record.getMessage() for record in caplog.records if record.name == "snakepit.worker"]
    assert len(notices) == len(lines)
    assert [] == [line for line in lines if not line.isprintable()]
    assert max(map(len, lines)) < 11_000


def test_no_control_character_in_the_text_of_an_error() -> None:
    """The text of a worker's error can be printed on a terminal; its attributes have the worker's own words."""
    error = {"code": "handler_error", "type": "E\x1b[31m", "message": DANGEROUS, "traceback": DANGEROUS}
    reply = frame(b'{"id":@ID@,"success":false,"error":%s}' % json.dumps(error).encode())
    with hostile_pool() as ex:
        caught = ex.submit("do", attack(reply)).exception(pools.LIMIT_S)

    assert isinstance(caught, CommandError)
    assert DANGEROUS == caught.message
    assert set() == {char for char in str(caught) + str(caught.__cause__) if char < " " and char not in "\t\n"}
    assert "\x9b" not in str(caught)


CODES = ("encode_error", "too_large", "deadline", "session_lost", "cancelled", "unknown_command", "bad_args")


@pytest.mark.parametrize("code", CODES)
def test_no_control_character_in_the_text_of_errors_with_a_code(code: str) -> None:
    """The same for every error that is recognised by its code."""
    reply = frame(
        b'{"id":@ID@,"success":false,"error":%s}' % json.dumps({"code": code, "message": DANGEROUS}).encode()
    )
    with hostile_pool() as ex:
        future = ex.submit("do", attack(reply))
        with pytest.raises(BaseException, match="forged") as caught:
            future.result(pools.LIMIT_S)
        again = serves_again(ex)

    assert "\x1b" not in str(caught.value)
    assert again


ODD_IDS = ('"1"', "1.0", "true", "null", "[1]", "{}", "-1", "1e3", "9" * 20, "9" * 3000, '"' + "x" * 9999 + '"')


@pytest.mark.parametrize("text", ODD_IDS, ids=lambda text: text[:12])
def test_odd_ids(text: str) -> None:
    """An id that was never issued fails the call with a bounded text, whatever its type."""
    with hostile_pool() as ex:
        error = ex.submit("do", attack(frame(b'{"id":%s,"success":true}' % text.encode()))).exception(pools.LIMIT_S)
        again = serves_again(ex)

    assert isinstance(error, ProtocolError)
    assert len(str(error)) < 5000
    assert again


PLACES = {  # where something nested as deep as the decoder just bears is looked at by the host
    "no id": b'{"x":%s}',
    "id": b'{"id":%s}',
    "error": b'{"id":@ID@,"success":false,"error":%s}',
    "message of an error": b'{"id":@ID@,"success":false,"error":{"message":%s}}',
    "code of an error": b'{"id":@ID@,"success":false,"error":{"code":%s}}',
    "success": b'{"id":@ID@,"success":%s}',
    "log": b'{"type":"log","message":%s}',
    "fields of a log": b'{"type":"log","message":"x","fields":%s}',
    "type": b'{"type":%s}',
    "attachments": b'{"id":@ID@,"success":true,"attachments":%s}',
    "result": b'{"id":@ID@,"success":true,"result":%s}',
}


@pytest.mark.parametrize("place", PLACES)
def test_nesting_just_within_the_decoders_limit(place: str) -> None:
    """Whatever depth the decoder still bears, and wherever it is, the pool's thread bears it too."""
    limit = sys.getrecursionlimit()
    with hostile_pool() as ex:
        for depth in range(limit - 60, limit, 3):
            bomb = PLACES[place] % (b"[" * depth + b"]" * depth)
            last_words = b"" if b"@ID@" in bomb else REPLY
            ex.submit("do", attack(frame(bomb) + last_words)).exception(pools.LIMIT_S)
        again = serves_again(ex)

    assert again


def test_a_pickle_is_read_from_callable_workers_only(tmp_path: Path) -> None:
    """A worker of a command adapter that sends a pickle breaks the protocol; nothing of it is loaded."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    with hostile_pool() as ex:
        for mark in (b"", b"\x81", b"\x82"):
            error = ex.submit("do", attack(frame(mark + pickle.dumps(Bomb())))).exception(pools.LIMIT_S)
            assert isinstance(error, ProtocolError)
        again = serves_again(ex)

    assert [] == list(tmp_path.iterdir())
    assert again


def test_a_worker_that_fills_the_pipe_of_claim_tokens() -> None:
    """A pipe of tokens that takes no more costs that worker its place and at most the call that it had."""
    with hostile_pool() as ex:
        ex.execute("do", {"fill_claims": True})
        errors = [future.exception(pools.LIMIT_S) for future in [ex.submit("do", {}) for _ in range(300)]]
        restarts = ex.stats().restarts

    assert 300 == len(errors)
    assert {type(error) for error in errors} <= {WorkerDied, type(None)}
    assert sum(error is not None for error in errors) <= 1
    assert 1 == restarts


STARTS: dict[str, object] = {
    "a text": "ok",
    "a number": 7,
    "null": None,
    "no status": {"protocol": {"version": 1}},
    "status no text": {"status": ["ok"]},
    "protocol a text": {"status": "ok", "protocol": "1"},
    "version 2": {"status": "ok", "protocol": {"version": 2}},
    "version a text": {"status": "ok", "protocol": {"version": "1"}},
    "capabilities an object": {"status": "ok", "protocol": {"version": 1, "capabilities": {"errors": True}}},
    "capabilities a text": {"status": "ok", "protocol": {"version": 1, "capabilities": "errors"}},
}


@pytest.mark.parametrize("result", STARTS.values(), ids=STARTS)
def test_odd_handshakes(result: object) -> None:
    """A handshake that makes no sense breaks the pool within its budget, with a bounded text."""
    config = attrs.evolve(SMALL, restart_budget=1)
    with hostile_pool(start=json.dumps(result), config=config) as ex:
        error = ex.submit("do", {}).exception(pools.LIMIT_S)

    assert isinstance(error, PoolBroken)
    assert len(str(error)) < 3000


def test_announced_capabilities_are_only_those_offered() -> None:
    """Names that were not offered, of whatever type, are ignored."""
    capabilities = ["errors", "pickle", "root", 7, None, ["claim"], {"pipeline": 1}, "x" * 10_000]
    start = {"status": "ok", "protocol": {"version": 1, "capabilities": capabilities}}
    with hostile_pool(start=json.dumps(start)) as ex:
        assert serves_again(ex)


EXPANSIONS = {
    "lists": b'{"id":0,"success":true,"result":[%s]}' % b",".join([b"[]"] * 340_000),
    "objects": b'{"id":0,"success":true,"result":[%s]}' % b",".join([b'{"":0}'] * 145_000),
    "objects in objects": b'{"id":0,"result":[%s]}' % b",".join([b'{"":' * 200 + b"0" + b"}" * 200] * 1040),
    "keys": b'{"id":0,"success":true,"result":{%s}}' % b",".join(b'"%x":0' % number for number in range(110_000)),
    "numbers": b'{"id":0,"success":true,"result":[%s]}' % b",".join([b"1.5"] * 250_000),
    "attachments": b'{"id":0,"result":0,"attachments":[%s]}' % b",".join([b'{"path":"/result","len":0}'] * 38_000),
}
MOST_PER_BYTE = 50
"""Bytes of memory that a byte of JSON may become while it is decoded; docs/security.md tells the figure."""


@pytest.mark.parametrize("text", EXPANSIONS.values(), ids=EXPANSIONS)
def test_memory_of_a_decoded_frame_is_a_bounded_multiple(text: bytes) -> None:
    """The worst JSON takes a bounded multiple of its own size, so `max_frame_bytes` bounds the memory."""
    assert len(text) <= MIB
    decoder = MessageDecoder(max_frame_bytes=MIB, max_message_bytes=2 * MIB)
    data = len(text).to_bytes(4, "big") + text

    tracemalloc.start()
    try:
        messages = decoder.feed(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    # What is refused, as an attachment in a place that is taken, was walked and kept as long as the rest.
    assert [1, 0] == sorted((len(messages), int(decoder.error is not None)), reverse=True)
    assert peak < MOST_PER_BYTE * len(text)


@pytest.mark.parametrize("part_bytes", [1, 7])
def test_memory_of_a_pickle_in_tiny_parts_is_bounded(part_bytes: int) -> None:
    """A pickle in parts of a byte takes no more memory than its bytes, in however many frames it comes."""
    limit = MIB // 16
    decoder = MessageDecoder(max_frame_bytes=limit, max_message_bytes=limit, allow_pickle=True)
    part = b"\0\0\0\x09\x81" + part_bytes.to_bytes(8, "big") + part_bytes.to_bytes(4, "big") + b"\x80" * part_bytes
    flood = part * (2 * limit // part_bytes // 16)

    tracemalloc.start()
    try:
        for _ in range(16):
            decoder.feed(flood)
        kept = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()

    assert isinstance(decoder.error, ProtocolError)
    assert kept < 3 * limit


def test_a_part_of_a_pickle_without_content_is_refused() -> None:
    """Parts that carry nothing would never come to an end."""
    decoder = MessageDecoder(max_frame_bytes=MIB, max_message_bytes=MIB, allow_pickle=True)

    decoder.feed(b"\0\0\0\x09\x81" + bytes(8))

    assert isinstance(decoder.error, ProtocolError)
