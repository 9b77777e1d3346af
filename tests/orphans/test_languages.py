"""A host that is killed leaves no worker of any language: idle, or in an endless loop that cannot look."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from integration.workers.languages import LANGUAGES

from leaks import is_gone, wait_until

LIMIT_S = 60.0
GONE_WITHIN_S = 2.0
HOST = """
import sys, threading
import snakepit
adapter = getattr(snakepit, sys.argv[1])(sys.argv[2], start_args={"model": "m"})
executor = snakepit.SnakepitExecutor(adapter, 2)
executor.wait_ready(timeout=50, workers=2)
executor.submit("spin")
assert 3 == executor.execute("add", {"a": 1, "b": 2})
print(*[worker.pid for worker in executor.workers()], executor.stats().running, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("name", LANGUAGES)
def test_nothing_outlives_a_killed_host(name: str, tmp_path: Path, require_runtime: Callable[[str], str]) -> None:
    """SIGKILL of the host ends an idle worker and one that computes, within two seconds."""
    language = LANGUAGES[name]
    require_runtime(language.adapter.runtime.programs[0])
    handlers = tmp_path / f"handlers{language.adapter.suffixes[0]}"
    handlers.write_text(language.handlers)
    argv = [sys.executable, "-c", HOST, language.adapter.__name__, str(handlers)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as host:
        try:
            assert host.stdout is not None
            *pids, running = map(int, host.stdout.readline().split())
        finally:
            host.kill()
        # A zombie is gone: when the machine reaps what has lost its parent is the machine's affair.
        wait_until(lambda: all(map(is_gone, pids)), GONE_WITHIN_S, f"the end of {pids}")

    assert (2, 1) == (len(pids), running)
