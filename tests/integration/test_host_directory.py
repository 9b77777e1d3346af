"""A host whose directory is removed under it, as deploy tools do with the last release: its pools go on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOST = """
import os, signal, sys
from snakepit import CallableAdapter, PythonAdapter, SnakepitExecutor, WorkerDied

adapter = {"command": PythonAdapter, "callable": CallableAdapter}[sys.argv[1]]()
task = ("echo", {"n": 1}) if sys.argv[1] == "command" else (divmod, 7, 2)
with SnakepitExecutor(adapter, 1) as ex:
    future = ex.submit(*task)
    future.result(30)
    os.rmdir(os.getcwd())
    os.kill(future.pid, signal.SIGKILL)
    try:
        ex.submit(*task).result(30)
    except WorkerDied:
        pass  # it was sent before the end was seen
    ex.submit(*task).result(30)
    assert 1 == ex.stats().restarts, ex.stats()
print("served on")
"""


@pytest.mark.parametrize("kind", ["command", "callable"])
def test_workers_are_replaced_in_a_removed_directory(tmp_path: Path, kind: str) -> None:
    """A worker that is replaced starts where its host is, though that has no name any more."""
    gone = tmp_path / "release"
    gone.mkdir()

    done = subprocess.run(
        [sys.executable, "-c", HOST, kind], cwd=gone, capture_output=True, text=True, timeout=60, check=False
    )

    assert ("served on\n", 0) == (done.stdout, done.returncode), done.stderr
