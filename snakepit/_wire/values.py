"""What JSON may carry: one walk over a value that admits exact types only and takes out the bytes.

Pure; runs on the caller's thread and owns no state.  The JSON library would turn sets, dates, NaN,
bytes and int keys into something else without a word, so nothing reaches it that was not admitted here.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from ..errors import EncodeError

__all__ = ("MAX_DEPTH", "JsonValue", "decode_json", "encode_value", "insert_attachments")

JsonValue = Any
"""None, bool, int, finite float, str, list, dict with str keys (and bytes, which travel as attachments)."""

MAX_DEPTH = 256
"""Levels of nesting.  Arbitrary, below the recursion limits of every bridge's JSON parser (Python: 1,000)."""

_encode = msgspec.json.encode
decode_json = msgspec.json.Decoder().decode

_SHOWN_CHARS = 80

_SCALARS = frozenset((int, bool, type(None)))


class _HasBytes(Exception):
    """Ends the quick walk: the value carries bytes, so the walk that keeps paths has to run."""


def encode_value(value: JsonValue, root: str) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """Encode a value as JSON text and attachments.

    Args:
        value: JSON value; bytes, bytearray and memoryview become attachments.
        root: JSON pointer of the value in its message, e.g. ``/args``.

    Returns:
        ``(text, ((pointer, data), ...))``; in the text each attachment's place holds null.

    Raises:
        EncodeError: A value that JSON cannot carry exactly, with its path; raised here.
    """
    attachments: list[tuple[str, bytes]] = []
    try:
        _check(value, MAX_DEPTH)
        return _encode(value), ()
    except _HasBytes:
        value = _extract(value, root, 0, attachments)
        return _encode(value), tuple(attachments)
    except (EncodeError, ValueError):
        raise _explain(value, root) from None


def _check(value: JsonValue, depth: int) -> None:
    """Admit or refuse, without a path: the quick walk that nearly every value passes."""
    kind = type(value)
    if kind is str or kind in _SCALARS:
        return
    if kind is dict:
        if depth <= 0:
            raise EncodeError
        for key, item in value.items():
            if type(key) is not str:
                raise EncodeError
            inner = type(item)
            if inner is not str and inner not in _SCALARS:
                _check(item, depth - 1)
    elif kind is list or kind is tuple:
        if depth <= 0:
            raise EncodeError
        for item in value:
            inner = type(item)
            if inner is not str and inner not in _SCALARS:
                _check(item, depth - 1)
    elif kind is float:
        if not math.isfinite(value):
            raise EncodeError
    elif kind is bytes or kind is bytearray or kind is memoryview:
        raise _HasBytes
    else:
        raise EncodeError


def _extract(value: JsonValue, path: str, depth: int, attachments: list[tuple[str, bytes]]) -> JsonValue:
    """Copy the containers with null for each bytes value, which goes to ``attachments``."""
    kind = type(value)
    if kind is bytes or kind is bytearray or kind is memoryview:
        attachments.append((path, bytes(value)))
        return None
    if depth > MAX_DEPTH:
        raise EncodeError(_too_deep(path))
    if kind is dict:
        copy = {}
        for key, item in value.items():
            if type(key) is not str:
                raise EncodeError(_bad_key(path, key))
            if reason := _refusal(key):
                raise EncodeError(f"{path}: key {key!r:.80}: {reason}")
            copy[key] = _extract(item, _join(path, key), depth + 1, attachments)
        return copy
    if kind is list or kind is tuple:
        return [_extract(item, f"{path}/{i}", depth + 1, attachments) for i, item in enumerate(value)]
    reason = _refusal(value)
    if reason:
        raise EncodeError(f"{path}: {reason}")
    return value


def _explain(value: JsonValue, root: str) -> EncodeError:
    """Walk again, this time for the path to the first value that cannot be sent."""
    try:
        _extract(value, root, 0, [])
    except EncodeError as error:
        return error
    return EncodeError(f"{root}: the value cannot be encoded as JSON")


def _refusal(value: object) -> str | None:
    """Say why a leaf cannot be sent, or None."""
    kind = type(value)
    if kind is float:
        return None if math.isfinite(value) else f"{value!r} is not JSON"  # type: ignore[arg-type]  # a float
    if kind is str:
        try:
            value.encode()  # type: ignore[attr-defined]  # a str
        except UnicodeEncodeError as error:
            return f"text with a lone surrogate at index {error.start} is not UTF-8"
        return None
    if kind is int:
        try:
            str(value)
        except ValueError as error:
            return f"{error}"
    if kind in _SCALARS:
        return None
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{name} is not a JSON type; convert it (prepare_args of the adapter is the place)"


def _join(path: str, key: str) -> str:
    return f"{path}/{key.replace('~', '~0').replace('/', '~1')}"


def _too_deep(path: str) -> str:
    shown = path if len(path) <= 80 else path[:77] + "..."
    return f"{shown}: nested deeper than {MAX_DEPTH} levels, or a cycle"


def _bad_key(path: str, key: object) -> str:
    return f"{path}: key {key!r:.80} is {type(key).__name__}; JSON keys are str"


def insert_attachments(message: dict[str, Any], data: list[bytes]) -> None:
    """Put the raw bytes of a message's attachments in their places.

    Args:
        message: A decoded message with ``"attachments": [{"path", "kind", "len"}, ...]``.
        data: The bytes, one each, in order.

    Raises:
        LookupError, TypeError, ValueError: A text that is no JSON pointer, or one that leads nowhere or to a
            value that is not null; raised here.
    """
    for entry, raw in zip(message["attachments"], data, strict=True):
        root, *parts = entry["path"].split("/")
        container: Any = None
        key: Any = None
        value: Any = message
        try:
            for part in parts:
                container = value
                key = _index(part) if isinstance(container, list) else _unescape(part)
                value = container[key]
        except (LookupError, TypeError, ValueError):
            raise KeyError(entry["path"][:_SHOWN_CHARS]) from None
        if root or value is not None:
            raise ValueError(f"{entry['path'][:_SHOWN_CHARS]!r} leads to no null")
        container[key] = raw


def _index(part: str) -> int:
    """Return the index that a pointer's token stands for; ``int`` alone would also take -1, +1 and 1_0."""
    if not (part.isascii() and part.isdigit()) or (part[0] == "0" and len(part) > 1):
        raise ValueError(part)
    return int(part)


def _unescape(part: str) -> str:
    if "~" not in part:
        return part
    if part.count("~") != part.count("~0") + part.count("~1"):
        raise ValueError(part)
    return part.replace("~1", "/").replace("~0", "~")
