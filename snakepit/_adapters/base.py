"""What every adapter is: how to start a worker, which commands it has, how to check and shape a call.

The callbacks run on the caller's thread, except ``environment`` (watchdog) and ``process_response``
(manager).  An adapter owns no process and may serve several pools.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Unpack

from .._programs import find_executable, from_directory, host_variables
from .._wire.values import JsonValue, encode_value
from .._worker_options import Limit, WorkerOptions, WorkerSpec, check_options
from ..errors import EncodeError, WorkerStartError

__all__ = ("Adapter",)


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

    def program_args(self) -> Sequence[str]:
        """Return the arguments before the script, e.g. those of an interpreter."""
        return ()

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
        program = find_executable(
            self.executable_path(), type(self).__name__, cwd=self.cwd, variables=self._variables()
        )
        script = self.script_path()
        if script is not None and not os.path.isfile(from_directory(self.cwd, script)):
            raise WorkerStartError(f"{type(self).__name__}: no script {script!r}", argv=(program, script))
        before, after = ([str(arg) for arg in args] for args in (self.program_args(), self.script_args()))
        return (program, *before, *([script] if script is not None else []), *after)

    def _variables(self) -> dict[str, str]:
        """Return the variables of every worker, without those of one alone."""
        return {**host_variables(self.inherit_env), **(self.env or {})}


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
        raise EncodeError(f"{kind}: {attachments[0][0]}: bytes cannot be sent at the start; encode them as text")
