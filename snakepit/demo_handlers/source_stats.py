"""Commands of ``snakepit demo``: what a Python source file holds, and totals kept in a session.

Runs in the demo's Python workers.  The demo also loads this file itself, to do the same work in one
process and to compare both results, so importing it has no effect.
"""

from __future__ import annotations

import ast
import json
import os
import warnings
from typing import Any

from snakepit_bridge import command, context, on_start  # type: ignore[import-not-found]  # the bridge makes it

__all__ = ("add_totals", "analyse", "file_stats", "open_totals", "start", "totals")

TOP_LEVEL = "(top level)"
_NO_TOTALS = {"files": 0, "lines": 0, "functions": 0}


def file_stats(root: str, path: str) -> dict[str, Any]:
    """Parse one file.

    Args:
        root: The standard library's directory.
        path: Relative to it, with slashes.

    Returns:
        ``{"path", "package", "lines", "functions", "classes", "longest": [name, lines] or None, "error"}``;
        a file that does not parse has no functions, and an ``error`` that is not None.
    """
    with open(os.path.join(root, path), "rb") as file:
        source = file.read()
    lines = source.count(b"\n") + (source != b"" and not source.endswith(b"\n"))
    functions = classes = 0
    longest: list[Any] | None = None
    error = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes += 1
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                functions += 1
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if longest is None or length > longest[1]:
                    longest = [node.name, length]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    head, slash, _ = path.partition("/")
    return {
        "path": path,
        "package": head if slash else TOP_LEVEL,
        "lines": lines,
        "functions": functions,
        "classes": classes,
        "longest": longest,
        "error": error,
    }


@on_start  # type: ignore[untyped-decorator]  # untyped there
def start(root: str) -> None:
    """Keep the directory that every path is relative to."""
    context().worker_state["root"] = root


@command  # type: ignore[untyped-decorator]  # untyped there
def analyse(path: str) -> dict[str, Any]:
    """Parse one file."""
    return file_stats(context().worker_state["root"], path)


@command  # type: ignore[untyped-decorator]  # untyped there
def open_totals(journal: str) -> int:
    """Set the session up: replay the journal, which is empty at first; return the number of batches in it."""
    state = context().state
    state.update(journal=journal, batches=set(), packages={})
    with open(journal, "a+b") as file:
        file.seek(0)
        for line in file:
            if not line.endswith(b"\n"):  # cut short by a kill: its batch was never confirmed
                file.truncate(file.tell() - len(line))
                break
            _apply(state, json.loads(line))
    state["replayed"] = len(state["batches"])
    return len(state["batches"])


@command  # type: ignore[untyped-decorator]  # untyped there
def add_totals(batch: int, files: list[list[Any]]) -> bool:
    """Add ``[package, lines, functions]`` of each file to the session's totals.

    A batch is written to the journal before it is confirmed, and counts once however often it comes: its
    sender cannot know whether a call whose worker died had been carried out.

    Returns:
        Whether the batch was new.
    """
    state = context().state
    if batch in state["batches"]:
        return False
    record = {"batch": batch, "files": files}
    with open(state["journal"], "ab") as file:
        file.write(json.dumps(record).encode() + b"\n")
    _apply(state, record)
    return True


@command  # type: ignore[untyped-decorator]  # untyped there
def totals() -> dict[str, Any]:
    """Return ``{"packages": {name: {"files", "lines", "functions"}}, "batches", "replayed", "pid"}``."""
    state = context().state
    return {
        "packages": state["packages"],
        "batches": len(state["batches"]),
        "replayed": state["replayed"],
        "pid": os.getpid(),
    }


def _apply(state: dict[str, Any], record: dict[str, Any]) -> None:
    state["batches"].add(record["batch"])
    for package, lines, functions in record["files"]:
        row = state["packages"].setdefault(package, dict(_NO_TOTALS))
        row["files"] += 1
        row["lines"] += lines
        row["functions"] += functions
