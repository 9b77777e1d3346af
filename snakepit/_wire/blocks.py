"""Memory for bytes that are still to come: it is there when they are, however many were announced.

Used on the manager's thread, ``recycle`` on any.  Owns a little memory that is used again and again.
"""

from __future__ import annotations

from typing import Any

__all__ = ("LARGE_BYTES", "Block", "recycle")

LARGE_BYTES = 1 << 16
"""From here on bytes are moved as seldom as possible; what ``pickle`` takes for large as well."""

_MAPPED_BYTES = 1 << 21
"""From here on memory comes from the kernel itself: the size of its huge pages."""

_SPARES = 4
"""Arbitrary: as many workers as send something large at the same moment; 2 MiB each."""

# INVARIANT: maps of _MAPPED_BYTES that nobody uses.  Any thread; each use is one operation on the list.
_spare: list[Any] = []


class Block:
    """A known number of bytes, written from the first to the last.

    Args:
        size_bytes: How many; > 0.
        transient: The content will be copied soon, and then recycled.
    """

    # INVARIANT: `_memory[:_done]` is written.  The rest of it is at most four times as long and LARGE_BYTES
    # more, or pages of a map, which do not exist before somebody writes to them, or a spare.
    __slots__ = ("_done", "_memory", "size_bytes")

    def __init__(self, size_bytes: int, *, transient: bool = False) -> None:
        self.size_bytes = size_bytes
        self._done = 0
        self._memory: Any
        if size_bytes >= _MAPPED_BYTES:
            self._memory = _map(size_bytes)
        elif transient and size_bytes >= LARGE_BYTES:
            self._memory = _take_spare()
        else:
            self._memory = bytearray(min(size_bytes, LARGE_BYTES))

    @property
    def left_bytes(self) -> int:
        """How many bytes are still to come."""
        return self.size_bytes - self._done

    def room(self) -> memoryview:
        """Return where the next bytes belong, writable: LARGE_BYTES or more, or all of ``left_bytes``."""
        if len(self._memory) - self._done < min(self.left_bytes, LARGE_BYTES):
            # A new one, not a longer one: somebody may still hold a view.
            longer = bytearray(min(self.size_bytes, 4 * self._done + LARGE_BYTES))
            longer[: self._done] = memoryview(self._memory)[: self._done]
            self._memory = longer
        return memoryview(self._memory)[self._done : self.size_bytes]

    def wrote(self, count: int) -> None:
        """Say that the first ``count`` bytes of the room were written."""
        self._done += count

    def write(self, data: memoryview) -> None:
        """Copy bytes to their place; no more than ``left_bytes``."""
        while data:
            room = self.room()
            count = min(len(room), len(data))
            room[:count] = data[:count]
            self._done += count
            data = data[count:]

    def content(self) -> memoryview:
        """Return what has been written; writable, and nobody else's."""
        return memoryview(self._memory)[: self._done]


def recycle(content: bytes | bytearray | memoryview) -> None:
    """Let the memory of a transient block's content be used again; whoever has a view of it must not look any more."""
    if isinstance(content, memoryview):
        memory: Any = content.obj
        content.release()
        if not isinstance(memory, (bytes, bytearray)) and len(memory) == _MAPPED_BYTES and len(_spare) < _SPARES:
            _spare.append(memory)


def _take_spare() -> Any:
    try:
        return _spare.pop()
    except IndexError:
        return _map(_MAPPED_BYTES)


def _map(size_bytes: int) -> Any:
    """Return private anonymous memory, in huge pages where the system has them.

    Raises:
        OSError: There is no room for so much; raised here.
    """
    import mmap

    area = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            # A fault for each 2 MiB and not for each 4 KiB: filling new memory was 8 times as fast.
            area.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            # A kernel without them: small pages serve.
            return area
    return area
