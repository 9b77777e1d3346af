"""The argument ADAPTER of the subcommands: a language, or a command line.

Runs on the main thread; owns nothing.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil

import click

from .._wire.values import JsonValue
from ..adapters import (
    Adapter,
    CommandAdapter,
    JavaAdapter,
    JavaScriptAdapter,
    LuaAdapter,
    PerlAdapter,
    PHPAdapter,
    PythonAdapter,
    RAdapter,
    RubyAdapter,
    ScriptAdapter,
)

__all__ = ("ALIASES", "make_adapter", "parse_json")

ALIASES: dict[str, type[ScriptAdapter]] = {
    "python": PythonAdapter,
    "javascript": JavaScriptAdapter,
    "node": JavaScriptAdapter,
    "ruby": RubyAdapter,
    "r": RAdapter,
    "perl": PerlAdapter,
    "php": PHPAdapter,
    "lua": LuaAdapter,
    "java": JavaAdapter,
}
_SUFFIXES = tuple(suffix for adapter in ALIASES.values() for suffix in adapter.suffixes)
# So that a pointer below the text still points at the right place.
_ONE_COLUMN = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029), " ")


def make_adapter(text: str, handlers: str | None, level: str | None, start_args: JsonValue = None) -> Adapter:
    """Return the adapter for an alias or a command line.

    Raises:
        click.UsageError: Neither, or options that do not fit it; raised here.
        TypeError, ValueError: The adapter refuses its parameters; raised here.
    """
    if (
        handlers is not None
        and (os.sep in handlers or handlers.endswith(_SUFFIXES))
        and not os.path.isfile(handlers)
    ):
        raise click.UsageError(f"--handlers: no file {handlers!r}")
    if text in ALIASES:
        if level is not None:
            raise click.UsageError(f"--level is for a command line; {text} workers always have level 1")
        return ALIASES[text](handlers, start_args=start_args)
    if text == "go":
        raise click.UsageError("Go has no adapter: build the program, and give its path: ./worker --level 1")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise click.UsageError(f"ADAPTER {text!r}: {error}") from None
    choices = f"choose one of {', '.join(ALIASES)}, or a command line in quotes, e.g. 'ruby bridge.rb'"
    if not words or (os.sep not in words[0] and shutil.which(words[0]) is None):
        raise click.UsageError(
            f"unknown adapter {text!r}: no alias, and no program of that name in PATH; {choices}"
        )
    if handlers is not None:
        raise click.UsageError(
            f"--handlers is for {', '.join(ALIASES)}; a command line names its files itself"
        )
    return CommandAdapter(words, level=int(level or 0), start_args=start_args)


def parse_json(text: str) -> JsonValue:
    """Return the JSON value of an argument.

    Raises:
        click.UsageError: Not JSON; the message says where; raised here.
    """
    try:
        value: JsonValue = json.loads(text, parse_constant=_refuse_constant)
        return value
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]  # as the decoder counts lines
        start = max(0, error.colno - 40)
        shown = line[start : start + 72].translate(_ONE_COLUMN)
        pointer = f"\n  {shown}\n  {' ' * (error.colno - 1 - start)}^" if line.strip() else ""
        where = f"line {error.lineno}, column {error.colno}"
        raise click.UsageError(f"JSON: {error.msg} at {where} (mind the shell's quotes){pointer}") from None
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
