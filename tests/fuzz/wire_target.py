"""What every stream of bytes must do to the codec; the target of the coverage-guided fuzzer and of its fallback.

An input's first byte says how the rest is to be understood, the second seeds the places of the cuts:

    bits 0-1  the limits: LIMITS[n]          bit 2  pickles are allowed
    bits 3-4  0: the stream as it is         1: records (2 bytes length, payload), framed here
              2: JSON texts split at 0xff, framed here      3: a pickle with buffers, cut by ``encode_pickle``
"""

from __future__ import annotations

import random
import tracemalloc
import zlib
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from fuzz.reference import decode_stream

from snakepit._wire.frames import frame
from snakepit._wire.messages import (
    MessageDecoder,
    encode_command,
    encode_message,
    encode_object,
    encode_pickle,
    joined,
)
from snakepit.errors import EncodeError, ProtocolError

__all__ = ("LIMITS", "check", "stream_of")

LIMITS = ((1 << 16, 1 << 20), (64, 100), (256, 200), (1024, 1 << 16))
"""(max_frame_bytes, max_message_bytes), from roomy to so small that short inputs meet them."""

BYTES_PER_BYTE, CONSTANT_BYTES = 100, 1 << 17
"""The memory a stream may take while it is decoded: an empty list is two characters of text and 56 bytes here."""

HUGE = {"max_frame_bytes": 1 << 24, "max_message_bytes": 1 << 26}


def stream_of(kind: int, rest: bytes) -> bytes:
    """Return the stream that an input stands for."""
    if kind == 0:
        return rest
    if kind == 1:
        return b"".join(map(frame, _records(rest)))
    return b"".join(frame(text) for text in rest.split(b"\xff") if text)


def _records(data: bytes) -> Iterator[bytes]:
    place = 0
    while place + 2 < len(data):
        length = int.from_bytes(data[place : place + 2], "big") % 2048
        if payload := data[place + 2 : place + 2 + length]:
            yield payload
        place += 2 + length


def plain(messages: list[Any]) -> list[Any]:
    """Return messages with the parts of pickles as bytes."""
    return [[bytes(part) for part in message] if isinstance(message, list) else message for message in messages]


def receive(decoder: MessageDecoder, data: bytes) -> list[Any]:
    """Let a decoder have bytes the way a channel does: to their place where it has one for them."""
    messages = []
    while data:
        room = decoder.room()
        if room is None:
            messages += decoder.feed(data)
            break
        count = min(len(room), len(data))
        room[:count] = data[:count]
        data = data[count:]
        messages += decoder.wrote(count)
    return plain(messages)


def check(data: bytes) -> None:
    """Raise AssertionError, or whatever the codec lets through, unless it is right about this input."""
    if len(data) < 2:
        return
    kind, rest = data[0] >> 3 & 3, data[2:]
    max_frame_bytes, max_message_bytes = LIMITS[data[0] & 3]
    options = {
        "max_frame_bytes": max_frame_bytes,
        "max_message_bytes": max_message_bytes,
        "allow_pickle": bool(data[0] & 4),
    }
    source = random.Random(zlib.crc32(data))
    if kind == 3:
        _check_pickle(rest, max_frame_bytes, source)
        return

    stream = stream_of(kind, rest)
    whole = MessageDecoder(**options)
    messages = plain(whole.feed(stream))
    error, end = whole.error, whole.finish()
    assert error is None or type(error) is ProtocolError
    assert end is None or type(end) is ProtocolError
    assert len(str(error)) < 1000, "a message as long as what it complains about"

    _check_splits(stream, options, source, messages, error, end)
    _check_reference(stream, options, messages, error, end)
    if data[1] % 8 == 0:
        _check_memory(stream, options)
    for message in messages:
        if isinstance(message, dict):
            _check_round_trip(message)


