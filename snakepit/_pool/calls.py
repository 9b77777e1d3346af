"""From a user's call to an encoded request: options checked, adapter asked, arguments encoded.

Runs on the caller's thread; owns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from .._clock import INHERIT, check_timeout, pick_timeout
from .._wire import callables as _callables
from .._wire.outgoing import CommandContent, encode_command
from .._wire.values import JsonValue
from ..adapters import Adapter
from ..config import PoolConfig
from ..errors import EncodeError, UnknownCommand
from .contents import CallContent

__all__ = ("COMMAND_KEYWORDS", "CallOptions", "Encoder", "check_session_id")

COMMAND_KEYWORDS = frozenset(("session", "timeout", "queue_timeout", "priority"))


def check_session_id(value: object) -> str:
    """Return a session id, or raise TypeError / ValueError that names it."""
    if not isinstance(value, str):
        raise TypeError(f"session must be a non-empty str, not {value!r} ({type(value).__name__})")
    if not value:
        raise ValueError("session must be a non-empty str, not ''")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"session {value!r} holds a lone surrogate, which is not UTF-8") from None
    return value


@attrs.frozen
class CallOptions:
    """How a request is to be treated; time-outs in seconds, None for no limit.

    Attributes:
        explicit_timeout: True when ``timeout`` was given with the call and goes before the adapter's.
    """

    session: str | None = None
    timeout: float | None = None
    queue_timeout: float | None = None
    priority: int = 0
    affinity: str | None = None
    ttl_s: float | None = None
    setup: tuple[Any, ...] = ()
    explicit_timeout: bool = False

    def override(self, given: Mapping[str, Any]) -> CallOptions:
        """Return these options with those of a call.

        Raises:
            TypeError, ValueError: An unknown keyword or a bad value, named; raised here.
        """
        if not given:
            return self
        if not COMMAND_KEYWORDS.issuperset(given):
            unknown = next(name for name in given if name not in COMMAND_KEYWORDS)
            raise TypeError(
                f"submit() got an unexpected keyword argument {unknown!r};"
                f" a command takes {', '.join(sorted(COMMAND_KEYWORDS))}, and its arguments in one value"
            )
        session = given.get("session")
        if session is not None and self.session is not None and session != self.session:
            raise TypeError(f"this view belongs to session {self.session!r}; use the executor for {session!r}")
        timeout = given.get("timeout", INHERIT)
        priority = given.get("priority", self.priority)
        if type(priority) is not int:
            raise TypeError(f"priority must be an int, not {priority!r} ({type(priority).__name__})")
        return CallOptions(
            session=self.session if session is None else check_session_id(session),
            timeout=pick_timeout("timeout", timeout, self.timeout),
            queue_timeout=pick_timeout("queue_timeout", given.get("queue_timeout", INHERIT), self.queue_timeout),
            priority=priority,
            affinity=self.affinity,
            ttl_s=self.ttl_s,
            setup=self.setup,
            explicit_timeout=self.explicit_timeout or timeout is not INHERIT,
        )


class Encoder:
    """Checks and encodes the calls of one pool.

    Args:
        adapter: Its callbacks are called in order: validate, prepare, (encode), time-out.
        config: The limits.

    Attributes:
        max_frame_bytes: Longest frame of a command.
        has_plain_args: Nothing of the adapter's looks at commands and args before they are encoded.
        has_plain_results: Commands have no time-outs of the adapter's, and results no shape of its own.
    """

    def __init__(self, adapter: Adapter, config: PoolConfig) -> None:
        kind = type(adapter)
        self._adapter = adapter
        self._config = config
        self.max_frame_bytes = config.max_frame_bytes
        # A callback that is not overridden costs nothing per call.
        self._lists = kind.supported_commands is not Adapter.supported_commands
        self._validates = kind.validate_command is not Adapter.validate_command
        self._prepares = kind.prepare_args is not Adapter.prepare_args
        self._times = kind.command_timeout is not Adapter.command_timeout
        self.has_plain_args = not (self._lists or self._validates or self._prepares)
        self.has_plain_results = (
            not self._times and kind.process_response is Adapter.process_response and not adapter.runs_callables
        )

    def command(self, command: str, args: JsonValue, options: CallOptions) -> tuple[CommandContent, float | None]:
        """Return a command, encoded, and the seconds it may run.

        Raises:
            EncodeError, UnknownCommand, InvalidArguments, TypeError, ValueError: As in ``submit``; raised here.
        """
        adapter, config = self._adapter, self._config
        if adapter.runs_callables:
            raise TypeError(
                f"the pool runs callables, not commands: {command!r} was submitted;"
                " give the executor a PythonAdapter, JavaScriptAdapter or CommandAdapter for commands"
            )
        if not command:
            raise ValueError("the command must be a non-empty str, not ''")
        if self._lists:
            known = adapter.supported_commands()
            if known is not None and command not in known:
                names = ", ".join(sorted(known))
                raise UnknownCommand(f"Unknown command: {command!r}. Available: {names}", type="UnknownCommand")
        if self._validates:
            adapter.validate_command(command, args)
        if self._prepares:
            args = adapter.prepare_args(command, args)
        timeout_s = options.timeout
        if self._times and not options.explicit_timeout:
            timeout_s = check_timeout("command_timeout()", adapter.command_timeout(command, args))
        try:
            content = encode_command(
                command,
                args,
                session_id=options.session,
                max_frame_bytes=config.max_frame_bytes,
                max_message_bytes=config.max_message_bytes,
            )
        except UnicodeEncodeError:
            raise EncodeError(f"the command {command!r} holds a lone surrogate, which is not UTF-8") from None
        if content.raw and adapter.level == 0:
            raise EncodeError(
                f"/args: bytes cannot be sent to a level 0 worker (command {command!r}); encode them as text"
            )
        return content, timeout_s

    def call(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        calls: list[tuple[Any, ...]] | None,
        session_id: str | None,
        lazy: bool,
    ) -> tuple[CallContent, str, BaseException | None]:
        """Return a call (or, with ``calls``, a chunk), its name for messages, and what its pickling raised.

        Args:
            lazy: Keep references and pickle when the call's turn comes.

        Raises:
            TypeError: Not callable, or the pool runs commands; raised here.
        """
        if not self._adapter.runs_callables:
            what = getattr(fn, "__qualname__", None) or repr(fn)
            raise TypeError(
                f"the pool runs commands of {type(self._adapter).__name__}, not callables: {what} was submitted;"
                " give the command's name, or use a SnakepitExecutor without an adapter"
            )
        if not callable(fn):
            raise TypeError(f"submit() takes a command's name or a callable, not {fn!r} ({type(fn).__name__})")
        name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        if calls is None:
            content = CallContent("call", lambda: _callables.encode_call(fn, args, dict(kwargs)), None, session_id)
        else:
            content = CallContent("chunk", lambda: _callables.encode_chunk(fn, calls), None, session_id)
        if not lazy:
            try:
                content.body = content.encode()
            except Exception as error:
                return content, name, error
            limit = self._config.max_message_bytes
            if len(content.body) > limit:
                size = len(content.body)
                return (
                    content,
                    name,
                    EncodeError(f"{name}: {size} bytes of pickled call (max_message_bytes is {limit})"),
                )
            content.encode = _pickled
        return content, name, None

    def setup_step(self, step: tuple[Any, ...], session_id: str) -> tuple[str, Any]:
        """Return one set-up command or call of a session as (name, encoded).

        Raises:
            TypeError, EncodeError: Not a ``(command, args)`` pair or ``(fn, *args)``, or not sendable; raised here.
        """
        if not isinstance(step, (tuple, list)) or not step:
            raise TypeError(f"a set-up step must be (command, args) or (fn, *args), not {step!r:.200}")
        first, *rest = step
        if isinstance(first, str):
            if len(rest) > 1:
                raise TypeError(f"a set-up step of {first!r} takes one args value, not {len(rest)}")
            content, _ = self.command(first, rest[0] if rest else {}, CallOptions(session=session_id))
            return first, content
        call, name, error = self.call(first, tuple(rest), {}, None, session_id, False)
        if error is not None:
            raise error
        return name, call


def _pickled() -> bytes:
    raise AssertionError("the call is pickled already")
