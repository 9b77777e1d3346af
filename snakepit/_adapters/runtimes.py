"""Language runtimes: where they are, and whether they are new enough.

Runs on the caller's thread; owns what is known of the programs that are new enough.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from functools import lru_cache

import attrs

from .._programs import find_executable, find_in_path
from ..errors import WorkerStartError

__all__ = ("Runtime", "find_runtime", "read_version")

VERSION_LIMIT_S = 10.0
"""Arbitrary: a JVM on a cold disk takes seconds to tell its version."""


@attrs.frozen
class Runtime:
    """What runs the scripts of a language.

    Attributes:
        language: As people write it, e.g. ``"Ruby"``.
        programs: Names to look for in PATH; the first that is found is used.
        minimum: The oldest version that runs the bridge, e.g. ``(2, 7)``.
        install: Package names by package manager, e.g. ``{"apt": "ruby", "brew": "ruby"}``.
        version_args: With them the program prints its version.
        signature: Pattern, in any case and of lines, of what only this language's programs print before their version;
            None: the first number is the version.
    """

    language: str
    programs: tuple[str, ...]
    minimum: tuple[int, ...]
    install: Mapping[str, str] = attrs.field(eq=False)  # a dict has no hash
    version_args: tuple[str, ...] = ("--version",)
    signature: str | None = None


def find_runtime(
    runtime: Runtime,
    kind: str,
    program: str | None,
    *,
    cwd: str | os.PathLike[str] | None,
    variables: Mapping[str, str],
) -> str:
    """Return the absolute path of a runtime that is new enough.

    Args:
        runtime: What to look for.
        kind: The adapter's class, for messages.
        program: A path or a name that the user gave, or None.
        cwd: Directory from which relative paths count, and in which the program is asked; None: the host's.
        variables: The worker's, with which the program is asked for its version; the PATH among them counts.

    Raises:
        WorkerStartError: There is none, it is too old, or it is another language's; raised here.
    """
    if program is not None:
        path = find_executable(program, kind, cwd=cwd, variables=variables)
    else:
        found = (find_in_path(name, variables) for name in runtime.programs)
        path = next((path for path in found if path is not None), "")
        if not path:
            names = " or ".join(map(repr, runtime.programs))
            how = ", ".join(f"{manager} install {package}" for manager, package in runtime.install.items())
            raise WorkerStartError(
                f"{kind}: no {runtime.language} here: looked for {names} in PATH"
                f" ({variables.get('PATH', os.defpath)}); install it ({how}) or give the path of the program",
                argv=runtime.programs[:1],
            )
    try:
        modified_ns = os.stat(path).st_mtime_ns
    except OSError:
        return path  # its start will say what is wrong
    _check_version(runtime, kind, path, modified_ns, _directory(cwd), frozenset(variables.items()))
    return path


def read_version(runtime: Runtime, told: str) -> str | None:
    """Return the version in what a program told of itself: "" if there is none, None if it is another language's."""
    if runtime.signature is not None:
        said = re.search(runtime.signature, told, re.IGNORECASE | re.MULTILINE)
        if said is None:
            return None
        told = told[said.end() :]
    number = re.search(r"(?<![\w.])v?(\d+(?:\.\d+)*)", told)
    return "" if number is None else number[1]


def _directory(cwd: str | os.PathLike[str] | None) -> str | None:
    try:
        return os.path.abspath(cwd if cwd is not None else os.curdir)
    except FileNotFoundError:  # the host's own is gone
        return None if cwd is None else os.fspath(cwd)


# A shim of rbenv and its like chooses by directory and variables what it becomes.  A refusal is an exception, which
# the cache does not keep: what the shim chooses can change while the shim does not.
@lru_cache(maxsize=64)
def _check_version(
    runtime: Runtime, kind: str, path: str, modified_ns: int, cwd: str | None, variables: frozenset[tuple[str, str]]
) -> None:
    """Refuse a program that is too old or another language's; ``modified_ns`` makes a replaced one another one."""
    told = _ask_version(path, runtime.version_args, cwd, dict(variables))
    if not re.search(r"\d", told):
        return  # its start will say what is wrong
    number = read_version(runtime, told)
    if number is None:
        raise WorkerStartError(
            f"{kind}: {path!r} is not {runtime.language}: asked for its version it said"
            f" {told.strip().splitlines()[0]!r:.100}",
            argv=(path,),
        )
    if not number:
        return
    version = tuple(map(int, number.split(".")))
    if version[: len(runtime.minimum)] < runtime.minimum:
        wanted = ".".join(map(str, runtime.minimum))
        raise WorkerStartError(
            f"{kind}: {path!r} is {runtime.language} {number}, which is too old; {wanted} or newer is needed",
            argv=(path,),
        )


def _ask_version(path: str, arguments: tuple[str, ...], cwd: str | None, variables: Mapping[str, str]) -> str:
    """Return what a program tells of its version when it is started as a worker is, or "" if it tells nothing."""
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_LIMIT_S,
            check=False,
            cwd=cwd,
            env=variables,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode != 0:
        return ""
    return (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace")