def _check_splits(
    stream: bytes, options: dict[str, Any], source: random.Random, messages: list[Any], error: Any, end: Any
) -> None:
    """Any split of the bytes gives the same messages and the same verdict."""
    cuts = sorted(source.randint(0, len(stream)) for _ in range(source.randint(1, 8)))
    if len(stream) <= 64:
        cuts = list(range(len(stream)))
    pieces = MessageDecoder(**options)
    again = []
    for start, stop in pairwise([0, *cuts, len(stream)]):
        again += receive(pieces, stream[start:stop])
    assert repr(messages) == repr(again), "another split, other messages"
    assert (error is None) == (pieces.error is None), "another split, another verdict"
    assert (end is None) == (pieces.finish() is None), "another split, another end"
    if error is not None:
        assert [] == pieces.feed(encode_object({"id": 1})), "messages after an error"


def _check_reference(stream: bytes, options: dict[str, Any], messages: list[Any], error: Any, end: Any) -> None:
    """The codec accepts and refuses what the slow decoder does, and understands the same."""
    expected, refused, complete = decode_stream(stream, **options)
    if refused is not None and refused.unsure:
        assert repr(expected) == repr(messages[: len(expected)])
        return
    assert repr(expected) == repr(messages), f"expected {expected!r}, not {messages!r}"
    assert (refused is None) == (error is None), f"reference: {refused}, codec: {error}"
    assert complete == (end is None), f"reference: complete {complete}, codec: {end}"


def _check_memory(stream: bytes, options: dict[str, Any]) -> None:
    """Decoding takes memory in proportion to the bytes that came, whatever they announce."""
    tracemalloc.start()
    try:
        decoder = MessageDecoder(**options)
        messages = decoder.feed(stream)
        _, peak = tracemalloc.get_traced_memory()
        del messages
    finally:
        tracemalloc.stop()
    assert peak <= BYTES_PER_BYTE * len(stream) + CONSTANT_BYTES, f"{peak} bytes for a stream of {len(stream)}"


def _check_round_trip(message: dict[str, Any]) -> None:
    """What was accepted can be sent, and arrives as it was."""
    try:
        content = encode_command("c", message, session_id="s\u00e9", **HUGE)
    except EncodeError as error:
        # Incoming text may nest deeper than what the host sends.
        assert "nested deeper" in str(error), error
        return
    buffers = joined(encode_message(content, 7, session=True, max_frame_bytes=1 << 10))
    decoder = MessageDecoder(**HUGE)
    (back,) = decoder.feed(b"".join(buffers))
    back.pop("attachments", None)
    assert repr({"id": 7, "command": "c", "args": message, "session": "s\u00e9"}) == repr(back)
    assert decoder.finish() is None


def _check_pickle(rest: bytes, max_frame_bytes: int, source: random.Random) -> None:
    """Pickles and buffers of any length arrive whole, in frames within the limit, however the stream is split."""
    whole = b"\x80" + rest
    cut = source.randint(1, len(whole))
    pieces = [part for part in (whole[:cut], whole[cut:]) if part]
    buffers = [rest for _ in range(source.randint(0, 2)) if rest]
    size = len(whole) + sum(max(len(buffer), 1024) for buffer in buffers)
    stream = b"".join(encode_pickle(pieces, max_frame_bytes, buffers))
    place = frames = 0
    while place < len(stream):
        length = int.from_bytes(stream[place : place + 4], "big")
        assert 0 < length <= max_frame_bytes, "a frame beyond the limit"
        place += 4 + length
        frames += 1
    assert place == len(stream)

    limits = {"max_frame_bytes": max_frame_bytes, "allow_pickle": True}
    decoder = MessageDecoder(max_message_bytes=size, **limits)  # type: ignore[arg-type]
    after = encode_object({"id": 1})
    at = source.randint(0, len(stream))
    got = receive(decoder, stream[:at]) + receive(decoder, stream[at:] + after)
    assert [[whole, *buffers], {"id": 1}] == got
    assert decoder.finish() is None
    short = MessageDecoder(max_message_bytes=size - 1, **limits)  # type: ignore[arg-type]
    assert frames == 1 or (not short.feed(stream) and short.error is not None), "longer than allowed"
