"""Requests -> bytes: what the host writes to a worker, as buffers in the order of bridges/PROTOCOL.md.

Pure; bodies are encoded on the caller's thread, heads on the thread that writes to the pipe.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from ..errors import EncodeError
from .blocks import LARGE_BYTES
from .frames import Buffer, cut, frame
from .messages import PICKLE_END, PICKLE_PART
from .values import JsonValue, encode_value

__all__ = (
    "BATCH_ENVELOPE_BYTES",
    "MAX_BATCH_BYTES",
    "ROOM_BYTES",
    "BatchContent",
    "CommandContent",
    "encode_batch",
    "encode_command",
    "encode_message",
    "encode_object",
    "encode_pickle",
    "encode_plain",
    "joined",
)

ROOM_BYTES = 256
"""More than what joins the frame of a command when it is sent: the id, the deadline and the time."""

MAX_BATCH_BYTES = 128 << 10
"""Longest frame of several items.  Arbitrary: far above what their time allows, and no burden on a pipe's reader."""

BATCH_ENVELOPE_BYTES = 64
"""More than what is in such a frame besides the command, the items and a comma for each of them."""

_HEADER = struct.Struct(">I")
_PART = struct.Struct(">BQ")


class CommandContent:
    """An encoded command without the parts that are known only when it is sent.

    Args:
        body: JSON members ``"command":...,"args":...`` and, with bytes, ``"attachments":...``.
        session: The JSON member of the session with its leading comma, or nothing.
        raw: The bytes of the attachments, in order.
        text: The value of ``"args"`` where it is long; then ``body`` ends before it.

    Attributes:
        size_bytes: Of all of it but the session.
        is_plain: It is one short frame.
    """

    __slots__ = ("body", "is_plain", "raw", "session", "size_bytes", "text")

    def __init__(self, body: bytes, session: bytes = b"", raw: tuple[bytes, ...] = (), text: bytes = b"") -> None:
        self.body = body
        self.session = session
        self.raw = raw
        self.text = text
        self.is_plain = not (raw or text)
        self.size_bytes = len(body) if self.is_plain else len(body) + len(text) + sum(map(len, raw))


class BatchContent:
    """Encoded items of one command.

    Args:
        head: The JSON member of the command, with its trailing comma.
        texts: The items, at least one.
    """

    __slots__ = ("head", "texts")

    def __init__(self, head: bytes, texts: list[bytes]) -> None:
        self.head = head
        self.texts = texts


_encode_json = msgspec.json.encode


def encode_command(
    command: str, args: JsonValue, *, session_id: str | None, max_frame_bytes: int, max_message_bytes: int
) -> CommandContent:
    """Encode a request in the caller's thread.

    Args:
        command: Name, text without lone surrogates.
        args: JSON value; bytes in it become attachments.
        session_id: Session, or None.
        max_frame_bytes: Limit of the JSON text.
        max_message_bytes: Limit of text and attachments together.

    Raises:
        EncodeError: The args cannot be sent, with the path to the value; raised here.
    """
    text, attachments = encode_value(args, "/args")
    long = len(text) >= LARGE_BYTES
    body = b'"command":%s,"args":%s' % (_encode_json(command), b"" if long else text)
    if attachments:
        listed = [{"path": path, "kind": "bytes", "len": len(data)} for path, data in attachments]
        body = b'"attachments":%s,%s' % (_encode_json(listed), body)
    session = b"" if session_id is None else b',"session":%s' % _encode_json(session_id)
    if len(body) + long * len(text) + len(session) + ROOM_BYTES > max_frame_bytes:
        raise EncodeError(
            f"/args: {len(text)} bytes of JSON for {command!r} do not fit a frame"
            f" (max_frame_bytes is {max_frame_bytes}); send large data as bytes"
        )
    content = CommandContent(body, session, tuple(data for _, data in attachments), text if long else b"")
    if attachments and content.size_bytes > max_message_bytes:
        raise EncodeError(
            f"/args: {content.size_bytes} bytes for {command!r} are above max_message_bytes ({max_message_bytes})"
        )
    return content


