"""``snakepit commands``: what a worker announces: its language, its commands, their parameters and doc strings.

Runs on the main thread; owns the one pool while it lives.
"""

from __future__ import annotations

import sys
from typing import Any

import click
from rich.console import Console

from .._text import show
from ..config import PoolConfig
from ..errors import SnakepitError
from ..executor import SnakepitExecutor
from .adapter_words import make_adapter, parse_json
from .terminal import complain, make_table, write_json

__all__ = ("run_commands",)

SILENT = 1
NOT_STARTED = 3
ANY_OBJECT = {"type": "object"}


def run_commands(
    console: Console,
    adapter_text: str,
    *,
    handlers: str | None,
    start_args: str,
    level: str | None,
    as_json: bool,
    as_schema: bool,
) -> int:
    """Start one worker and print what it announces.

    Args:
        console: For the table.
        adapter_text: An alias or a command line.
        handlers: Handlers file, or None.
        start_args: JSON for its start function.
        level: "0" or "1" for a command line, else None.
        as_json: Print the announcement as one JSON object.
        as_schema: Print one JSON Schema a command.

    Returns:
        The exit status: 0; 1 if the worker announces nothing (level 0), or nothing that can be read; 3 if it could
        not start.

    Raises:
        click.UsageError: Bad input; raised here.
    """
    try:
        adapter = make_adapter(adapter_text, handlers, level, parse_json(start_args))
        executor = SnakepitExecutor(adapter, 1, name="commands", config=PoolConfig(restart_budget=1))
    except (SnakepitError, OSError) as error:
        complain(error)
        return NOT_STARTED
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    with executor:
        try:
            executor.wait_ready(None)
        except SnakepitError as error:
            complain(error)
            return NOT_STARTED
        announced = executor._manager.announced
    if not announced:
        return _tell("this worker speaks level 0, which announces no commands")
    commands = announced.get("commands", {})
    if not isinstance(commands, dict):
        return _tell(f"this worker announces its commands as {show(commands)}, not as an object of them")
    if as_schema:
        write_json(sys.stdout, {name: schema_of(name, told) for name, told in commands.items()}, indent=2)
    elif as_json:
        keys = ("language", "runtime", "bridge", "capabilities", "commands")
        write_json(sys.stdout, {key: announced.get(key) for key in keys}, indent=2)
    else:
        names = [str(announced[key]) for key in ("language", "runtime") if announced.get(key)]
        console.print(" ".join(names) or "a worker that does not name its language", soft_wrap=True)
        table = make_table(console, "command", "parameters", "")
        for name, told in sorted(commands.items()):
            table.add_row(name, ", ".join(_parameters(told)), _doc(told).partition("\n")[0])
        console.print(table)
    return 0


# A bridge of the user's own may leave out, or tell in its own way, whatever no pool needs: what is told as
# expected is shown, and nothing else.


def schema_of(name: str, told: object) -> dict[str, Any]:
    """Return the JSON Schema of a command's arguments; without types where the language tells none.

    Args:
        name: The command's.
        told: ``{"params", "doc"}`` and maybe ``"schema"``, as announced.
    """
    fallback = {**ANY_OBJECT, "properties": {param: {} for param in _params(told)}}
    description = {"description": _doc(told)} if _doc(told) else {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": name,
        **description,
        **(_object(told, "schema") or fallback),
    }


def _parameters(told: object) -> list[str]:
    """Return the parameters as a table shows them: ``width?`` may be left out, a type follows a colon."""
    schema = _object(told, "schema")
    if not schema:
        return _params(told)
    required = _list(schema, "required")
    shown = []
    for name, kind in _object(schema, "properties").items():
        types = [one.get("type") for one in (kind, *_list(kind, "anyOf")) if isinstance(one, dict)]
        # JSON Schema has two ways to say "or".
        flat = [name for told in types for name in (told if isinstance(told, list) else [told]) if name is not None]
        names = " or ".join(map(str, flat))
        shown.append(f"{name}{'' if name in required else '?'}{f': {names}' if names else ''}")
    return shown


def _object(told: object, key: str) -> dict[str, Any]:
    value = told.get(key) if isinstance(told, dict) else None
    return value if isinstance(value, dict) else {}


def _list(told: object, key: str) -> list[Any]:
    value = told.get(key) if isinstance(told, dict) else None
    return value if isinstance(value, list) else []


def _params(told: object) -> list[str]:
    return [str(name) for name in _list(told, "params")]


def _doc(told: object) -> str:
    doc = told.get("doc") if isinstance(told, dict) else None
    return doc if isinstance(doc, str) else ""


def _tell(what: str) -> int:
    print(f"snakepit: {what}", file=sys.stderr)
    return SILENT
