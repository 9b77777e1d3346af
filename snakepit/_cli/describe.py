"""``snakepit commands``: what a worker announces: its language, its commands, their parameters and doc strings.

Runs on the main thread; owns the one pool while it lives.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console

from ..config import PoolConfig
from ..errors import SnakepitError
from ..executor import SnakepitExecutor
from .adapter_words import make_adapter, parse_json
from .terminal import make_table

__all__ = ("run_commands",)

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
        The exit status: 0; 1 if the worker announces nothing (level 0); 3 if it could not start.

    Raises:
        click.UsageError: Bad input; raised here.
    """
    try:
        adapter = make_adapter(adapter_text, handlers, level, parse_json(start_args))
        executor = SnakepitExecutor(adapter, 1, name="commands", config=PoolConfig(restart_budget=1))
    except (SnakepitError, OSError) as error:
        return _complain(error)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    with executor:
        try:
            executor.wait_ready(None)
        except SnakepitError as error:
            return _complain(error)
        announced = executor._manager.announced
    commands: Mapping[str, Any] = announced.get("commands", {})
    if not announced:
        print("snakepit: this worker speaks level 0, which announces no commands", file=sys.stderr)
        return 1
    if as_schema:
        _print({name: schema_of(name, told) for name, told in commands.items()})
    elif as_json:
        _print({key: announced.get(key) for key in ("language", "runtime", "bridge", "capabilities", "commands")})
    else:
        console.print(f"{announced.get('language')} {announced.get('runtime')}", markup=False)
        table = make_table(console, "command", "parameters", "")
        for name, told in sorted(commands.items()):
            table.add_row(name, ", ".join(_parameters(told)), str(told.get("doc", "")).partition("\n")[0])
        console.print(table)
    return 0


def schema_of(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a command's arguments; without types where the language tells none.

    Args:
        name: The command's.
        told: ``{"params", "doc"}`` and maybe ``"schema"``, as announced.
    """
    fallback = {**ANY_OBJECT, "properties": {param: {} for param in told.get("params", ())}}
    description = {"description": told["doc"]} if told.get("doc") else {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": name,
        **description,
        **told.get("schema", fallback),
    }


def _parameters(told: Mapping[str, Any]) -> list[str]:
    """Return the parameters as a table shows them: ``width?`` may be left out, a type follows a colon."""
    schema = told.get("schema")
    if schema is None:
        return list(told.get("params", ()))
    shown = []
    for name, kind in schema["properties"].items():
        types = [kind, *kind.get("anyOf", ())]
        names = " or ".join(str(one["type"]) for one in types if "type" in one)
        shown.append(f"{name}{'' if name in schema['required'] else '?'}{f': {names}' if names else ''}")
    return shown


def _print(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=not (sys.stdout.encoding or "").lower().startswith("utf")))


def _complain(error: BaseException) -> int:
    print(f"snakepit: {type(error).__name__}: {error}", file=sys.stderr)
    return NOT_STARTED
