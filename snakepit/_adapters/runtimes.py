"""Language runtimes: where they are, and whether they are new enough.

Runs on the caller's thread; owns what is known of the versions of programs.
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

__all__ = ("Runtime", "find_runtime")

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
        signature: Pattern, in any case, of what only this language's programs print with their version; None: not told.
    """

    language: str
    programs: tuple[str, ...]
    minimum: tuple[int, ...]
    install: Mapping[str, str]
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
        cwd: Directory from which relative paths count; None: the host's.
        variables: The worker's; the PATH among them is the one that counts.

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
    told = _version_text(path, runtime.version_args)
    number = re.search(r"(?<![\w.])v?(\d+(?:\.\d+)*)", told)
    if number is None:
        return path  # its start will say what is wrong
    if runtime.signature is not None and not re.search(runtime.signature, told, re.IGNORECASE):
        raise WorkerStartError(
            f"{kind}: {path!r} is not {runtime.language}: asked for its version it said"
            f" {told.strip().splitlines()[0]!r:.100}",
            argv=(path,),
        )
    version = tuple(map(int, number[1].split(".")))
    if version[: len(runtime.minimum)] < runtime.minimum:
        wanted = ".".join(map(str, runtime.minimum))
        raise WorkerStartError(
            f"{kind}: {path!r} is {runtime.language} {number[1]}, which is too old; {wanted} or newer is needed",
            argv=(path,),
        )
    return path


def _version_text(path: str, arguments: tuple[str, ...]) -> str:
    """Return what a program tells of its version, or "" if it tells nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return _ask_version(path, arguments, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _ask_version(path: str, arguments: tuple[str, ...], modified_ns: int) -> str:
    """Return what a program answers; ``modified_ns`` makes a replaced program another one."""
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode != 0:
        return ""
    return (done.stdout + b"\n" + done.stderr).decode("utf-8", "replace")
