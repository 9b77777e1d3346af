"""Compares what a bridge accepts with what its schemas say."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jsonschema
from conformance.driver import Worker

__all__ = ("INEXACT", "INEXACT_32", "LISTS", "NOT_BYTES", "VALUES", "disagreements")

EDGES = [edge for bits in (7, 8, 15, 16, 31, 32, 63, 64) for edge in (2**bits - 1, 2**bits, -(2**bits), -(2**bits) - 1)]
VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1, 1.5, 1e39, 2**53 + 1, 10**30, *EDGES, "text", "2024-01-01T00:00:00Z"),
    *([], [None], [1], [1, 2], ["a"], [1000], [[1]], [{"x": 1}], [{"x": 1, "label": "a"}], b"bytes", [b"bytes"]),
    *({}, {"a": None}, {"a": 1}, {"a": 1000}, {"a": "b"}, {"a": [1]}, {"x": 1}, {"x": 1, "Y": 1.5}, {"X": 1}),
    *({"x": 1, "Y": None, "tag": "a"}, {"x": 1, "tag": None}, {"x": 1, "label": "a"}, {"x": 1, "hidden": 1}),
    *({"value": 1}, {"value": 1, "next": None}, {"value": 1, "next": {"value": 2, "others": {"a": []}}}),
)
LISTS = [repr(value) for value in VALUES if isinstance(value, list)]
# Where JSON Schema has no word for what a bridge wants:
NOT_BYTES = [repr(value) for value in VALUES if not isinstance(value, (bytes, type(None)))]
INEXACT = [repr(value) for value in VALUES if type(value) is int and int(float(value)) != value]
"""Integers that a double does not hold."""
INEXACT_32 = [
    repr(value)
    for value in VALUES
    if type(value) is int and int(struct.unpack("f", struct.pack("f", value))[0]) != value
]
"""Integers that a float of 32 bits does not hold."""


class _Bytes:
    """What stands for bytes in a value to be validated: JSON knows nothing of them."""


def disagreements(worker: Worker, schemas: Mapping[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
    """Call each command with each value, as the parameter ``v`` if it has that, and ask its schema the same.

    Returns:
        What the schema refuses and the bridge takes; ``{command: [value]}`` for the reverse.
    """
    stricter: list[str] = []
    looser: defaultdict[str, list[str]] = defaultdict(list)
    request_id = 0
    for name, schema in schemas.items():
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        own = "v" in schema["properties"]
        whole = [{}, {"v": 1, "more": 1}, {"V": 1}] if own else []
        for args in [*whole, *({"v": value} if own else value for value in VALUES)]:
            if not isinstance(args, dict):
                continue
            request_id += 1
            taken, allowed = _is_taken(worker, request_id, name, args), validator.is_valid(_replaced(args))
            shown = repr(args["v"] if own and args.keys() == {"v"} else args)
            if taken and not allowed:
                stricter.append(f"{name}: {shown}")
            elif allowed and not taken:
                looser[name].append(shown)
    return stricter, dict(looser)


def _is_taken(worker: Worker, request_id: int, name: str, args: Any) -> bool:
    frames: list[bytes] = []
    entries: list[dict[str, Any]] = []
    message = {"id": request_id, "command": name, "args": _taken_out(args, "/args", entries, frames)}
    worker.send({**message, **({"attachments": entries} if entries else {})}, *frames)
    reply = worker.receive()
    assert reply["success"] or "bad_args" == reply["error"]["code"], reply
    return bool(reply["success"])


def _taken_out(value: Any, path: str, entries: list[dict[str, Any]], frames: list[bytes]) -> Any:
    if isinstance(value, bytes):
        entries.append({"path": path, "kind": "bytes", "len": len(value)})
        frames.append(value)
        return None
    if isinstance(value, dict):
        return {key: _taken_out(item, f"{path}/{key}", entries, frames) for key, item in value.items()}
    if isinstance(value, list):
        return [_taken_out(item, f"{path}/{index}", entries, frames) for index, item in enumerate(value)]
    return value


def _replaced(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item) for item in value]
    return _Bytes() if isinstance(value, bytes) else value
