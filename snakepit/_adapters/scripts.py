"""Workers that run a script of one language: the common part of the languages' adapters.

Runs on the caller's thread; owns nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar, Unpack

from .._bridges import bridge_path
from .._programs import check_program
from .._wire.values import JsonValue
from .._worker_options import WorkerOptions
from ..errors import WorkerStartError
from .base import Adapter
from .runtimes import Runtime, find_runtime

__all__ = ("ScriptAdapter",)


class ScriptAdapter(Adapter):
    """A language: its runtime runs a bridge, the bridge runs a file of handlers; subclass it for another one.

    Args:
        handlers: The file with the handlers, or None for the built-in commands alone.
        program: Path of the runtime, or its name in PATH; None: the first of ``runtime.programs`` in PATH.
        program_args: Arguments of the runtime, before the bridge's file.
        start_args: JSON value for the handlers' ``on_start``.
        output: "log" or "inherit".
        options: See ``WorkerOptions``.

    Raises:
        TypeError, ValueError: A bad parameter; raised here.

    Attributes:
        runtime: What runs the scripts.
        bridge: The bridge's file: an absolute path, or one inside the project's ``bridges`` folder.
        suffixes: How the name of a handlers file may end.
        default_program_args: Arguments that the runtime always gets.
    """

    level = 1
    runtime: ClassVar[Runtime]
    bridge: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    default_program_args: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        handlers: str | os.PathLike[str] | None = None,
        *,
        program: str | os.PathLike[str] | None = None,
        program_args: Sequence[str] = (),
        start_args: JsonValue = None,
        output: str = "log",
        **options: Unpack[WorkerOptions],
    ) -> None:
        self._program = None if program is None else check_program("program", program)
        self._program_args = _check_words(type(self).__name__, program_args)
        self._handlers = None if handlers is None else self._check_handlers(handlers)
        self.start_args = start_args
        self.output = output
        super().__init__(**options)

    def _check_handlers(self, handlers: str | os.PathLike[str]) -> str:
        """Return the path of the handlers file."""
        kind = type(self).__name__
        if not isinstance(handlers, (str, os.PathLike)) or not os.fspath(handlers):
            raise TypeError(f"{kind}: handlers must be the path of a file, not {handlers!r}")
        name = os.fspath(handlers)
        if not name.endswith(self.suffixes):
            raise ValueError(f"{kind}: handlers must be a {' or '.join(self.suffixes)} file, not {name!r}")
        return os.path.abspath(name)

    def executable_path(self) -> str:
        """Return the path of the runtime.

        Raises:
            WorkerStartError: There is none, or it is too old; raised here.
        """
        return find_runtime(self.runtime, type(self).__name__, self._program, cwd=self.cwd, variables=self._variables())

    def program_args(self) -> Sequence[str]:
        """Return the arguments of the runtime."""
        return (*self.default_program_args, *self._program_args)

    def script_path(self) -> str | None:
        """Return the bridge's file."""
        return self.bridge if os.path.isabs(self.bridge) else str(bridge_path(self.bridge))

    def script_args(self) -> Sequence[str]:
        """Return the bridge's arguments."""
        if self._handlers is None:
            return ()
        if os.sep in self._handlers and not os.path.isfile(self._handlers):
            raise WorkerStartError(f"{type(self).__name__}: no handlers file {self._handlers!r}")
        return ("--handlers", self._handlers)


def _check_words(kind: str, words: Sequence[str]) -> tuple[str, ...]:
    if isinstance(words, (str, bytes)) or not all(isinstance(word, str) for word in words):
        raise TypeError(f"{kind}: program_args must be a sequence of str, e.g. ['-I', 'lib'], not {words!r}")
    return tuple(words)
