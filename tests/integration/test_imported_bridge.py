"""What a worker whose bridge was imported, and not run as a script, looks like to the code that it runs."""

from __future__ import annotations

import operator
from pathlib import Path

import pytest
from integration.workers.pools import LIMIT_S

from snakepit import PythonAdapter, SnakepitExecutor

HANDLERS = """
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from snakepit_bridge import command, context

def double(x):
    return 2 * x

@command
def in_a_process(method):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        return list(pool.map(double, [1, 2]))

@command
def main():
    return sorted(set(vars(sys.modules["__main__"])) & {"Runner", "Stream", "main"}), sys.argv[0]
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_handlers_may_start_processes(tmp_path: Path, method: str) -> None:
    """A process that a handler starts finds the handler's module, and the bridge that it imports."""
    path = tmp_path / "with_processes.py"
    path.write_text(HANDLERS)

    with SnakepitExecutor(PythonAdapter(path), 1) as ex:
        doubled = ex.submit("in_a_process", {"method": method}).result(LIMIT_S)
        names, program = ex.submit("main").result(LIMIT_S)

    assert [2, 4] == doubled
    assert "Stream" not in names
    assert program.endswith("snakepit_bridge.py")


def _in_a_process(method: str) -> list[int]:
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        return list(pool.map(operator.neg, [1, 2]))


def test_callables_may_start_processes() -> None:
    """So does one that a callable starts."""
    with SnakepitExecutor(max_workers=1) as ex:
        assert [-1, -2] == ex.submit(_in_a_process, "spawn").result(LIMIT_S)
