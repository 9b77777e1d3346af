"""``snakepit new``: writes a small project that works: handlers, a program that calls them, a test, a README.

Runs on the main thread; owns nothing.
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from .._bridges import bridge_path

__all__ = ("KINDS", "write_project")

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
BRIDGES = {"go": {"worker/snakepit/snakepit_bridge.go": "go/snakepit_bridge.go"}}
"""``{kind: {file of the project: file of the bridges}}``, where a bridge is a part of the user's own program."""
KINDS = tuple(sorted(path.name for path in TEMPLATES.iterdir() if path.is_dir()))


def write_project(console: Console, kind: str, folder: str) -> int:
    """Copy a template into a folder, which is made if need be; return the exit status 0.

    Args:
        console: Told what was written and what to do next.
        kind: One of ``KINDS``.
        folder: Where to; nothing in it is ever overwritten.

    Raises:
        click.ClickException: A file is there already, or cannot be written; raised here, and nothing was written
            in the first case.
    """
    target = Path(folder)
    template = TEMPLATES / kind
    # An installer compiles what it installs, templates too.
    files = (path for path in sorted(template.rglob("*")) if path.is_file() and path.parent.name != "__pycache__")
    sources = {str(path.relative_to(template)): path for path in files}
    sources |= {name: bridge_path(bridge) for name, bridge in BRIDGES.get(kind, {}).items()}
    there = [name for name in sources if (target / name).exists()]
    if there:
        raise click.ClickException(f"{folder!r} already has {', '.join(there)}; choose another directory")
    try:
        for name, source in sources.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(source.read_bytes())
            console.print(str(target / name), markup=False, soft_wrap=True)
    except OSError as error:
        raise click.ClickException(f"{folder!r}: {error.strerror or error}") from None
    console.print(f"Next: cd {folder} && python main.py; README.md says more.", markup=False, soft_wrap=True)
    return 0
