"""The languages whose bridge comes with the project.

Runs on the caller's thread; owns nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Unpack

from .._wire.values import JsonValue
from .._worker_options import WorkerOptions
from .runtimes import Runtime
from .scripts import ScriptAdapter

__all__ = (
    "JavaScriptAdapter",
    "LuaAdapter",
    "PHPAdapter",
    "PerlAdapter",
    "PythonAdapter",
    "RAdapter",
    "RubyAdapter",
)


class PythonAdapter(ScriptAdapter):
    """Python workers with the built-in commands and those of a handlers file.

    Args:
        handlers: A ``.py`` file or a module name, or None for the built-in commands alone.
        python: The interpreter, 3.8 or newer, e.g. that of another virtual environment.
        start_args: JSON value for the handlers file's ``on_start``.
        output: "log" or "inherit".
        options: See ``WorkerOptions``.

    Raises:
        TypeError, ValueError: A bad parameter; raised here.
    """

    runtime = Runtime("Python", ("python3",), (3, 8), {"apt": "python3", "brew": "python"}, ("-V",), r"^python (?=\d)")
    bridge = "python/snakepit_bridge.py"
    suffixes = (".py",)

    def __init__(
        self,
        handlers: str | os.PathLike[str] | None = None,
        *,
        python: str | os.PathLike[str] = sys.executable,
        start_args: JsonValue = None,
        output: str = "log",
        **options: Unpack[WorkerOptions],
    ) -> None:
        super().__init__(handlers, program=python, start_args=start_args, output=output, **options)

    def _check_handlers(self, handlers: str | os.PathLike[str]) -> str:
        if isinstance(handlers, str) and handlers and not handlers.endswith(".py") and os.sep not in handlers:
            return handlers
        return super()._check_handlers(handlers)

    def executable_path(self) -> str:
        """Return the path of the interpreter.

        Raises:
            WorkerStartError: There is none, or it is too old; raised here.
        """
        return sys.executable if self._program == sys.executable else super().executable_path()


class JavaScriptAdapter(ScriptAdapter):
    """Node workers with the built-in commands and those of a handlers file.

    Args:
        handlers: A ``.js``, ``.cjs`` or ``.mjs`` file, or None for the built-in commands alone.
        node: The runtime, 16 or newer.
        start_args: JSON value for the handlers file's ``onStart``.
        output: "log" or "inherit".
        options: See ``WorkerOptions``.

    Raises:
        TypeError, ValueError: A bad parameter; raised here.
    """

    runtime = Runtime("Node", ("node", "nodejs"), (16,), {"apt": "nodejs", "brew": "node"}, signature=r"^(?=v\d)")
    bridge = "javascript/snakepit_bridge.js"
    suffixes = (".js", ".cjs", ".mjs")

    def __init__(
        self,
        handlers: str | os.PathLike[str] | None = None,
        *,
        node: str | os.PathLike[str] | None = None,
        start_args: JsonValue = None,
        output: str = "log",
        **options: Unpack[WorkerOptions],
    ) -> None:
        super().__init__(handlers, program=node, start_args=start_args, output=output, **options)


class RubyAdapter(ScriptAdapter):
    """Ruby workers, 2.7 or newer; parameters as in ``ScriptAdapter``, ``handlers`` is a ``.rb`` file."""

    # JRuby and TruffleRuby tell the Ruby that they are like, after their own version.
    runtime = Runtime(
        "Ruby", ("ruby",), (2, 7), {"apt": "ruby", "brew": "ruby"}, signature=r"\bruby (?=\d)|^jruby \S+ \("
    )
    bridge = "ruby/snakepit_bridge.rb"
    suffixes = (".rb",)


class RAdapter(ScriptAdapter):
    """R workers, 4.0 or newer with jsonlite; parameters as in ``ScriptAdapter``, ``handlers`` is a ``.R`` file."""

    runtime = Runtime(
        "R", ("Rscript",), (4, 0), {"apt": "r-base-core r-cran-jsonlite", "brew": "r"}, signature=r"\bR\b.* version "
    )
    bridge = "r/snakepit_bridge.R"
    suffixes = (".R", ".r")
    default_program_args = ("--vanilla",)


class PerlAdapter(ScriptAdapter):
    """Perl workers, 5.26 or newer; parameters as in ``ScriptAdapter``, ``handlers`` is a ``.pl`` file."""

    runtime = Runtime(
        "Perl", ("perl",), (5, 26), {"apt": "perl", "brew": "perl"}, ("-e", "print qq(perl $^V)"), r"^perl (?=v?\d)"
    )
    bridge = "perl/snakepit_bridge.pl"
    suffixes = (".pl", ".pm")


class PHPAdapter(ScriptAdapter):
    """PHP workers, 8.0 or newer; parameters as in ``ScriptAdapter``, ``handlers`` is a ``.php`` file."""

    runtime = Runtime("PHP", ("php",), (8, 0), {"apt": "php-cli", "brew": "php"}, signature=r"^php (?=\d)")
    bridge = "php/snakepit_bridge.php"
    suffixes = (".php",)
    # Options, so that those of the user come later and win.
    default_program_args = ("-d", "display_errors=stderr", "-d", "memory_limit=-1")


class LuaAdapter(ScriptAdapter):
    """Lua workers, 5.3 or newer; parameters as in ``ScriptAdapter``, ``handlers`` is a ``.lua`` file.

    Lua can neither move a descriptor nor change its environment: the bridge is a script for ``/bin/sh``, which does
    both and becomes Lua.
    """

    runtime = Runtime("Lua", ("lua5.4", "lua5.3", "lua"), (5, 3), {"apt": "lua5.4", "brew": "lua"}, ("-v",), "^lua ")
    bridge = "lua/snakepit_bridge.lua"
    suffixes = (".lua",)

    def executable_path(self) -> str:
        """Return the path of the shell."""
        return "/bin/sh"

    def program_args(self) -> Sequence[str]:
        """Return nothing: the arguments are Lua's."""
        return ()

    def script_args(self) -> Sequence[str]:
        """Return the path of Lua, its arguments, and the bridge's.

        Raises:
            WorkerStartError: There is no Lua, it is too old, or the handlers file is missing; raised here.
        """
        lua = super().executable_path()
        return ("--lua", lua, *super().program_args(), str(self.script_path()), *super().script_args())
