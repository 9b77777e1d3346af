"""Every exception that snakepit raises or sets on a future; each class says who is at fault.

Runs on any thread and owns no state.  Each class subclasses the built-in exception that a caller
of ``concurrent.futures`` would expect, so code written for the standard pools keeps working.
"""

from __future__ import annotations

import queue
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ._text import escape_text

__all__ = (
    "CommandError",
    "CommandTimeout",
    "EncodeError",
    "InternalError",
    "InvalidArguments",
    "PoolBroken",
    "ProtocolError",
    "QueueFull",
    "QueueTimeout",
    "RemoteTraceback",
    "ResultError",
    "SessionBusy",
    "SessionError",
    "SessionExists",
    "SessionLost",
    "SessionNotFound",
    "SessionQuotaExceeded",
    "SnakepitError",
    "UnknownCommand",
    "WorkerDied",
    "WorkerStartError",
)


class SnakepitError(Exception):
    """Base class of everything that snakepit raises on purpose."""


class RemoteTraceback(Exception):
    """Carries a traceback from a worker as text, as the ``__cause__`` of the exception it explains.

    Args:
        text: The formatted traceback as the worker sent it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{escape_text(self.text, keep_layout=True)}"""'


class CommandError(SnakepitError):
    """The command failed in the worker (the handler is at fault); set on the future.

    Args:
        message: The worker's own words.
        code: The protocol's error code, e.g. ``"handler_error"``.
        type: The exception's class name in the worker, or None.
        remote_traceback: The traceback as text, or None.
        data: JSON value that the handler attached to its exception, or None.

    Attributes:
        code: See Args.
        type: See Args.
        message: See Args.
        remote_traceback: See Args.
        data: See Args.
    """

    default_code = "handler_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        type: str | None = None,
        remote_traceback: str | None = None,
        data: Any = None,
    ) -> None:
        message = str(message)  # adapters write `raise InvalidArguments(error) from error`
        super().__init__(message)
        self.message = message
        self.code = self.default_code if code is None else code
        self.type = type
        self.remote_traceback = remote_traceback
        self.data = data
        if remote_traceback:
            self.__cause__ = RemoteTraceback(remote_traceback)

    def __str__(self) -> str:
        raised = self.type and self.code in ("handler_error", "initializer_error")
        # What a worker says may end in a terminal or a log; `message` has it unchanged.
        return escape_text(f"{self.type}: {self.message}" if raised else self.message, keep_layout=True)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_command_error, (
            type(self), self.message, self.code, self.type, self.remote_traceback, self.data,
        )  # fmt: skip


def _rebuild_command_error(
    cls: type[CommandError], message: str, code: str, type_name: str | None, trace: str | None, data: Any
) -> CommandError:
    return cls(message, code=code, type=type_name, remote_traceback=trace, data=data)


class UnknownCommand(CommandError, LookupError):
    """No such command: raised by ``submit`` where the adapter knows its commands, else set on the future."""

    default_code = "unknown_command"


class InvalidArguments(CommandError, ValueError):
    """The arguments do not fit the command: raised by ``submit``, or set on the future (by the worker)."""

    default_code = "bad_args"


class EncodeError(SnakepitError, ValueError):
    """The arguments cannot be sent; the message names the path to the value.

    Raised by ``submit``; in ``map`` it stands at the item's place.
    """


class ResultError(SnakepitError, ValueError):
    """The worker's result cannot be sent back, or is too large; set on the future, the worker lives on."""


class QueueFull(SnakepitError, queue.Full):
    """The pool is saturated (``max_queue_size`` or ``max_queued_bytes``); raised by ``submit``."""


class QueueTimeout(SnakepitError, TimeoutError):
    """The request waited longer than its ``queue_timeout`` and never ran; set on the future."""


class CommandTimeout(SnakepitError, TimeoutError):
    """The command ran longer than its ``timeout`` and its worker was ended; set on the future."""


class WorkerDied(BrokenProcessPool, SnakepitError):
    """The worker ended while it ran this request; set on that future only, the pool goes on.

    Args:
        message: What happened, with the pool's numbers.
        pid: The worker's process id.
        exit_code: Its exit status, or None when a signal ended it.
        signal: The signal's number, or None.
        stderr_tail: The last bytes it wrote to stderr, as escaped text.
    """

    def __init__(
        self,
        message: str,
        *,
        pid: int | None = None,
        exit_code: int | None = None,
        signal: int | None = None,
        stderr_tail: str = "",
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.exit_code = exit_code
        self.signal = signal
        self.stderr_tail = stderr_tail

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_worker_died, (
            str(self), self.pid, self.exit_code, self.signal, self.stderr_tail,
        )  # fmt: skip


def _rebuild_worker_died(
    message: str, pid: int | None, exit_code: int | None, signal: int | None, tail: str
) -> WorkerDied:
    return WorkerDied(message, pid=pid, exit_code=exit_code, signal=signal, stderr_tail=tail)


class WorkerStartError(SnakepitError):
    """A worker could not start or its handshake was bad; from the constructor, ``wait_ready``, or as a cause.

    Args:
        message: What happened.
        argv: The command line that was run.
        exit_code: Its exit status, or None.
        signal: The signal that ended it, or None.
        stderr_tail: The last bytes it wrote to stderr, as escaped text.
    """

    def __init__(
        self,
        message: str,
        *,
        argv: tuple[str, ...] = (),
        exit_code: int | None = None,
        signal: int | None = None,
        stderr_tail: str = "",
    ) -> None:
        super().__init__(message)
        self.argv = argv
        self.exit_code = exit_code
        self.signal = signal
        self.stderr_tail = stderr_tail


class ProtocolError(SnakepitError):
    """The worker broke the frame protocol; set on the request in flight, the worker is replaced."""


class PoolBroken(BrokenProcessPool, SnakepitError):
    """The pool cannot serve: its restart budget is spent, an initializer failed, or its host forked.

    Set on every pending future and raised by ``submit``; ``__cause__`` is the last cause.
    ``SnakepitExecutor.recycle()`` heals a pool whose restart budget was spent.
    """


class SessionError(SnakepitError):
    """Base class of what can go wrong with a session."""


class SessionNotFound(SessionError, KeyError):
    """No such session or program in the store; raised here."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class SessionExists(SessionError):
    """A session of that id exists already; raised by ``SessionStore.create``."""


class SessionBusy(SessionError):
    """A ``fail_fast`` session's worker has work; set on the future."""


class SessionLost(SessionError):
    """The worker that held the session's state is gone; set on what waited, else on the next request."""


class SessionQuotaExceeded(SessionError):
    """More sessions than ``max_sessions``; raised by the store, set on the future for affinity."""


class InternalError(SnakepitError):
    """A bug in snakepit: please report it with the message."""
