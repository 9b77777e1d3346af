"""The code in README.md and docs/ runs as written.

The convention, one process and one empty directory a page, blocks in their order:

- a ``python`` block runs, and shares its names with the page's earlier blocks;
- a block of any language in RUNTIMES whose first line is a comment ``# file: name.py`` (or ``// file: name.js``,
  ``-- file: name.lua``, ``<?php // file: name.php``) is written into the directory, not run;
- a block after the comment ``<!-- no-run: reason -->`` is left alone, and a missing reason is an error;
- a page that needs a runtime (it writes a file of its language) is skipped, or fails with ``CI=true``, without it;
- blocks of other languages are not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "languages").glob("*.md")),
]
PAGE_LIMIT_S = 100

FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,})(?P<language>[^\s`]*)[^`]*$")
NO_RUN = re.compile(r"<!--\s*no-run:\s*(?P<reason>.*?)\s*-->")
FILE_LINE = re.compile(r"(?:<\?php )?(?:#|//|--) file: (?P<name>[\w.-]+)$")
RUNTIMES = {
    "go": "go",
    "java": "java",
    "javascript": "node",
    "js": "node",
    "lua": "lua5.4",
    "perl": "perl",
    "php": "php",
    "r": "Rscript",
    "ruby": "ruby",
}


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        line: The line of its first line of code in the page, from 1.
        language: As written after the fence.
        code: Without the fences' indentation.
        runs: No ``no-run`` comment stands before it.
        file: The name to write it to, or None.
    """

    line: int
    language: str
    code: str
    runs: bool
    file: str | None


def blocks_of(text: str) -> list[Block]:
    """Return the fenced blocks of a page.

    Raises:
        ValueError: A ``no-run`` comment without a reason; raised here.
    """
    found = []
    lines = text.splitlines()
    position = 0
    runs = True
    while position < len(lines):
        line = lines[position]
        position += 1
        fence = FENCE.match(line)
        if fence is None:
            comment = NO_RUN.search(line)
            if comment is not None and not comment["reason"]:
                raise ValueError(f"line {position}: no-run needs a reason")
            if comment is not None or line.strip():
                runs = comment is None
            continue
        start = position
        while position < len(lines) and lines[position].strip() != fence["marks"]:
            position += 1
        body = [inner.removeprefix(fence["indent"]) for inner in lines[start:position]]
        position += 1
        name = FILE_LINE.match(body[0]) if body else None
        file = name["name"] if name else None
        found.append(Block(start + 1, fence["language"], "\n".join(body) + "\n", runs, file))
        runs = True
    return found


def script_of(page: str, blocks: list[Block]) -> str:
    """Return a program that runs the page's Python blocks, with the page's own lines in tracebacks."""
    parts = [
        "if __name__ == '__main__':",
        "    import linecache",
        "    def run(page, line, code):",
        "        name = f'{page} (block at line {line})'",
        "        linecache.cache[name] = (len(code), None, code.splitlines(True), name)",
        "        exec(compile(code, name, 'exec'), globals())",
    ]
    for block in blocks:
        if block.runs and block.file is None and block.language == "python":
            padded = "\n" * (block.line - 1) + block.code
            parts.append(f"    run({page!r}, {block.line}, {padded!r})")
    return "\n".join(parts) + "\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: "-".join(page.relative_to(ROOT).parts))
def test_page_runs(page: Path, tmp_path: Path, require_runtime: Callable[[str], str]) -> None:
    """Every marked block of the page runs, in order, without an error."""
    blocks = blocks_of(page.read_text(encoding="utf-8"))
    languages = {block.language for block in blocks if block.runs and block.file is not None}
    for language in sorted(languages & RUNTIMES.keys()):
        require_runtime(RUNTIMES[language])
    for block in blocks:
        if block.runs and block.file is not None:
            (tmp_path / block.file).write_text(block.code, encoding="utf-8")
    script = tmp_path / "page_blocks.py"
    script.write_text(script_of(page.name, blocks), encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PAGE_LIMIT_S,
        check=False,
    )

    assert 0 == done.returncode, f"{page.name}\n{done.stdout}\n{done.stderr}"


def test_blocks_are_told_apart() -> None:
    """Fences, file lines, no-run comments and other languages are recognised, with their lines."""
    text = (
        "# Page\n\n```python\na = 1\n```\n\n<!-- no-run: a sketch -->\n\n```python\nb = 1\n```\n"
        "```python\n# file: handlers.py\n```\n- list\n\n  ```javascript\n  // file: handlers.js\n  ```\n"
        "```bash\nmake demo\n```\n````python\nmarks = '```'\n````\n"
    )

    found = [(block.line, block.language, block.runs, block.file) for block in blocks_of(text)]

    assert [
        (4, "python", True, None),
        (10, "python", False, None),
        (13, "python", True, "handlers.py"),
        (18, "javascript", True, "handlers.js"),
        (21, "bash", True, None),
        (24, "python", True, None),
    ] == found
    assert "marks = '```'\n" == blocks_of(text)[-1].code


def test_no_run_needs_a_reason() -> None:
    """A block cannot be left out silently."""
    with pytest.raises(ValueError, match="line 1: no-run needs a reason"):
        blocks_of("<!-- no-run: -->\n```python\n```\n")


def test_failing_block_names_its_place(tmp_path: Path) -> None:
    """An error in a block shows the page, the block, and the failing line."""
    blocks = blocks_of("text\n\n```python\nx = 1\nprint(x / 0)\n```\n")
    script = tmp_path / "page_blocks.py"
    script.write_text(script_of("page.md", blocks), encoding="utf-8")

    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
    )

    assert 1 == done.returncode
    assert 'page.md (block at line 4)", line 5' in done.stderr
    assert "print(x / 0)" in done.stderr
