"""What a process is started with: its program, in PATH or at a path, and its variables.

Runs on the caller's thread; owns nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from .errors import WorkerStartError

__all__ = ("check_program", "check_variables", "find_executable", "from_directory")


def check_program(name: str, value: object) -> str:
    """Return a program as a str, or raise TypeError that calls it ``name``."""
    if not isinstance(value, (str, os.PathLike)) or not (program := os.fspath(value)):
        raise TypeError(f"{name} must be a path or a name in PATH, not {value!r}")
    return str(program)


def from_directory(cwd: str | os.PathLike[str] | None, path: str) -> str:
    """Return a path as a process sees it whose working directory is ``cwd``; None: the host's."""
    return os.path.join(cwd, path) if cwd is not None else path


def find_executable(
    program: object,
    kind: str,
    *,
    cwd: str | os.PathLike[str] | None,
    env: Mapping[str, str] | None,
    inherit_env: bool,
) -> str:
    """Return the absolute path of a program.

    Args:
        program: A path, or a name to find in PATH.
        kind: The adapter's class, for messages.
        cwd: Directory from which relative paths count; None: the host's.
        env: Environment variables added for the worker; a PATH among them is the one that counts.
        inherit_env: The host's environment, and its PATH, counts too.

    Raises:
        TypeError: Neither a path nor a name; raised here.
        WorkerStartError: Not found or not executable; raised here.
    """
    if not isinstance(program, (str, os.PathLike)) or not os.fspath(program):
        raise TypeError(f"{kind}: the program must be a path or a name, not {program!r}")
    name: str = os.fspath(program)
    if os.sep in name:
        name = os.path.abspath(from_directory(cwd, name))
        if not os.path.isfile(name):
            raise WorkerStartError(
                f"{kind}: no program at {name!r}; give the path of an existing one", argv=(name,)
            )
        if not os.access(name, os.X_OK):
            raise WorkerStartError(f"{kind}: {name!r} is not executable (chmod +x it)", argv=(name,))
        return name
    variables = {**(os.environ if inherit_env else {}), **(env or {})}
    found = shutil.which(name, path=variables.get("PATH", os.defpath))
    if found is None:
        raise WorkerStartError(
            f"{kind}: no program {name!r} in PATH; install it or give its path", argv=(name,)
        )
    return os.path.abspath(found)


def check_variables(what: str, variables: object) -> None:
    """Refuse environment variables that no process can be given; values are secrets, so no message shows one.

    Raises:
        TypeError: No mapping of str to str; raised here.
        ValueError: A name with ``=``, an empty one, or a NUL character; raised here.
    """
    if not isinstance(variables, Mapping):
        raise TypeError(f"{what} must map names to values, not {type(variables).__name__}")
    for name, value in variables.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"{what} must map str to str, not {name!r} to {type(value).__name__}")
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise ValueError(f"{what}: no process can be given the variable {name!r} (empty, '=' or NUL character)")
