"""A second decoder, written from bridges/PROTOCOL.md alone: slow, whole streams only, the standard library's JSON.

Pure.  It shares no line with ``snakepit._wire``; where the two disagree, one of them is wrong.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

__all__ = ("DEEP", "Refused", "decode_stream")

DEEP = 200
"""Levels of nesting from which on two JSON parsers may disagree: each ends at a limit of its own."""

MANY_DIGITS = 4000
"""Digits from which on Python itself refuses an integer (``sys.set_int_max_str_digits``)."""


class Refused(Exception):
    """The stream is wrong from here on. ``unsure``: parsers may disagree about it."""

    def __init__(self, reason: str, unsure: bool = False) -> None:
        super().__init__(reason)
        self.unsure = unsure


def decode_stream(
    stream: bytes, *, max_frame_bytes: int, max_message_bytes: int, allow_pickle: bool
) -> tuple[list[Any], Refused | None, bool]:
    """Return the messages, what was wrong after them or None, and whether the stream ends between two messages."""
    messages: list[Any] = []
    parts: list[bytes] = []
    counted = 0
    place = 0
    try:
        while place < len(stream):
            payload, place = _next_frame(stream, place, max_frame_bytes)
            if payload is None:
                return messages, None, False
            if allow_pickle and payload[0] == 0x80:
                messages.append([payload])
            elif allow_pickle and payload[0] in (0x81, 0x82):
                if len(payload) != 9:
                    raise Refused("a part without its length")
                size = int.from_bytes(payload[1:], "big")
                if size == 0:
                    raise Refused("an empty part")
                counted += max(size, 1024) if parts else size
                if counted > max_message_bytes:
                    raise Refused("a pickle that is too long")
                raw, place = _raw(size, stream, place, max_frame_bytes)
                if raw is None:
                    return messages, None, False
                parts.append(raw)
                if parts[0][0] != 0x80:
                    raise Refused("no pickle")
                if payload[0] == 0x82:
                    messages.append(parts)
                    parts, counted = [], 0
            else:
                message = _parse(payload)
                if "attachments" in message:
                    sizes = _announced(message, len(payload), max_message_bytes)
                    place = _attach(message, sizes, stream, place, max_frame_bytes)
                    if place < 0:
                        return messages, None, False
                messages.append(message)
    except Refused as refused:
        return messages, refused, False
    return messages, None, not parts


def _raw(size: int, stream: bytes, place: int, limit: int) -> tuple[bytes | None, int]:
    """Read frames of raw bytes; return them and where the stream goes on, or None where it ends before."""
    raw = b""
    while len(raw) < size:
        payload, place = _next_frame(stream, place, limit)
        if payload is None:
            return None, place
        raw += payload
        if len(raw) > size:
            raise Refused("more raw bytes than announced")
    return raw, place


def _next_frame(stream: bytes, place: int, limit: int) -> tuple[bytes | None, int]:
    if len(stream) - place < 4:
        return None, place
    length = int.from_bytes(stream[place : place + 4], "big")
    if length == 0 or length > limit:
        raise Refused(f"a length of {length}")
    end = place + 4 + length
    return (None, place) if end > len(stream) else (stream[place + 4 : end], end)


def _parse(payload: bytes) -> dict[str, Any]:
    if payload[:1] != b"{":
        raise Refused("no object")
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused("no UTF-8") from None
    unsure = _depth(text) > DEEP or re.search(f"[0-9]{{{MANY_DIGITS}}}", text) is not None
    try:
        message = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise Refused(str(error), unsure) from None
    if type(message) is not dict:
        raise Refused("no object")
    if unsure:
        raise Refused("too deep or too long to judge", True)
    return message


def _depth(text: str) -> int:
    """Return how deep the text nests at most, brackets in strings included: an upper bound."""
    depth = most = 0
    for char in text:
        if char in "[{":
            depth += 1
            most = max(most, depth)
        elif char in "]}":
            depth -= 1
    return most


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Check every member, also one that a later member of the same name replaces."""
    _no_surrogates(pairs)
    return dict(pairs)


def _no_surrogates(value: Any) -> None:
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _no_surrogates(item)


def _announced(message: dict[str, Any], size: int, limit: int) -> list[int]:
    entries = message["attachments"]
    if not isinstance(entries, list):
        raise Refused("attachments is no list")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise Refused("an attachment without a path")
        length = entry.get("len")
        if not isinstance(length, int) or isinstance(length, bool) or length < 0:
            raise Refused("an attachment without a length")
    sizes = [entry["len"] for entry in entries]
    if size + sum(sizes) > limit:
        raise Refused("a message that is too long")
    return sizes


def _attach(message: dict[str, Any], sizes: list[int], stream: bytes, place: int, limit: int) -> int:
    """Read the attachments and put them in their places; return where the stream goes on, -1 if it does not."""
    data = []
    for size in sizes:
        raw, place = _raw(size, stream, place, limit)
        if raw is None:
            return -1
        data.append(raw)
    for entry, raw in zip(message["attachments"], data, strict=True):
        _put(message, entry["path"], raw)
    return place


def _put(message: dict[str, Any], pointer: str, raw: bytes) -> None:
    if not re.fullmatch(r"(?:/(?:[^~/]|~[01])*)+", pointer, re.DOTALL):
        raise Refused("no pointer")
    *way, last = [token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/")]
    target: Any = message
    for token in way:
        target = target[_key(target, token)]
    key = _key(target, last)
    if target[key] is not None:
        raise Refused("a pointer to no null")
    target[key] = raw


def _key(target: Any, token: str) -> Any:
    if isinstance(target, dict) and token in target:
        return token
    if isinstance(target, list) and re.fullmatch("0|[1-9][0-9]{0,9}", token) and int(token) < len(target):
        return int(token)
    raise Refused("a pointer to nothing")
