"""Bytes <-> messages: the frame protocol of bridges/PROTOCOL.md, incremental and without I/O.

Pure; used on the manager's thread (decoding, heads) and on the caller's (bodies).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import msgspec

from ..errors import EncodeError, ProtocolError
from .values import JsonValue, decode_json, encode_value, insert_attachments

__all__ = (
    "PICKLE",
    "CommandContent",
    "FrameDecoder",
    "MessageDecoder",
    "encode_command",
    "encode_message",
    "encode_pickle",
    "frame",
    "show_bytes",
)

PICKLE = 0x80
"""First byte of a payload that is a pickle."""
_PICKLE_PART = 0x81
_PICKLE_END = 0x82
"""First bytes of the payloads that carry a pickle too long for one frame: all but the last, and the last."""

_HEADER = struct.Struct(">I")
_SHOWN_BYTES = 80


def show_bytes(data: bytes | bytearray | memoryview) -> str:
    """Return the first 80 bytes, escaped, for a message."""
    head = bytes(data[:_SHOWN_BYTES])
    return repr(head)[1:] + ("..." if len(data) > _SHOWN_BYTES else "")


def frame(payload: bytes) -> bytes:
    """Return one frame: 4 bytes big-endian length, then the payload."""
    return _HEADER.pack(len(payload)) + payload


class FrameDecoder:
    """Cuts a byte stream into payloads, however it is split.

    Args:
        limit_bytes: Longest payload; a longer length is an error as soon as its header is there.

    Attributes:
        error: A length of 0 or above the limit, from where on the stream is useless, or None.
    """

    # INVARIANT: `_buffer` starts at a frame boundary.
    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()
        self.error: ProtocolError | None = None

    @property
    def inside_frame(self) -> bool:
        """True when the stream ended in the middle of a frame if it ended now."""
        return bool(self._buffer)

    def pending(self) -> bytes:
        """Return what has been received of an unfinished frame, header included."""
        return bytes(self._buffer[: _SHOWN_BYTES + 1])

    def feed(self, data: bytes) -> list[bytes]:
        """Take received bytes and return the payloads that are complete; sets ``error`` after the last good one."""
        buffer: bytes | bytearray
        payloads: list[bytes] = []
        if self.error is not None:
            return payloads
        if self._buffer:
            self._buffer += data
            buffer = self._buffer
        else:
            buffer = data
        start, end = 0, len(buffer)
        while end - start >= 4:
            (length,) = _HEADER.unpack_from(buffer, start)
            if not 0 < length <= self._limit_bytes:
                seen = show_bytes(buffer[start : start + _SHOWN_BYTES + 1])
                self.error = ProtocolError(
                    f"a frame of {length} bytes (allowed: 1 to {self._limit_bytes}); the stream held: {seen}"
                )
                self._buffer = bytearray()
                return payloads
            if end - start - 4 < length:
                break
            payloads.append(bytes(memoryview(buffer)[start + 4 : start + 4 + length]))
            start += 4 + length
        if buffer is self._buffer:
            del self._buffer[:start]
        else:
            self._buffer += buffer[start:]
        return payloads


class MessageDecoder:
    """Turns a worker's byte stream into messages: JSON objects with their attachments, and pickles.

    Args:
        max_frame_bytes: Longest frame.
        max_message_bytes: Longest message with its attachments.
        allow_pickle: True for workers of the callable adapter only.

    Attributes:
        error: What ended the decoding, or None; messages before it were returned by ``feed``.
    """

    def __init__(self, *, max_frame_bytes: int, max_message_bytes: int, allow_pickle: bool = False) -> None:
        self._frames = FrameDecoder(max_frame_bytes)
        self._max_message_bytes = max_message_bytes
        self._allow_pickle = allow_pickle
        self._message: dict[str, Any] | None = None
        self._raw: list[bytearray] = []
        self._lengths: list[int] = []
        self._place = 0
        # INVARIANT: what has come of a pickle in several frames; JSON frames may come in between.
        self._parts = bytearray()
        self.error: Exception | None = None

    def feed(self, data: bytes) -> list[dict[str, Any] | bytes]:
        """Take received bytes and return the messages that are complete: objects, or pickles as bytes."""
        messages: list[dict[str, Any] | bytes] = []
        if self.error is not None:
            return messages
        try:
            for payload in self._frames.feed(data):
                message = self._take(payload)
                if message is not None:
                    messages.append(message)
        except Exception as error:
            # Mostly a ProtocolError; a MemoryError, too, must not cost the messages before it.
            self.error = error
        else:
            self.error = self._frames.error
        return messages

    def finish(self) -> Exception | None:
        """Return the error of a stream that ends here, or None when it ends between two messages."""
        if self.error is None and (self._frames.inside_frame or self._message is not None or self._parts):
            seen = show_bytes(self._frames.pending())
            self.error = ProtocolError(f"the stream ended inside a frame or message; it held: {seen}")
        return self.error

    def _take(self, payload: bytes) -> dict[str, Any] | bytes | None:
        if self._message is not None:
            return self._take_raw(payload)
        first = payload[0]
        if first == PICKLE and self._allow_pickle:
            return payload
        if first in (_PICKLE_PART, _PICKLE_END) and self._allow_pickle:
            return self._take_part(payload)
        if first != 0x7B:
            raise ProtocolError(f"a frame that is no JSON object: {show_bytes(payload)}")
        try:
            message: dict[str, Any] = decode_json(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise ProtocolError(f"a frame that is no strict JSON ({error}): {show_bytes(payload)}") from None
        if "attachments" not in message:
            return message
        return self._expect_raw(message, payload)

    def _take_part(self, payload: bytes) -> bytes | None:
        if len(payload) == 1:
            raise ProtocolError("a part of a pickle without content")
        self._parts += memoryview(payload)[1:]
        if len(self._parts) > self._max_message_bytes:
            seen = len(self._parts)
            self._parts = bytearray()
            raise ProtocolError(
                f"a pickle of {seen} bytes and more (max_message_bytes is {self._max_message_bytes})"
            )
        if payload[0] == _PICKLE_PART:
            return None
        whole = bytes(self._parts)
        self._parts = bytearray()
        if whole[:1] != bytes((PICKLE,)):
            raise ProtocolError(f"frames that are no pickle together: {show_bytes(whole)}")
        return whole

    def _expect_raw(self, message: dict[str, Any], payload: bytes) -> dict[str, Any] | None:
        try:
            if type(message["attachments"]) is not list:
                raise TypeError("attachments")
            lengths = [entry["len"] for entry in message["attachments"]]
            if any(type(length) is not int or length < 0 for length in lengths):
                raise ValueError("len")
            if any(type(entry["path"]) is not str for entry in message["attachments"]):
                raise TypeError("path")
        except (TypeError, KeyError, ValueError):
            raise ProtocolError(f"a message with bad attachments: {show_bytes(payload)}") from None
        total = len(payload) + sum(lengths)
        if total > self._max_message_bytes:
            raise ProtocolError(
                f"a message of {total} bytes (max_message_bytes is {self._max_message_bytes})"
            )
        self._message = message
        self._raw, self._lengths, self._place = [bytearray() for _ in lengths], lengths, 0
        return self._complete()

    def _take_raw(self, payload: bytes) -> dict[str, Any] | None:
        place = self._place
        if len(self._raw[place]) + len(payload) > self._lengths[place]:
            raise ProtocolError(
                f"an attachment longer than the {self._lengths[place]} bytes announced for it"
            )
        self._raw[place] += payload
        return self._complete()

    def _complete(self) -> dict[str, Any] | None:
        while self._place < len(self._raw) and len(self._raw[self._place]) == self._lengths[self._place]:
            self._place += 1
        if self._place < len(self._raw):
            return None
        message, self._message = self._message, None
        assert message is not None
        try:
            insert_attachments(message, [bytes(raw) for raw in self._raw])
        except (LookupError, TypeError, ValueError) as error:
            raise ProtocolError(f"an attachment without a place in its message: {error}") from None
        self._raw = []
        return message


@attrs.frozen
class CommandContent:
    """An encoded command without the parts that are known only when it is sent.

    Attributes:
        body: JSON members ``"command":...,"args":...`` and, with bytes, ``"attachments":...``.
        session: The JSON member of the session with its leading comma, or nothing.
        raw: The bytes of the attachments, in order.
    """

    body: bytes
    session: bytes = b""
    raw: tuple[bytes, ...] = ()

    @property
    def size_bytes(self) -> int:
        return len(self.body) + sum(map(len, self.raw))


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
    body = b'"command":%s,"args":%s' % (_encode_json(command), text)
    if attachments:
        listed = [{"path": path, "kind": "bytes", "len": len(data)} for path, data in attachments]
        body += b',"attachments":%s' % _encode_json(listed)
    session = b"" if session_id is None else b',"session":%s' % _encode_json(session_id)
    # 256: room for the id, the deadline and the time, which join the frame later.
    if len(body) + len(session) + 256 > max_frame_bytes:
        raise EncodeError(
            f"/args: {len(text)} bytes of JSON for {command!r} do not fit a frame"
            f" (max_frame_bytes is {max_frame_bytes}); send large data as bytes"
        )
    content = CommandContent(
        body,
        session,
        tuple(data for _, data in attachments),
    )
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
) -> list[bytes]:
    """Complete an encoded command to frames, as buffers to write in order.

    Args:
        content: From ``encode_command``.
        request_id: The frame's id.
        session: Say the session (capability ``session``).
        timestamp: Say the time (level 0).
        deadline_ms: Remaining budget (capability ``deadline``), or None.
        claim: The request is sent ahead and needs a token (capability ``claim``).
        max_frame_bytes: Where attachments are cut.
    """
    tail = content.session if session else b""
    if deadline_ms is not None:
        tail += b',"deadline_ms":%d' % deadline_ms
    if claim:
        tail += b',"claim":true'
    if timestamp:
        tail += b',"timestamp":"%s"' % datetime.now(UTC).isoformat().encode()
    head = b'{"id":%d,' % request_id
    length = len(head) + len(content.body) + len(tail) + 1
    buffers = [b"".join((_HEADER.pack(length), head, content.body, tail, b"}"))]
    for data in content.raw:
        buffers.extend(_cut(data, max_frame_bytes))
    return buffers


def encode_pickle(head: bytes, body: bytes, max_frame_bytes: int) -> list[bytes]:
    """Return the frames of one message of pickles, as buffers to write in order.

    Args:
        head: Its first pickle.
        body: The rest.
        max_frame_bytes: Where it is cut.
    """
    size = len(head) + len(body)
    if size <= max_frame_bytes:
        start = _HEADER.pack(size) + head
        return [start + body] if len(body) < 65536 else [start, body]
    room = max_frame_bytes - 1
    split = max(0, room - len(head))
    first = head + body[:split]
    cuts = [(first, at) for at in range(0, len(first), room)]
    cuts += [(body, at) for at in range(split, len(body), room)]
    buffers = []
    for number, (data, at) in enumerate(cuts, 1):
        piece = data[at : at + room]
        mark = _PICKLE_PART if number < len(cuts) else _PICKLE_END
        buffers += [_HEADER.pack(len(piece) + 1) + bytes((mark,)), piece]
    return buffers


def _cut(data: bytes, size: int) -> Iterable[bytes]:
    for start in range(0, len(data), size):
        part = data if len(data) <= size else data[start : start + size]
        yield _HEADER.pack(len(part))
        yield part


def encode_object(message: dict[str, Any]) -> bytes:
    """Return one frame that carries a JSON object of the host's own making."""
    return frame(_encode_json(message))


def joined(buffers: Sequence[bytes], small_bytes: int = 65536) -> list[bytes]:
    """Join neighbours so that one system call writes many small buffers; large ones are not copied."""
    result: list[bytes] = []
    run: list[bytes] = []
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
