"""The structure of what a worker may send: PROTOCOL.md, sections 3 to 7.

Pure; used on any thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

__all__ = ("decode", "describe_error", "find_fault")

MAX_ID = 2**53 - 1
MAX_MESSAGE_FRAME = 2**27 - 1
MAX_TEXT = 65536
POINTER = re.compile(r"(/([^~/]|~[01])*)+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ABSENT = object()


def decode(payload: bytes) -> Any:
    """Return the value of strict JSON.

    Raises:
        ValueError: It is none; raised here, the message says why.
    """
    text = payload.decode("utf-8")
    value = json.loads(text, parse_constant=_refuse_constant)
    # Raw surrogates are not UTF-8; the escaped ones pass json.loads.
    if "\\u" in text:
        _refuse_surrogates(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _refuse_surrogates(value: Any) -> None:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str) and _SURROGATE.search(item):
            raise ValueError("a lone surrogate in a text")
        if isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            pending += item


def describe_error(reply: Mapping[str, Any]) -> tuple[str | None, str | None, str]:
    """Return code, type and message of a failure; a level-0 error has only a message."""
    error = reply.get("error")
    if isinstance(error, dict):
        return error.get("code"), error.get("type"), str(error.get("message"))
    return None, None, str(error)


def find_fault(message: Any) -> str | None:
    """Return what is wrong with the structure of a worker's message, or None."""
    if not isinstance(message, dict):
        return "it is no JSON object"
    if "type" in message:
        return _fault_of_typed(message)
    if "success" not in message:
        return "it has neither 'success' nor 'type'"
    if "command" in message:
        return "a reply has no 'command'"
    return _fault_of_index(message) or (
        _fault_of_success(message) if message["success"] is True else _fault_of_failure(message)
    )


def _fault_of_typed(message: dict[str, Any]) -> str | None:
    if message["type"] not in ("log", "recalled"):
        return f"the type {message['type']!r} does not exist"
    if "success" in message or "command" in message:
        return "a message with 'type' has neither 'success' nor 'command'"
    if not _is_natural(message.get("id"), MAX_ID):
        return "'id' must be an integer from 0 to 2^53 - 1"
    if message["type"] == "recalled":
        return _fault_of_index(message)
    for key in ("level", "message"):
        if not isinstance(message.get(key), str):
            return f"{key!r} of a log message must be text"
    return None if isinstance(message.get("fields"), dict) else "'fields' of a log message must be an object"


def _fault_of_index(message: dict[str, Any]) -> str | None:
    if "index" in message and not _is_natural(message["index"], MAX_ID):
        return "'index' must be an integer >= 0"
    timestamp = message.get("timestamp", "0000-00-00T00:00:00")
    if not isinstance(timestamp, str) or not re.match(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}", timestamp):
        return "'timestamp' must be ISO 8601 text"
    return None


def _fault_of_success(message: dict[str, Any]) -> str | None:
    if not _is_natural(message.get("id"), MAX_ID):
        return "'id' must be an integer from 0 to 2^53 - 1"
    if "result" not in message:
        return "a success needs 'result'"
    if "error" in message:
        return "a success has no 'error'"
    attachments = message.get("attachments", [])
    if not isinstance(attachments, list):
        return "'attachments' must be an array"
    for entry in attachments:
        if not isinstance(entry, dict) or entry.get("kind") not in ("bytes", "ndarray"):
            return "an attachment is an object with 'path', 'kind' and 'len'"
        if not isinstance(entry.get("path"), str) or not POINTER.fullmatch(entry["path"]):
            return f"the attachment's path {entry.get('path')!r} is no JSON pointer"
        if not _is_natural(entry.get("len"), MAX_ID):
            return "an attachment's 'len' must be an integer >= 0"
    result = message["result"]
    if isinstance(result, dict) and "protocol" in result and "status" in result:
        return _fault_of_handshake(result)
    return None


def _fault_of_handshake(result: dict[str, Any]) -> str | None:
    protocol = result["protocol"]
    if result["status"] != "ok":
        return "'status' of the handshake must be \"ok\""
    if not isinstance(protocol, dict) or protocol.get("version") != 1 or protocol.get("version") is True:
        return "'protocol' must be an object with the version 1"
    if not _is_natural(protocol.get("max_frame"), MAX_MESSAGE_FRAME) or not protocol["max_frame"]:
        return "'protocol.max_frame' must be an integer from 1 to 2^27 - 1"
    names = protocol.get("capabilities")
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        return "'protocol.capabilities' must be an array of names"
    if len(set(names)) != len(names):
        return "'protocol.capabilities' names one twice"
    for key in ("language", "runtime", "bridge"):
        if not isinstance(protocol.get(key), str):
            return f"'protocol.{key}' must be text"
    if not protocol["language"]:
        return "'protocol.language' must not be empty"
    if not _is_natural(protocol.get("pid"), MAX_ID) or not protocol["pid"]:
        return "'protocol.pid' must be the number of the process"
    commands = protocol.get("commands")
    if not isinstance(commands, dict):
        return "'protocol.commands' must be an object"
    for name, command in commands.items():
        params = command.get("params") if isinstance(command, dict) else None
        if not isinstance(params, list) or not all(isinstance(param, str) for param in params):
            return f"'params' of the command {name!r} must be an array of names (it may be empty)"
        if not isinstance(command.get("doc"), str):
            return f"'doc' of the command {name!r} must be text"
    return None


def _fault_of_failure(message: dict[str, Any]) -> str | None:
    if message["success"] is not False:
        return "'success' must be true or false"
    if message.get("id", _ABSENT) is not None and not _is_natural(message.get("id"), MAX_ID):
        return "'id' must be an integer from 0 to 2^53 - 1, or null where it could not be read"
    if "result" in message:
        return "a failure has no 'result'"
    error = message.get("error")
    if isinstance(error, str):
        return None
    if not isinstance(error, dict):
        return "a failure needs 'error': an object, or text without the capability `errors`"
    for key in ("code", "type", "message", "language"):
        if not isinstance(error.get(key), str) or (key != "message" and not error[key]):
            return f"'error.{key}' must be text"
    traceback = error.get("traceback")
    if traceback is not None and not isinstance(traceback, str):
        return "'error.traceback' must be text or null"
    if max(len(error["message"]), len(traceback or "")) > MAX_TEXT:
        return "message and traceback have at most 64 KiB each"
    cause = error.get("cause", _ABSENT)
    if cause is not _ABSENT and not (
        isinstance(cause, dict) and all(isinstance(cause.get(key), str) for key in ("type", "message"))
    ):
        return "'error.cause' must be an object with the texts 'type' and 'message'"
    return None


def _is_natural(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit
