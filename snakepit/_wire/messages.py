"""Bytes <-> messages: the frame protocol of bridges/PROTOCOL.md, incremental and without I/O.

Pure; used on the manager's thread (decoding, heads) and on the caller's (bodies).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import msgspec

from ..errors import EncodeError, ProtocolError
from .blocks import LARGE_BYTES, Block, recycle
from .frames import Buffer, FrameDecoder, cut, frame, show_bytes
from .values import JsonValue, decode_json, encode_value, insert_attachments

__all__ = (
    "PICKLE",
    "CommandContent",
    "Message",
    "MessageDecoder",
    "encode_command",
    "encode_message",
    "encode_object",
    "encode_pickle",
    "joined",
)

PICKLE = 0x80
"""First byte of a payload that is a pickle."""
_PICKLE_PART = 0x81
_PICKLE_END = 0x82
"""First bytes of the payloads that announce a part of a pickle: any but the last, and the last."""

_HEADER = struct.Struct(">I")
_PART = struct.Struct(">BQ")

_LEAST_BYTES = 1024
"""What a part counts at least towards the limit: one of a byte takes as much memory here."""

Message = dict[str, Any] | list[Buffer]
"""A JSON object with its bytes in place, or the parts of a pickle: the pickle, then its out-of-band buffers."""


class _Raw:
    """Raw bytes that are due before a message is complete.

    Args:
        sizes: How many, item after item.
        what: Names an item in errors.
        finish: Called with all items once they are there.
        copied: Each item becomes bytes.
        transient: Each item will be copied soon.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        what: str,
        finish: Callable[[list[Buffer]], Message | None],
        *,
        copied: bool = False,
        transient: bool = False,
    ) -> None:
        self._sizes = sizes
        self._what = what
        self._finish = finish
        self._copied = copied
        self._transient = copied or transient
        self._items: list[Buffer] = []
        self._block: Block | None = None

    def take(self, frames: FrameDecoder) -> bool:
        """Take what has come; say whether that was the rest.

        Raises:
            ProtocolError: A frame goes beyond the bytes announced; raised here.
        """
        while len(self._items) < len(self._sizes):
            # Made when its turn comes: what was announced further on takes no memory yet.
            block = self._block or Block(self._sizes[len(self._items)], transient=self._transient)
            self._block = block
            try:
                if not frames.fill(block):
                    return False
            except ProtocolError as error:
                size = block.size_bytes
                raise ProtocolError(f"{self._what} longer than the {size} bytes announced for it: {error}") from None
            self._block = None
            content = block.content()
            self._items.append(bytes(content) if self._copied else content)
            if self._copied:
                recycle(content)
        return True

    def finish(self) -> Message | None:
        """Return the message, if it ends here."""
        return self._finish(self._items)