def encode_message(
    content: CommandContent,
    request_id: int,
    *,
    session: bool = False,
    timestamp: bool = False,
    deadline_ms: int | None = None,
    claim: bool = False,
    max_frame_bytes: int = 64 << 20,
) -> list[Buffer]:
    """Complete an encoded command to frames, as buffers to write in order.

    Args:
        content: From ``encode_command``.
        request_id: The frame's id.
        session: Say the session (capability ``session``).
        timestamp: Say the time (level 0).
        deadline_ms: Remaining budget (capability ``deadline``), or None.
        claim: The request is sent ahead and needs a token (capability ``claim``).
        max_frame_bytes: The worker's limit, and where attachments are cut.

    Raises:
        EncodeError: The text is longer than what the worker takes, which is less than the host would; raised here.
    """
    tail = content.session if session else b""
    if deadline_ms is not None:
        tail += b',"deadline_ms":%d' % deadline_ms
    if claim:
        tail += b',"claim":true'
    if timestamp:
        tail += b',"timestamp":"%s"' % datetime.now(UTC).isoformat().encode()
    head = b'{"id":%d,' % request_id
    length = len(head) + len(content.body) + len(content.text) + len(tail) + 1
    if length > max_frame_bytes:
        raise EncodeError(
            f"/args: the request has {length} bytes of JSON; the limit is {max_frame_bytes} (the worker's max_frame);"
            " send large data as bytes"
        )
    buffers: list[Buffer]
    if content.text:
        buffers = [b"".join((_HEADER.pack(length), head, content.body)), content.text, tail + b"}"]
    else:
        buffers = [b"".join((_HEADER.pack(length), head, content.body, tail, b"}"))]
    for data in content.raw:
        buffers += cut((data,), len(data), max_frame_bytes)
    return buffers


def encode_plain(content: CommandContent, request_id: int, session: bool, claim: bool) -> Buffer:
    """Return the frame of a plain command, at level 1 and without a deadline: as ``encode_message``, in less time."""
    tail = b',"claim":true}' if claim else b"}"
    if session:
        payload = b'{"id":%d,%b%b%b' % (request_id, content.body, content.session, tail)
    else:
        payload = b'{"id":%d,%b%b' % (request_id, content.body, tail)
    return _HEADER.pack(len(payload)) + payload


def encode_batch(content: BatchContent, request_id: int) -> Buffer:
    """Return the frame of a batch (capability ``batch``)."""
    payload = b'{"id":%d,%b"batch":[%b]}' % (request_id, content.head, b",".join(content.texts))
    return _HEADER.pack(len(payload)) + payload


def encode_pickle(parts: Sequence[Buffer], max_frame_bytes: int, out_of_band: Sequence[Buffer] = ()) -> list[Buffer]:
    """Return the frames of one message of pickles, as buffers to write in order; large parts are not copied.

    Args:
        parts: The pickles, one part after the other.
        max_frame_bytes: Where they are cut.
        out_of_band: The buffers of the last pickle that are not in it.
    """
    size = sum(map(len, parts))
    if not out_of_band and size <= max_frame_bytes:
        start = _HEADER.pack(size)
        return [b"".join((start, *parts))] if size < LARGE_BYTES else [start, *parts]
    buffers: list[Buffer] = []
    left = len(out_of_band)
    for content in (parts, *((buffer,) for buffer in out_of_band)):
        size = sum(map(len, content))
        buffers.append(frame(_PART.pack(PICKLE_PART if left else PICKLE_END, size)))
        buffers += cut(content, size, max_frame_bytes)
        left -= 1
    return buffers


def encode_object(message: dict[str, Any]) -> bytes:
    """Return one frame that carries a JSON object of the host's own making."""
    return frame(_encode_json(message))


def joined(buffers: Iterable[Buffer], small_bytes: int = LARGE_BYTES) -> list[Buffer]:
    """Join neighbours so that one system call writes many small buffers; large ones are not copied."""
    result: list[Buffer] = []
    run: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) >= small_bytes:
            if run:
                result.append(b"".join(run))
                run = []
            result.append(buffer)
        else:
            run.append(buffer)
    if run:
        result.append(run[0] if len(run) == 1 else b"".join(run))
    return result
