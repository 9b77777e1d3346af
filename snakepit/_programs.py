"""What a process is started with: its program, in PATH or at a path, and its variables.

Runs on the caller's thread; owns nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from .errors import WorkerStartError

__all__ = (
    "THREAD_VARIABLES",
    "check_inheritance",
    "check_program",
    "check_threads",
    "check_variables",
    "find_executable",
    "find_in_path",
    "from_directory",
    "host_variables",
    "worker_variables",
)

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
"""What numerical libraries read when they are loaded.  Source: joblib, _parallel_backends.py."""

_FOLLOW_OMP = frozenset(THREAD_VARIABLES[1:5])
"""Their own variable wins over OMP_NUM_THREADS, which they use without it."""


def check_program(name: str, value: object) -> str:
    """Return a program as a str, or raise TypeError that calls it ``name``."""
    if not isinstance(value, (str, os.PathLike)) or not (program := os.fspath(value)):
        raise TypeError(f"{name} must be a path or a name in PATH, not {value!r}")
    return str(program)


def from_directory(cwd: str | os.PathLike[str] | None, path: str) -> str:
    """Return a path as a process sees it whose working directory is ``cwd``; None: the host's."""
    return os.path.join(cwd, path) if cwd is not None else path


def find_executable(
    program: object, kind: str, *, cwd: str | os.PathLike[str] | None, variables: Mapping[str, str]
) -> str:
    """Return the absolute path of a program.

    Args:
        program: A path, or a name to find in PATH.
        kind: The adapter's class, for messages.
        cwd: Directory from which relative paths count; None: the host's.
        variables: The worker's; the PATH among them is the one that counts.

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
    found = find_in_path(name, variables)
    if found is None:
        raise WorkerStartError(
            f"{kind}: no program {name!r} in PATH; install it or give its path", argv=(name,)
        )
    return found


def find_in_path(name: str, variables: Mapping[str, str]) -> str | None:
    """Return the absolute path of a program in the PATH among ``variables``, or None."""
    found = shutil.which(name, path=variables.get("PATH", os.defpath))
    return None if found is None else os.path.abspath(found)


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


def check_inheritance(what: str, inherit_env: object) -> None:
    """Refuse what is neither a bool nor a collection of names.

    Raises:
        TypeError: Another type, a str included; raised here.
        ValueError: A name that no variable can have; raised here.
    """
    if isinstance(inherit_env, bool):
        return
    if isinstance(inherit_env, (str, bytes)) or not isinstance(inherit_env, Collection):
        raise TypeError(
            f"{what} must be True, False, or a collection of names such as ['PATH', 'LC_*'], not {inherit_env!r}"
        )
    for name in inherit_env:
        if not isinstance(name, str):
            raise TypeError(f"{what}: a name must be a str, not {name!r}")
        if not name or "=" in name or "\0" in name:
            raise ValueError(f"{what}: no variable is called {name!r} (empty, '=' or NUL character)")


def check_threads(what: str, threads: object) -> None:
    """Refuse a number of threads that is none; TypeError or ValueError."""
    if threads is None or threads == "auto":
        return
    if not isinstance(threads, int) or isinstance(threads, bool):
        raise TypeError(f"{what} must be an int >= 1, 'auto', or None to set nothing, not {threads!r}")
    if threads < 1:
        raise ValueError(f"{what} must be >= 1, or None to set nothing, not {threads}")


def host_variables(inherit_env: bool | Collection[str]) -> dict[str, str]:
    """Return what a worker gets of the host's environment: all, nothing, or what a name or pattern fits."""
    if isinstance(inherit_env, bool):
        return dict(os.environ) if inherit_env else {}
    return {
        name: value
        for name, value in os.environ.items()
        if any(fnmatchcase(name, pattern) for pattern in inherit_env)
    }


def worker_variables(
    host: Mapping[str, str], threads: int | str | None, env: Mapping[str, str], own: Mapping[str, str]
) -> dict[str, str]:
    """Return a worker's environment; what is said last and nearest wins.

    Args:
        host: What it gets of the host's.
        threads: A number: of every thread pool, whatever the host has. "auto": 1 where neither the host nor the
            adapter has a say.  None: nothing is set.
        env: The adapter's, for all workers.
        own: The adapter's, for this one.
    """
    said = {**host, **env, **own}
    if threads is None:
        return said
    if threads == "auto":
        # Who has set OMP_NUM_THREADS means these libraries too, and a variable of their own would overrule it.
        left_alone = _FOLLOW_OMP if "OMP_NUM_THREADS" in said else ()
        return {**{name: "1" for name in THREAD_VARIABLES if name not in left_alone}, **said}
    return {**host, **dict.fromkeys(THREAD_VARIABLES, str(threads)), **env, **own}
