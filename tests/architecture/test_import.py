"""What ``import snakepit`` costs."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest
from architecture.survey import ROOT, public_modules

import snakepit

LATE = {"asyncio", "click", "loky", "psutil"}
LATER = {"attrs", "concurrent.futures", "logging", "msgspec", "multiprocessing", "threading"}
"""What a program does not pay for before it uses a name of ``snakepit``."""
PROBE = """
import sys, time
before = set(sys.modules)
started = time.perf_counter()
{statement}
elapsed_s = time.perf_counter() - started
loaded = sorted(set(sys.modules) - before)
import json
print(json.dumps([elapsed_s, loaded]))
"""


@pytest.mark.parametrize(
    ("statement", "absent"),
    [("import snakepit", LATE | LATER), ("from snakepit import SnakepitExecutor", LATE)],
)
def test_import_is_light(statement: str, absent: set[str]) -> None:
    """No heavy module is loaded before it is needed; the time is printed, not asserted."""
    argv = [sys.executable, "-c", PROBE.format(statement=statement)]

    runs = [json.loads(subprocess.check_output(argv, cwd=ROOT, timeout=60)) for _ in range(5)]

    median_ms = 1000 * statistics.median(elapsed_s for elapsed_s, _ in runs)
    print(f"{statement}: median {median_ms:.0f} ms")
    assert set() == absent & set(runs[0][1])


def _fresh(expression: str) -> str:
    script = f"import snakepit; before = set(dir(snakepit)); print({expression})"
    return subprocess.check_output([sys.executable, "-c", script], cwd=ROOT, timeout=60, text=True).strip()


def test_every_name_is_there_although_nothing_is_loaded() -> None:
    """Before anything is loaded, ``dir`` knows the names and the public modules, and each can be had."""
    assert "True" == _fresh("set(snakepit.__all__) <= before and '_exports' not in before")
    assert "True" == _fresh("all(getattr(snakepit, name).__name__ == name for name in snakepit.__all__)")
    assert "True" == _fresh("set(dir(snakepit)) >= before and snakepit.SessionStore is snakepit.sessions.SessionStore")
    for name in snakepit._MODULES:
        assert f"snakepit.{name}" == _fresh(f"snakepit.{name}.__name__")


@pytest.mark.parametrize("name", [*public_modules(), "snakepit._pool.settling", "snakepit._cli.doctor"])
def test_each_module_can_be_the_first_to_be_imported(name: str) -> None:
    """No module depends on another one having been imported before it."""
    script = f"import importlib; print(importlib.import_module({name!r}).__name__)"

    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60, text=True, capture_output=True)

    assert (f"{name}\n", "") == (done.stdout, done.stderr)


def test_a_name_that_does_not_exist() -> None:
    """A name that is not ours is an AttributeError as of any module."""
    with pytest.raises(AttributeError, match="module 'snakepit' has no attribute 'Executer'"):
        snakepit.Executer  # noqa: B018
