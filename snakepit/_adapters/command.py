"""Workers that are any executable which speaks the frame protocol.

Runs on the caller's thread; owns nothing.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from typing import Unpack

from .._wire.values import JsonValue
from .._worker_options import WorkerOptions
from .base import Adapter

__all__ = ("CommandAdapter",)


class CommandAdapter(Adapter):
    """Any executable that speaks the frame protocol.

    Args:
        argv: The command line, e.g. ``["ruby", "-rtime", "bridge.rb"]``; no shell sees it.
        commands: The commands it has, or None if it answers unknown ones itself.
        level: 0 for a bridge that uses stdin and stdout, 1 for one that opens ``SNAKEPIT_FDS``.
        start_args: JSON value for the worker's ``on_start`` (level 1).
        output: "log" or "inherit".
        options: See ``WorkerOptions``.

    Raises:
        TypeError, ValueError: A bad parameter; raised here.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        commands: Collection[str] | None = None,
        level: int = 0,
        start_args: JsonValue = None,
        output: str = "log",
        **options: Unpack[WorkerOptions],
    ) -> None:
        if isinstance(argv, (str, bytes)) or not argv:
            raise TypeError(f"argv must be a sequence of words, e.g. ['ruby', 'bridge.rb'], not {argv!r}")
        if not all(isinstance(word, (str, os.PathLike)) for word in argv):
            raise TypeError(f"argv must be a sequence of str, not {argv!r}")
        words = tuple(os.fspath(word) for word in argv)
        if isinstance(commands, str):
            raise TypeError(f"commands must be a collection of names, not the str {commands!r}")
        self._argv = words
        self._commands = None if commands is None else frozenset(commands)
        self.level = level
        self.start_args = start_args
        self.output = output
        super().__init__(**options)

    def executable_path(self) -> str:
        """Return the first word of the command line."""
        return self._argv[0]

    def script_args(self) -> Sequence[str]:
        """Return the other words."""
        return self._argv[1:]

    def supported_commands(self) -> Collection[str] | None:
        """Return ``commands``."""
        return self._commands
