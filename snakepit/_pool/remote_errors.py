"""From the error of a reply to the exception of a future.

Pure; runs on the manager's thread.
"""

from __future__ import annotations

from concurrent.futures import CancelledError

from .._text import escape_text, show
from ..errors import CommandError, CommandTimeout, InvalidArguments, ResultError, SessionLost, UnknownCommand

__all__ = ("command_error",)


def command_error(error: object) -> BaseException:
    """Return the exception for the ``error`` member of a reply: a str (level 0) or an object (level 1)."""
    if not isinstance(error, dict):
        return CommandError(_text(error))
    code = _text(error.get("code") or "internal")
    kind = error.get("type")
    trace = error.get("traceback")
    message = _text(error.get("message", ""))
    details = {
        "code": code,
        "type": _text(kind) if kind is not None else None,
        "remote_traceback": _text(trace) if trace else None,
        "data": error.get("data"),
    }
    if code == "unknown_command":
        return UnknownCommand(message, **details)
    if code == "bad_args":
        return InvalidArguments(message, **details)
    shown = escape_text(message, keep_layout=True)
    if code in ("encode_error", "too_large"):
        return ResultError(shown)
    if code == "deadline":
        return CommandTimeout(shown)
    if code == "session_lost":
        return SessionLost(shown)
    if code == "cancelled":
        return CancelledError(shown)
    return CommandError(message, **details)


def _text(value: object) -> str:
    return value if isinstance(value, str) else show(value)
