"""Each race that the code speaks of has a test that forces it, and each test that a text names exists."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for folder, pattern in (("snakepit", "*.py"), ("bridges", "*.py"), ("bridges", "*.*js"))
    for path in (ROOT / folder).rglob(pattern)
)
COMMENT = re.compile(r"\s*(?:#|//) ?(.*)")
TAG = re.compile(r"[A-Z]+:")
NAMED = re.compile(r"(tests/[\w/]+\.py)::(test_\w+)")
IN_A_PAGE = re.compile(r"\b(test_\w+)::(test_\w+)")


@functools.cache
def functions_of(path: Path) -> frozenset[str]:
    """Return the names of the test functions in a file; none when there is no such file."""
    if not path.exists():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, kinds) and node.name.startswith("test_"))


def races() -> list[tuple[str, str]]:
    """Return (place, text) of every comment with the tag, up to the next tag or the comment's end."""
    found = []
    for path in SOURCES:
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            start = COMMENT.fullmatch(line)
            if start is None or not start[1].startswith("RACE:"):
                continue
            text = [start[1]]
            for following in lines[number + 1 :]:
                more = COMMENT.fullmatch(following)
                if more is None or TAG.match(more[1]):
                    break
                text.append(more[1])
            found.append((f"{path.relative_to(ROOT)}:{number + 1}", " ".join(text)))
    return found


def test_the_tag_is_found() -> None:
    """The search sees the comments: a new way to write them would empty it."""
    marks = sum(path.read_text(encoding="utf-8").count("RACE:") for path in SOURCES)

    assert marks == len(races()) > 15


@pytest.mark.parametrize(("place", "text"), races(), ids=[place for place, _ in races()])
def test_each_race_names_the_test_that_forces_it(place: str, text: str) -> None:
    """A race has numbered steps and the path and name of a test function that exists."""
    named = NAMED.findall(text)

    assert named, f"{place} names no test (tests/.../test_x.py::test_y): {text}"
    for file, test in named:
        assert test in functions_of(ROOT / file), f"{place}: there is no {file}::{test}"
    assert re.search(r"\b1\.|\(1\)", text) and re.search(r"\b2\.|\(2\)", text), f"{place} has no numbered steps"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_tests_named_in_a_page_exist(page: Path) -> None:
    """``module::test`` in the documentation is a test function of a module of that name under tests/."""
    files: dict[str, list[Path]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        files.setdefault(path.stem, []).append(path)

    named = sorted(set(IN_A_PAGE.findall(page.read_text(encoding="utf-8"))))

    missing = [f"{m}::{t}" for m, t in named if not any(t in functions_of(path) for path in files.get(m, []))]
    assert [] == missing
    assert named or page.name != "design.md"
