"""Values as pickles without copies of what is large in them.

Pure; runs on the caller's thread.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, Final

from .blocks import LARGE_BYTES

__all__ = ("PROTOCOL", "Pickled", "dump", "is_large", "is_plain")

PROTOCOL: Final = 5
"""Of all pickles here: the first with out-of-band buffers."""

_PRIMITIVES = frozenset((int, float, str, bytes, bool, type(None)))


class Pickled:
    """A pickle with large content, none of which was copied: its ``len`` is the size in bytes of all of it.

    Args:
        parts: The pickle, one part after the other; each is bytes, a large object in it is a part of its own.
        buffers: Its out-of-band buffers (pickle protocol 5): the memory of the caller's arrays itself.
    """

    __slots__ = ("_size_bytes", "buffers", "parts")

    def __init__(self, parts: list[bytes], buffers: list[memoryview]) -> None:
        self.parts = parts
        self.buffers = buffers
        self._size_bytes = sum(map(len, parts)) + sum(map(len, buffers))

    def __len__(self) -> int:
        return self._size_bytes


def dump(pickler: Callable[..., Any], value: object) -> bytes | Pickled:
    """Pickle a value; without anything large in it, it becomes bytes.

    Args:
        pickler: ``pickle.Pickler``, or a class like it.
        value: Anything.

    Raises:
        Exception: Whatever pickling raises; raised here.
    """
    parts: list[Any] = []
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            content = buffer.raw()
        except BufferError:  # not contiguous: pickle has its own error for that
            return True
        if len(content) < LARGE_BYTES:
            return True
        buffers.append(content)
        return False

    # A pickler with a file writes large bytes and text as they are, and all else in pieces of 64 KiB.
    pickler(SimpleNamespace(write=parts.append), PROTOCOL, buffer_callback=keep_in_band).dump(value)
    if not buffers and (len(parts) == 1 or sum(map(len, parts)) < LARGE_BYTES):
        return b"".join(parts)
    # Nobody can resize a bytearray of which there is a view, so that one is copied.
    return Pickled([bytes(part) if type(part) is bytearray else part for part in parts], buffers)


def is_plain(values: Iterable[Any]) -> bool:
    """Say whether plain pickle carries these values exactly: primitives, tuples of them, arrays of numbers."""
    for value in values:
        kind = type(value)
        if kind in _PRIMITIVES:
            continue
        if not (_PRIMITIVES.issuperset(map(type, value)) if kind is tuple else _is_array(kind, value)):
            return False
    return True


def is_large(values: Iterable[Any]) -> bool:
    """Say whether one of these plain values should not be copied."""
    for value in values:
        kind = type(value)
        if kind is bytes or kind is str:
            if len(value) >= LARGE_BYTES:
                return True
        elif kind not in _PRIMITIVES and kind is not tuple and value.nbytes >= LARGE_BYTES:
            return True
    return False


def _is_array(kind: type, value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and kind is getattr(numpy, "ndarray", None) and not value.dtype.hasobject
