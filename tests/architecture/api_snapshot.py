"""The public interface as text: every public name with its signature.

``python tests/architecture/api_snapshot.py --update`` accepts the interface as it is (or
``make api-snapshot``); without the option it is printed.  Runs on the main thread, owns
``api_snapshot.txt``.
"""

from __future__ import annotations

import enum
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import is_typeddict

sys.path[:0] = [str(Path(__file__).resolve().parents[level]) for level in (1, 2)]

from architecture.survey import load, public_modules  # noqa: E402 - run as a script, it needs the paths above

__all__ = ("SNAPSHOT", "describe_interface", "home_of", "public_members")

SNAPSHOT = Path(__file__).with_name("api_snapshot.txt")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
FORWARD = re.compile(r"ForwardRef\(('[^']*')[^)]*\)")


def describe_interface() -> str:
    """Return the text: a section a module, a line a name, members indented below their class."""
    lines: list[str] = []
    for name in public_modules():
        module = load(name)
        lines += ["", f"[{name}]"] if lines else [f"[{name}]"]
        for symbol in sorted(getattr(module, "__all__", ())):
            lines += _describe(module, symbol)
    return "\n".join(lines) + "\n"


def home_of(module_name: str, value: object) -> str:
    """Return the public module that documents ``value``; a private module's is its exporter's."""
    origin = getattr(value, "__module__", None)
    return origin if origin in public_modules() else module_name


def public_members(cls: type) -> Iterator[tuple[str, object]]:
    """Yield ``(name, value)`` of what a class itself defines for its users, sorted."""
    for name, value in sorted(vars(cls).items()):
        if not name.startswith("_"):
            yield name, value


def _describe(module: ModuleType, symbol: str) -> list[str]:
    value = getattr(module, symbol)
    home = home_of(module.__name__, value)
    if home != module.__name__:
        return [f"{symbol} <- {home}"]
    if not inspect.isclass(value):
        if inspect.isroutine(value):
            return [f"def {symbol}{_signature(value)}"]
        return [f"{symbol}: {type(value).__name__}"]
    bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
    if issubclass(value, enum.Enum):
        return [f"class {symbol}({bases})", *(f"    {member.name} = {member.value!r}" for member in value)]
    if is_typeddict(value):
        keys = ((key, getattr(hint, "__forward_arg__", hint)) for key, hint in value.__annotations__.items())
        return [f"class {symbol}(TypedDict)", *(f"    {key}: {hint}" for key, hint in sorted(keys))]
    own_init = "__init__" in vars(value) or "__new__" in vars(value)
    lines = [f"class {symbol}" + (f"({bases})" if bases else "")]
    if own_init:
        lines.append(f"    __init__{_signature(value)}")
    for name, member in public_members(value):
        if isinstance(member, (staticmethod, classmethod)):
            kind = type(member).__name__
            lines.append(f"    @{kind} {name}{_signature(member.__func__)}")
        elif inspect.isroutine(member):
            lines.append(f"    {name}{_signature(member)}")
        else:
            kind = "property" if isinstance(member, property) else "attribute"
            lines.append(f"    {name}: {kind}")
    return lines


def _signature(function: object) -> str:
    try:
        text = str(inspect.signature(function))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return "(...)"
    # Neither addresses, nor the place and the version of this interpreter belong to the interface.
    return FORWARD.sub(r"\1", ADDRESS.sub("", text)).replace(repr(sys.executable), "sys.executable")


if __name__ == "__main__":
    if "--update" in sys.argv[1:]:
        SNAPSHOT.write_text(describe_interface(), encoding="utf-8")
        print(f"wrote {SNAPSHOT}")
    else:
        print(describe_interface(), end="")
