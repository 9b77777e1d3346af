"""The public interface is complete, documented, and changes only on purpose."""

from __future__ import annotations

import ast
import difflib
import inspect
import re

import pytest
from architecture.api_snapshot import SNAPSHOT, describe_interface, home_of, public_members
from architecture.survey import ROOT, load, modules, public_modules

EVENT = re.compile(r"snakepit\.(pool|session|telemetry|worker)\.[a-z_]+")


def exported(name: str) -> list[tuple[str, object]]:
    """Return ``(name, value)`` of what a public module exports and no other public module defines."""
    module = load(name)
    values = [(symbol, getattr(module, symbol)) for symbol in module.__all__]
    return [(symbol, value) for symbol, value in values if home_of(name, value) == name]


@pytest.mark.parametrize("name", public_modules())
def test_all_is_complete(name: str) -> None:
    """``__all__`` is a tuple of what the module defines without an underscore, and all of it exists."""
    module = load(name)
    declared = module.__all__
    defined = {
        symbol
        for symbol, value in vars(module).items()
        if not symbol.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
    }

    assert tuple is type(declared)
    assert len(set(declared)) == len(declared)
    assert [] == [symbol for symbol in declared if not hasattr(module, symbol)]
    assert set() == defined - set(declared), "export it, or give it an underscore"


@pytest.mark.parametrize("name", public_modules())
def test_everything_public_has_a_docstring(name: str) -> None:
    """Each public module, function, class, method and property says what it is."""
    missing = [name] if not load(name).__doc__ else []

    for symbol, value in exported(name):
        if inspect.isfunction(value) and not value.__doc__:
            missing.append(symbol)
        if not inspect.isclass(value):
            continue
        if not value.__doc__:
            missing.append(symbol)
        for member_name, member in public_members(value):
            is_documented_kind = isinstance(member, (property, staticmethod, classmethod))
            if (is_documented_kind or inspect.isfunction(member)) and not inspect.getdoc(
                getattr(value, member_name)
            ):
                missing.append(f"{symbol}.{member_name}")

    assert [] == missing


def test_interface_is_the_recorded_one() -> None:
    """A change of a public name or signature is accepted with ``make api-snapshot``, never by accident."""
    recorded = SNAPSHOT.read_text(encoding="utf-8")
    current = describe_interface()

    difference = list(
        difflib.unified_diff(recorded.splitlines(), current.splitlines(), "recorded", "current", lineterm="")
    )

    assert [] == difference, "accept it with: make api-snapshot\n" + "\n".join(difference)


@pytest.mark.parametrize("name", public_modules())
def test_reference_documents_the_module(name: str) -> None:
    """docs/reference.md has an automodule entry for each public module."""
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")

    entries = re.findall(r"^\.\. automodule:: (\S+)$", reference, re.MULTILINE)

    assert 1 == entries.count(name)


def test_events_are_documented() -> None:
    """Every event that the code names is declared, and the reference tells each of its keys."""
    telemetry = load("snakepit.telemetry")
    used = {
        node.value
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and EVENT.fullmatch(node.value)
    }
    entries = re.split(r"^``(snakepit\.[a-z_.]+)``:", str(telemetry.__doc__), flags=re.MULTILINE)
    text_of = dict(zip(entries[1::2], entries[2::2], strict=True))

    untold = {
        f"{event}: {key}"
        for event, shape in telemetry.EVENTS.items()
        for key in (*shape.measurements, *shape.metadata)
        if f'"{key}":' not in text_of.get(event, "")
    }

    assert set() == used - set(telemetry.EVENTS)
    assert set(telemetry.EVENTS) == set(text_of)
    assert set() == untold