class MessageDecoder:
    """Turns a worker's byte stream into messages: JSON objects with their attachments, and pickles.

    Args:
        max_frame_bytes: Longest frame.
        max_message_bytes: Longest message with its attachments or buffers.
        allow_pickle: True for workers of the callable adapter only.

    Attributes:
        error: What ended the decoding, or None; messages before it were returned by ``feed``.
    """

    def __init__(self, *, max_frame_bytes: int, max_message_bytes: int, allow_pickle: bool = False) -> None:
        self._frames = FrameDecoder(max_frame_bytes)
        self._max_message_bytes = max_message_bytes
        self._allow_pickle = allow_pickle
        self._raw: _Raw | None = None
        # INVARIANT: what has come of a pickle in parts, and what it counts; JSON frames may come in between.
        self._parts: list[Buffer] = []
        self._parts_bytes = 0
        self.error: Exception | None = None

    def feed(self, data: bytes) -> list[Message]:
        """Take received bytes and return the messages that are complete."""
        if self.error is not None:
            return []
        self._frames.feed(data)
        return self._messages()

    def room(self) -> memoryview | None:
        """Return where the next bytes of a long frame can be read to, or None: then they are for ``feed``."""
        return self._frames.room() if self.error is None else None

    def wrote(self, count: int) -> list[Message]:
        """Say that the first ``count`` bytes of the room were read, and return like ``feed``."""
        self._frames.wrote(count)
        return self._messages()

    def finish(self) -> Exception | None:
        """Return the error of a stream that ends here, or None when it ends between two messages."""
        if self.error is None and (self._frames.inside_frame or self._raw is not None or self._parts):
            seen = show_bytes(self._frames.pending())
            self.error = ProtocolError(f"the stream ended inside a frame or message; it held: {seen}")
        return self.error

    def _messages(self) -> list[Message]:
        messages: list[Message] = []
        frames = self._frames
        try:
            while True:
                message: Message | None
                if self._raw is not None:
                    if not self._raw.take(frames):
                        break
                    raw, self._raw = self._raw, None
                    message = raw.finish()
                else:
                    payload = frames.next()
                    if payload is None:
                        break
                    message = self._take(payload)
                    if type(payload) is not bytes and type(message) is not list:
                        recycle(payload)
                if message is not None:
                    messages.append(message)
        except Exception as error:
            # Mostly a ProtocolError; a MemoryError, too, must not cost the messages before it.
            self.error = error
        else:
            self.error = frames.error
        return messages

    def _take(self, payload: Buffer) -> Message | None:
        first = payload[0]
        if first == PICKLE and self._allow_pickle:
            return [payload]
        if first in (_PICKLE_PART, _PICKLE_END) and self._allow_pickle:
            self._expect_part(payload)
            return None
        if first != 0x7B:
            raise ProtocolError(f"a frame that is no JSON object: {show_bytes(payload)}")
        try:
            message: dict[str, Any] = decode_json(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise ProtocolError(f"a frame that is no strict JSON ({error}): {show_bytes(payload)}") from None
        if "attachments" not in message:
            return message
        self._expect_attachments(message, payload)
        return None

    def _expect_part(self, payload: Buffer) -> None:
        if len(payload) != _PART.size:
            raise ProtocolError(f"a part of a pickle without its length: {show_bytes(payload)}")
        mark, size = _PART.unpack(payload)
        if not size:
            raise ProtocolError("a part of a pickle without content")
        self._parts_bytes += max(size, _LEAST_BYTES) if self._parts else size
        if self._parts_bytes > self._max_message_bytes:
            seen = self._parts_bytes
            self._parts = []
            raise ProtocolError(f"a pickle of {seen} bytes and more (max_message_bytes is {self._max_message_bytes})")
        finish = self._end_parts if mark == _PICKLE_END else self._add_part
        # What is loaded is a copy of the pickle, but has the buffers for its own.
        self._raw = _Raw((size,), "a part of a pickle", finish, transient=not self._parts)

    def _add_part(self, items: list[Buffer]) -> None:
        content = items[0]
        if not self._parts and content[0] != PICKLE:
            raise ProtocolError(f"a part that begins no pickle: {show_bytes(content)}")
        self._parts.append(content)

    def _end_parts(self, items: list[Buffer]) -> list[Buffer]:
        self._add_part(items)
        parts, self._parts, self._parts_bytes = self._parts, [], 0
        return parts

    def _expect_attachments(self, message: dict[str, Any], payload: Buffer) -> None:
        try:
            if type(message["attachments"]) is not list:
                raise TypeError("attachments")
            sizes = [entry["len"] for entry in message["attachments"]]
            if any(type(size) is not int or size < 0 for size in sizes):
                raise ValueError("len")
            if any(type(entry["path"]) is not str for entry in message["attachments"]):
                raise TypeError("path")
        except (TypeError, KeyError, ValueError):
            raise ProtocolError(f"a message with bad attachments: {show_bytes(payload)}") from None
        total = len(payload) + sum(sizes)
        if total > self._max_message_bytes:
            raise ProtocolError(
                f"a message of {total} bytes (max_message_bytes is {self._max_message_bytes})"
            )

        def complete(items: list[Any]) -> dict[str, Any]:
            try:
                insert_attachments(message, items)
            except (LookupError, TypeError, ValueError) as error:
                raise ProtocolError(f"an attachment without a place in its message: {error}") from None
            return message

        self._raw = _Raw(sizes, "an attachment", complete, copied=True)


@attrs.frozen
class CommandContent:
    """An encoded command without the parts that are known only when it is sent.

    Attributes:
        body: JSON members ``"command":...,"args":...`` and, with bytes, ``"attachments":...``.
        session: The JSON member of the session with its leading comma, or nothing.
        raw: The bytes of the attachments, in order.
        text: The value of ``"args"`` where it is long; then ``body`` ends before it.
    """

    body: bytes
    session: bytes = b""
    raw: tuple[bytes, ...] = ()
    text: bytes = b""

    @property
    def size_bytes(self) -> int:
        return len(self.body) + len(self.text) + sum(map(len, self.raw))


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
    # 256: room for the id, the deadline and the time, which join the frame later.
    if len(body) + long * len(text) + len(session) + 256 > max_frame_bytes:
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
    length = len(head) + len(content.body) + len(content.text) + len(tail) + 1
    buffers: list[Buffer]
    if content.text:
        buffers = [b"".join((_HEADER.pack(length), head, content.body)), content.text, tail + b"}"]
    else:
        buffers = [b"".join((_HEADER.pack(length), head, content.body, tail, b"}"))]
    for data in content.raw:
        buffers += cut((data,), len(data), max_frame_bytes)
    return buffers


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
        buffers.append(frame(_PART.pack(_PICKLE_PART if left else _PICKLE_END, size)))
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
