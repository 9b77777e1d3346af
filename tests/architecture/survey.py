"""What the repository consists of: its modules, what they import, its text files.

Runs on the test's thread and owns no state.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

__all__ = ("PACKAGE", "ROOT", "Import", "imports_of", "load", "modules", "public_modules", "text_files")

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "snakepit"

DATA = {"demo_handlers", "bridges", "templates"}
"""Folders of the package that hold files for workers, not modules of the host."""

NOT_SOURCES = {".git", "__pycache__", "_build", "build", "corpus", "dist", "node_modules"}
TEXT_SUFFIXES = {
    *("", ".cfg", ".json", ".md", ".sh", ".toml", ".txt"),
    *(".R", ".cjs", ".go", ".java", ".js", ".lua", ".mjs", ".php", ".pl", ".py", ".rb"),
}


class Import(NamedTuple):
    """One import of a module.

    Attributes:
        name: Dotted and absolute, e.g. ``"snakepit.errors"`` or ``"os.path"``.
        line: Its line, from 1.
        for_types_only: Under ``if TYPE_CHECKING:``, so it does not exist when the program runs.
    """

    name: str
    line: int
    for_types_only: bool


def modules() -> dict[str, Path]:
    """Return ``{name: path}`` of every module, e.g. ``"executor"`` or ``"_core.scheduler"``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in DATA and (len(parts) == 1 or parts[-1] != "__init__"):
            found[".".join(parts)] = path
    return found


def public_modules() -> list[str]:
    """Return the full names of the modules without an underscore, the package itself first."""
    names = [f"snakepit.{name}" for name in modules() if not name.startswith("_")]
    return (["snakepit"] if "__init__" in modules() else []) + names


def load(name: str) -> ModuleType:
    """Import a module by its full name."""
    return importlib.import_module(name)


def imports_of(path: Path) -> list[Import]:
    """Return every import in a module of the package, those inside functions included."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        for name in _names(node, path):
            found.append(Import(name, getattr(node, "lineno", 0), id(node) in for_types))
    return found


def _names(node: ast.AST, path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        base = str(node.module)
        if node.level:
            folder = path.parents[node.level - 1]
            base = ".".join(
                ["snakepit", *folder.relative_to(PACKAGE).parts, *([node.module] if node.module else [])]
            )
        place = PACKAGE.joinpath(*base.split(".")[1:])
        if not base.startswith("snakepit") or not place.is_dir():
            yield base
            return
        for alias in node.names:  # `from ._core import model`, or a name of the package itself
            is_module = (place / f"{alias.name}.py").exists()
            yield f"{base}.{alias.name}" if is_module else f"{base}.__init__"


def text_files() -> list[Path]:
    """Return the repository's text files; what is built, installed or hidden is left out."""
    found = []
    pending = [ROOT]
    while pending:
        for entry in sorted(pending.pop().iterdir()):
            if entry.name in NOT_SOURCES or entry.name.endswith(".egg-info"):
                continue
            if entry.is_dir():
                if not entry.name.startswith(".") or entry.name == ".ci":
                    pending.append(entry)
            elif entry.suffix in TEXT_SUFFIXES and not entry.name.startswith(".coverage"):
                found.append(entry)
    return found
