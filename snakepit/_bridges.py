"""Finds a bridge's file, wherever snakepit runs from: an installed wheel, an editable install, a checkout.

Runs on any thread and owns no state.  Imports nothing of snakepit.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ("bridge_path",)


def bridge_path(relative: str) -> Path:
    """Return the absolute path of a file that belongs to the bridges.

    A wheel holds the bridges in ``<package>/bridges``; in a checkout and in an editable install they
    stand beside the package, in ``<package>/../bridges``.  The current directory is never searched: a
    file that happens to lie there must not become a worker.

    Args:
        relative: Path inside the bridges folder, with slashes, e.g. ``"python/bridge.py"``.

    Raises:
        FileNotFoundError: No such file in either place; raised here, and the message names both.
        ValueError: ``relative`` is absolute or leads out of the folder with ``..``; raised here.
    """
    inside = Path(relative)
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"a path inside the bridges folder is needed, not {relative!r}")
    package = Path(__file__).resolve().parent
    candidates = (package / "bridges" / inside, package.parent / "bridges" / inside)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    tried = ", ".join(str(candidate) for candidate in candidates)
    raise FileNotFoundError(f"bridge file {relative!r} not found; tried {tried}")
