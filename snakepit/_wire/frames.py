"""Byte stream <-> frames of bridges/PROTOCOL.md section 1, incremental and without I/O.

Pure; decoding runs on the manager's thread.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from ..errors import ProtocolError
from .blocks import LARGE_BYTES, Block

__all__ = ("Buffer", "FrameDecoder", "cut", "frame", "show_bytes")

Buffer = bytes | bytearray | memoryview
"""Bytes as they are sent or were received; a memoryview is flat and its items are bytes."""

_HEAD = struct.Struct(">I")
_SHOWN_BYTES = 80


def show_bytes(data: Buffer) -> str:
    """Return the first 80 bytes, escaped, for a message."""
    head = bytes(data[:_SHOWN_BYTES])
    return repr(head)[1:] + ("..." if len(data) > _SHOWN_BYTES else "")


def frame(payload: bytes) -> bytes:
    """Return one frame: 4 bytes big-endian length, then the payload."""
    return _HEAD.pack(len(payload)) + payload


def cut(parts: Iterable[Buffer], size_bytes: int, limit_bytes: int) -> list[Buffer]:
    """Return the frames that carry some bytes, all of them full but the last, as buffers to write in order.

    Args:
        parts: The bytes, one part after the other; large ones are not copied.
        size_bytes: Of all parts together.
        limit_bytes: Longest payload.
    """
    buffers: list[Buffer] = []
    room = 0
    for part in parts:
        done, size = 0, len(part)
        while done < size:
            if not room:
                room = min(limit_bytes, size_bytes)
                size_bytes -= room
                buffers.append(_HEAD.pack(room))
            count = min(room, size - done)
            buffers.append(part if count == size else memoryview(part)[done : done + count])
            done += count
            room -= count
    return buffers


class FrameDecoder:
    """Cuts a byte stream into payloads, however it is split.

    Args:
        limit_bytes: Longest payload; a longer length is an error as soon as its head is there.

    Attributes:
        error: A length of 0 or above the limit, from where on the stream is useless, or None.
    """

    # INVARIANT: `_data[_start:]` is what has come and was not taken yet.  With `_block`, `_left` bytes of a
    # payload that belongs there are still to come, and `_data` has none of them; else it begins at a head.
    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._data: bytes | bytearray = b""
        self._start = 0
        self._block: Block | None = None
        self._left = 0
        self.error: ProtocolError | None = None

    @property
    def inside_frame(self) -> bool:
        """True when the stream ended in the middle of a frame if it ended now."""
        return self._block is not None or self._start < len(self._data)

    def pending(self) -> bytes:
        """Return the beginning of what has been received of an unfinished frame."""
        if self._block is not None:
            return bytes(self._block.content()[: _SHOWN_BYTES + 1])
        return bytes(self._data[self._start : self._start + _SHOWN_BYTES + 1])

    def feed(self, data: bytes) -> None:
        """Take received bytes; ``next`` and ``fill`` return what they complete."""
        if self._start == len(self._data):
            self._data = data
        else:
            if isinstance(self._data, bytearray):
                del self._data[: self._start]
            else:
                self._data = bytearray(memoryview(self._data)[self._start :])
            self._data += data
        self._start = 0

    def room(self) -> memoryview | None:
        """Return where the next bytes of the stream can be written to, or None: then they are for ``feed``."""
        if self._block is None or self._left < LARGE_BYTES:
            return None
        return self._block.room()[: self._left]

    def wrote(self, count: int) -> None:
        """Say that the first ``count`` bytes of the room were written."""
        assert self._block is not None
        self._block.wrote(count)
        self._left -= count

    def next(self) -> Buffer | None:
        """Return the next payload that is complete, or None; sets ``error`` after the last good one."""
        block = self._block
        if block is None:
            length = self._length()
            if not length:
                return None
            start = self._start + 4
            end = start + length
            data = self._data
            if end <= len(data):
                self._start = end
                return data[start:end] if type(data) is bytes else bytes(memoryview(data)[start:end])
            if length < LARGE_BYTES:
                return None
            block = Block(length, transient=True)
            self._begin(block, length)
        return block.content() if self._go_on() else None

    def fill(self, block: Block) -> bool:
        """Take payloads that are the rest of ``block``; say whether it is full.  Sets ``error`` like ``next``.

        Raises:
            ProtocolError: A payload is longer than that rest; raised here.
        """
        while self._block is not None or block.left_bytes:
            if self._block is None:
                length = self._length()
                if not length:
                    return False
                if length > block.left_bytes:
                    raise ProtocolError(f"a frame of {length} bytes where {block.left_bytes} were due")
                self._begin(block, length)
            if not self._go_on():
                return False
        return True

    def _length(self) -> int:
        """Return the length that the next head tells, or 0: it is not there, or wrong."""
        start = self._start
        if len(self._data) - start >= 4:
            length: int = _HEAD.unpack_from(self._data, start)[0]
            if 0 < length <= self._limit_bytes:
                return length
            seen = show_bytes(self.pending())
            self.error = ProtocolError(
                f"a frame of {length} bytes (allowed: 1 to {self._limit_bytes}); the stream held: {seen}"
            )
        elif start < len(self._data):
            return 0
        self._data, self._start = b"", 0
        return 0

    def _begin(self, block: Block, length: int) -> None:
        self._block, self._left = block, length
        self._start += 4

    def _go_on(self) -> bool:
        """Move what has come to the block; say whether the payload is complete."""
        block, start = self._block, self._start
        assert block is not None
        count = min(self._left, len(self._data) - start)
        if count:
            block.write(memoryview(self._data)[start : start + count])
            self._start += count
            self._left -= count
        if self._left:
            return False
        self._block = None
        return True
