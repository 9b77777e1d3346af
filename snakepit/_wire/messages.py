"""Bytes of a worker -> messages: the frame protocol of bridges/PROTOCOL.md, incremental and without I/O.

Pure; used on whichever thread reads the worker's pipe.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..errors import ProtocolError
from .blocks import LARGE_BYTES, Block, recycle
from .frames import Buffer, FrameDecoder, show_bytes
from .values import decode_json, insert_attachments

__all__ = ("PICKLE", "PICKLE_END", "PICKLE_PART", "Message", "MessageDecoder")

PICKLE = 0x80
"""First byte of a payload that is a pickle."""
PICKLE_PART = 0x81
PICKLE_END = 0x82
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
        self._most_short_bytes = min(max_frame_bytes, LARGE_BYTES - 1)
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
        if self._raw is not None or self._frames.inside_frame:
            self._frames.feed(data)
            return self._messages()
        messages, start = self._short_messages(data)
        if start < len(data):
            self._frames.feed(data[start:] if start else data)
            messages += self._messages()
        return messages

    def _short_messages(self, data: bytes) -> tuple[list[Message], int]:
        """Return the messages at the beginning of ``data`` that are one short frame each, and where others begin.

        The way of nearly all replies: of many in one piece of the stream none needs more than its own bytes.
        """
        messages: list[Message] = []
        start, end, most, pickles = 0, len(data), self._most_short_bytes, self._allow_pickle
        while end - start > 4:
            (length,) = _HEADER.unpack_from(data, start)
            body, stop = start + 4, start + 4 + length
            if stop > end or not 0 < length <= most:
                break
            first = data[body]
            if first == 0x7B:
                try:
                    message = decode_json(data[body:stop])
                except Exception:
                    # What is wrong with it will be found, and told, on the long way.
                    break
                if "attachments" in message:
                    break
                messages.append(message)
            elif first == PICKLE and pickles:
                messages.append([data[body:stop]])
            else:
                break
            start = stop
        return messages, start

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
        if first in (PICKLE_PART, PICKLE_END) and self._allow_pickle:
            self._expect_part(payload)
            return None
        if first != 0x7B:
            raise ProtocolError(f"a frame that is no JSON object: {show_bytes(payload)}")
        try:
            message: dict[str, Any] = decode_json(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
            # The parser names the place with all its brackets, however deep.
            reason = str(error)
            reason = reason if len(reason) <= 200 else f"{reason[:120]}...{reason[-60:]}"
            raise ProtocolError(f"a frame that is no strict JSON ({reason}): {show_bytes(payload)}") from None
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
        finish = self._end_parts if mark == PICKLE_END else self._add_part
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
