"""What the workers are: how to start one, which commands it has, how to check and shape a call.

The callbacks run on the caller's thread, except ``environment`` (watchdog) and ``process_response``
(manager).  An adapter owns no process and may serve several pools.
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Unpack

from ._bridges import bridge_path
from ._programs import check_program, find_executable, from_directory, host_variables
from ._wire.values import JsonValue, encode_value
from ._worker_options import Limit, WorkerOptions, WorkerSpec, check_options
from .errors import EncodeError, WorkerStartError

__all__ = (
    "Adapter",
    "CallableAdapter",
    "CommandAdapter",
    "JavaScriptAdapter",
    "PythonAdapter",
    "WorkerOptions",
    "WorkerSpec",
)


class Adapter(ABC):
    """Says what a worker is; subclass it for a language or program of your own.

    The attributes below, and those of ``WorkerOptions``, may be set on the class or on the instance.  An
    exception in a callback hurts the call it was made for, no other.

    Args:
        options: See ``WorkerOptions``.

    Raises:
        TypeError, ValueError: A bad parameter; raised here.

    Attributes:
        level: 0: frames on stdin and stdout, as in Snakepit 0.1.2.  1: on pipes of their own
            (``SNAKEPIT_FDS``), and the capabilities that the worker announces.
        output: What becomes of the worker's stdout and stderr: "log" (lines to the logger
            ``snakepit.worker``) or "inherit" (the host's stdout and stderr).
        start_args: JSON value for the worker's ``on_start``.
    """

    level: int = 0
    output: str = "log"
    start_args: JsonValue = None
    runs_callables: ClassVar[bool] = False
    env: Mapping[str, str] | None = None
    inherit_env: bool | Collection[str] = True
    threads: int | str | None = "auto"
    cwd: str | os.PathLike[str] | None = None
    umask: int | None = None
    nice: int = 0
    rlimits: Mapping[str, Limit] | None = None

    def __init__(self, **options: Unpack[WorkerOptions]) -> None:
        for name, value in options.items():
            if name not in WorkerOptions.__annotations__:
                known = ", ".join(WorkerOptions.__annotations__)
                raise TypeError(f"{type(self).__name__} has no parameter {name!r}; every adapter has {known}")
            if name != "wrap" or value is not None:
                setattr(self, name, value)
        _check_common(self)

    @abstractmethod
    def executable_path(self) -> str:
        """Return the program: a path, or a name to find in PATH.

        Raises:
            WorkerStartError: Not found or not executable; comes out of the executor's constructor.
        """

    def script_path(self) -> str | None:
        """Return the script that the program runs, or None."""
        return None

    def script_args(self) -> Sequence[str]:
        """Return the arguments after the script."""
        return ()

    def environment(self, worker: WorkerSpec) -> Mapping[str, str]:
        """Return more environment variables for one worker, e.g. ``CUDA_VISIBLE_DEVICES`` by ``worker.slot``."""
        return {}

    def wrap(self, argv: tuple[str, ...], worker: WorkerSpec) -> Sequence[str]:
        """Return the command line that runs ``argv`` inside another program, e.g. ``["bwrap", ..., "--", *argv]``.

        That program inherits the worker's environment, directory, descriptors and limits.  It has to become the
        worker, or to wait for it and end as it ends.  An exception is a failed start.

        Args:
            argv: The worker's own command line, its program an absolute path.
            worker: The one to start.
        """
        return argv

    def supported_commands(self) -> Collection[str] | None:
        """Return the commands; None leaves it to the worker to refuse unknown ones."""
        return None

    def validate_command(self, command: str, args: JsonValue) -> None:  # noqa: B027  # no check accepts all
        """Raise ``InvalidArguments`` or ``UnknownCommand`` for a call that cannot succeed; comes out of ``submit``."""

    def prepare_args(self, command: str, args: JsonValue) -> JsonValue:
        """Return the args as they are to be encoded."""
        return args

    def command_timeout(self, command: str, args: JsonValue) -> float | None:
        """Return the seconds that this call may run, None for no limit; not overridden: the pool's ``timeout``."""
        return None

    def process_response(self, command: str, result: JsonValue) -> JsonValue:
        """Return the result as the future gets it; runs on the pool's thread, so it must be quick."""
        return result

    def argv(self) -> tuple[str, ...]:
        """Return the whole command line, checked.

        Raises:
            WorkerStartError: The program or script is not there; raised here.
            TypeError, ValueError: A bad attribute (``level``, ``env``, ``start_args``, ...); raised here.
        """
        _check_common(self)
        variables = {**host_variables(self.inherit_env), **(self.env or {})}
        program = find_executable(self.executable_path(), type(self).__name__, cwd=self.cwd, variables=variables)
        script = self.script_path()
        if script is not None and not os.path.isfile(from_directory(self.cwd, script)):
            raise WorkerStartError(f"{type(self).__name__}: no script {script!r}", argv=(program, script))
        args = [str(arg) for arg in self.script_args()]
        return (program, *([script] if script is not None else []), *args)


def _check_common(adapter: Adapter) -> None:
    """Validate what every adapter takes; TypeError or ValueError name the parameter."""
    kind = type(adapter).__name__
    if adapter.output not in ("log", "inherit"):
        raise ValueError(f"{kind}: output must be 'log' or 'inherit', not {adapter.output!r}")
    if adapter.level not in (0, 1) or isinstance(adapter.level, bool):
        raise ValueError(f"{kind}: level must be 0 or 1, not {adapter.level!r}")
    check_options(kind, adapter)
    _, attachments = encode_value(adapter.start_args, "/start_args")
    if attachments:
        raise EncodeError(
            f"{kind}: {attachments[0][0]}: bytes cannot be sent at the start; encode them as text"
        )


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


class _BridgeAdapter(Adapter):
    """A worker that runs one of the project's own bridges, with an optional handlers file."""

    level = 1
    _bridge: ClassVar[str]
    _suffixes: ClassVar[tuple[str, ...]]
    _modules: ClassVar[bool]

    def __init__(
        self,
        program: str,
        handlers: str | os.PathLike[str] | None,
        start_args: JsonValue,
        output: str,
        **options: Unpack[WorkerOptions],
    ) -> None:
        self._program = program
        self._handlers = None if handlers is None else self._check_handlers(handlers)
        self.start_args = start_args
        self.output = output
        super().__init__(**options)

    def _check_handlers(self, handlers: str | os.PathLike[str]) -> str:
        kind = type(self).__name__
        if not isinstance(handlers, (str, os.PathLike)) or not os.fspath(handlers):
            raise TypeError(f"{kind}: handlers must be the path of a file, not {handlers!r}")
        name = os.fspath(handlers)
        if not name.endswith(self._suffixes) and os.sep not in name and self._modules:
            return name
        if not name.endswith(self._suffixes):
            raise ValueError(f"{kind}: handlers must be a {' or '.join(self._suffixes)} file, not {name!r}")
        return os.path.abspath(name)

    def executable_path(self) -> str:
        """Return the interpreter."""
        return self._program

    def script_path(self) -> str | None:
        """Return the bridge's file."""
        return str(bridge_path(self._bridge))

    def script_args(self) -> Sequence[str]:
        """Return the bridge's arguments."""
        if self._handlers is None:
            return ()
        if os.sep in self._handlers and not os.path.isfile(self._handlers):
            raise WorkerStartError(f"{type(self).__name__}: no handlers file {self._handlers!r}")
        return ("--handlers", self._handlers)


class PythonAdapter(_BridgeAdapter):
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

    _bridge = "python/snakepit_bridge.py"
    _suffixes = (".py",)
    _modules = True

    def __init__(
        self,
        handlers: str | os.PathLike[str] | None = None,
        *,
        python: str | os.PathLike[str] = sys.executable,
        start_args: JsonValue = None,
        output: str = "log",
        **options: Unpack[WorkerOptions],
    ) -> None:
        super().__init__(check_program("python", python), handlers, start_args, output, **options)


class JavaScriptAdapter(_BridgeAdapter):
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

    _bridge = "javascript/snakepit_bridge.js"
    _suffixes = (".js", ".cjs", ".mjs")
    _modules = False

    def __init__(
        self,
        handlers: str | os.PathLike[str] | None = None,
        *,
        node: str | os.PathLike[str] = "node",
        start_args: JsonValue = None,
        output: str = "log",
        **options: Unpack[WorkerOptions],
    ) -> None:
        super().__init__(check_program("node", node), handlers, start_args, output, **options)


class CallableAdapter(Adapter):
    """Python workers that run callables, as those of ``ProcessPoolExecutor`` do.

    Args:
        initializer: Called once in each worker before it serves; if it raises, the pool is broken.
        initargs: Its arguments; locks and queues made by ``SnakepitExecutor.mp_context`` may be among them.
        mp_context: loky's context (default) or a ``spawn`` context of multiprocessing.
        output: "inherit" (as in ``ProcessPoolExecutor``) or "log".
        options: See ``WorkerOptions``; the directory is also that of ``os.getcwd()`` in a call, not of ``sys.path``.

    Raises:
        TypeError, ValueError: A bad parameter, a fork or forkserver context included; raised here.
    """

    level = 1
    runs_callables: ClassVar[bool] = True

    def __init__(
        self,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        mp_context: Any = None,
        *,
        output: str = "inherit",
        **options: Unpack[WorkerOptions],
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {initializer!r}")
        self.initializer = initializer
        self.initargs = tuple(initargs)
        self.mp_context = mp_context
        self.output = output
        super().__init__(**options)

    def executable_path(self) -> str:
        """Return the host's own interpreter."""
        return sys.executable

    def script_path(self) -> str | None:
        """Return the Python bridge's file."""
        return str(bridge_path("python/snakepit_bridge.py"))

    def script_args(self) -> Sequence[str]:
        """Return the switch to callables."""
        return ("--callables",)
