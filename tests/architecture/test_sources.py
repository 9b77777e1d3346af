"""What no source file may contain, and how long it may be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from architecture.survey import ROOT, modules, text_files

MODULE_LINES = 400
BRIDGE_LINES = 600
BRIDGE_SUFFIXES = {".R", ".go", ".java", ".js", ".lua", ".php", ".pl", ".py", ".rb"}
# A bridge is one file by its own rules; a longer one needs a reason here.
LONGER_BRIDGES: dict[str, int] = {
    # Frames, strict JSON, handlers, sessions, batches, attachments and pickled calls, without a single import
    # from outside the standard library: what ten modules of the host do has to stand in one file here.
    "snakepit_bridge.py": 1770,
    "snakepit_bridge.js": 1210,
    # The same without pickled calls; strict JSON is in no language's library, and in some no JSON at all.
    "snakepit_bridge.rb": 1200,
    "snakepit_bridge.R": 1320,
    "snakepit_bridge.pl": 1200,
    "snakepit_bridge.lua": 1150,
    "snakepit_bridge.php": 1520,
    "snakepit_bridge.go": 2620,
    "SnakepitBridge.java": 2520,
}

MACHINE_PATH = re.compile(r"(^|[^A-Za-z0-9_.])/(work|farm|root|home/[a-z]+)/")
# `asyncio.sleep(0)` gives way to other tasks and does not wait.
SLEEP = re.compile(r"\b(time\.sleep\s*\(|asyncio\.sleep\s*\((?!0\)))|from time import .*\bsleep\b")
LEFT_OVER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
THIS_FILE = Path(__file__)


def matches(pattern: re.Pattern[str], paths: list[Path]) -> list[str]:
    """Return ``file:line: text`` of every line in which the pattern occurs."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in paths
        if path != THIS_FILE
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if pattern.search(line)
    ]


def line_count(path: Path) -> int:
    """Return the number of lines."""
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", modules())
def test_module_is_short(name: str) -> None:
    """No module of the package is longer than a reader can hold in mind."""
    assert line_count(modules()[name]) <= MODULE_LINES


@pytest.mark.parametrize(
    "path",
    [path for path in text_files() if path.parts[-3] == "bridges" and path.suffix in BRIDGE_SUFFIXES],
    ids=lambda path: path.name,
)
def test_bridge_is_short(path: Path) -> None:
    """No bridge is longer than its limit."""
    assert line_count(path) <= LONGER_BRIDGES.get(path.name, BRIDGE_LINES)


def test_no_path_of_a_machine() -> None:
    """No file names a directory that exists on one machine only."""
    assert [] == matches(MACHINE_PATH, text_files())


def test_no_test_sleeps() -> None:
    """Tests wait for events, gates and facts, never for time to pass."""
    assert [] == matches(SLEEP, [path for path in text_files() if ROOT / "tests" in path.parents])


def test_nothing_is_left_to_do() -> None:
    """No source carries a note about unfinished work."""
    suffixes = {".cjs", ".js", ".mjs", ".py", ".rb", ".sh"}
    sources = [path for path in text_files() if path.suffix in suffixes or path.name == "Makefile"]

    assert [] == matches(LEFT_OVER, sources)


def test_top_level_holds_what_is_agreed() -> None:
    """The top level of the repository is a short, fixed list."""
    agreed = {
        "LICENSE",
        "Makefile",
        "README.md",
        "benchmarks",
        "bridges",
        "docs",
        "pyproject.toml",
        "setup.cfg",
        "snakepit",
        "tests",
    }
    built = {"build", "dist"}

    found = {
        entry.name
        for entry in ROOT.iterdir()
        if not entry.name.startswith(".") and not entry.name.endswith(".egg-info")
    }

    assert set() == found - agreed - built
