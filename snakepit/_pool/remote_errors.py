"""From the error of a reply to the exception of a future.

Pure; runs on the manager's thread.
"""

from __future__ import annotations

from concurrent.futures import CancelledError

from ..errors import CommandError, CommandTimeout, InvalidArguments, ResultError, SessionLost, UnknownCommand

__all__ = ("command_error",)


def command_error(error: object) -> BaseException:
    """Return the exception for the ``error`` member of a reply: a str (level 0) or an object (level 1)."""
    if not isinstance(error, dict):
        return CommandError(error if isinstance(error, str) else repr(error))
    code = str(error.get("code") or "internal")
    kind = error.get("type")
    trace = error.get("traceback")
    message = str(error.get("message", ""))
    details = {
        "code": code,
        "type": str(kind) if kind is not None else None,
        "remote_traceback": str(trace) if trace else None,
        "data": error.get("data"),
    }
    if code == "unknown_command":
        return UnknownCommand(message, **details)
    if code == "bad_args":
        return InvalidArguments(message, **details)
    if code in ("encode_error", "too_large"):
        return ResultError(message)
    if code == "deadline":
        return CommandTimeout(message)
    if code == "session_lost":
        return SessionLost(message)
    if code == "cancelled":
        return CancelledError(message)
    return CommandError(message, **details)
