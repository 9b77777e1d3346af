"""Runs small host programs as processes of their own, for what ends a host or depends on its ``__main__``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ("BOUND_S", "command_line", "environment", "run", "start", "text_of")

BOUND_S = 30.0
"""Seconds a host program may take in all; arbitrary, far above what one takes on a busy machine."""

_TESTS = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """Return the variables of a host program: it finds this checkout and the tests' helpers."""
    paths = [str(_TESTS.parent), str(_TESTS), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    # It would flush what a program forgets to flush, and tear printed lines to pieces.
    variables.pop("PYTHONUNBUFFERED", None)
    return variables


def command_line(directory: Path, source: str, *args: object) -> tuple[str, ...]:
    """Write a host program to a file, so that its functions are those of a real ``__main__``; return how it is run."""
    path = directory / "program.py"
    path.write_text(source)
    return sys.executable, str(path), *map(str, args)


def start(directory: Path, source: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    """Start a host program.

    Args:
        directory: Where the file is written.
        source: The program.
        args: Its command line.
        options: For ``Popen``; pipes by default. ``wrapper``: words before the command line.
    """
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    command = (*options.pop("wrapper", ()), *command_line(directory, source, *args))
    return subprocess.Popen(command, env=environment(), text=True, **options)


def run(directory: Path, source: str, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a host program to its end; it must come within ``BOUND_S``."""
    process = start(directory, source, *args, **options)
    try:
        out, err = process.communicate(timeout=BOUND_S)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out or "", err or "")


def text_of(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    """Return status, output and errors, to be compared in one assertion."""
    return done.returncode, done.stdout, done.stderr
