"""The package is built in layers, one folder or public module a place: a module imports only from lower ones."""

from __future__ import annotations

import sys
from graphlib import TopologicalSorter

import pytest
from architecture.survey import imports_of, modules

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "_text", "_clock", "_fds", "_inbox", "_threads", "_bridges", "telemetry"),
    ("_wire", "_supervision", "_store", "_programs", "_limits"),
    ("sessions", "config", "_worker_options", "programs"),
    ("_adapters",),
    ("adapters",),
    ("_core",),
    ("_pool",),
    ("executor", "_conformance"),
    ("testing", "_cli", "_exports"),
    ("cli", "__init__"),
    ("__main__",),
)
"""Lowest first.  A folder is one place: inside it modules may use each other, without a circle."""

# What a place may use of its own layer, and why.
BESIDE: dict[str, tuple[str, ...]] = {
    "programs": ("sessions",),
    "errors": ("_text",),
    "_inbox": ("_fds",),
}

PURE = ("_wire.messages", "_wire.values", "_core")
# Not signal: its names are used to describe an exit.
IMPURE = {"asyncio", "os", "select", "selectors", "socket", "subprocess", "threading", "time"}

LAYER_OF = {place: layer for layer, places in enumerate(LAYERS) for place in places}


def place_of(name: str) -> str:
    """Return the folder of a module, or the module itself where it stands in none."""
    return name.split(".")[0]


def imported_modules(name: str) -> dict[str, int]:
    """Return ``{module of the package: line}`` of what a module needs when it runs."""
    return {
        found.name.removeprefix("snakepit."): found.line
        for found in imports_of(modules()[name])
        if found.name.startswith("snakepit.") and not found.for_types_only
    }


@pytest.mark.parametrize("name", modules())
def test_module_has_a_place(name: str) -> None:
    """Every module stands in the table of layers."""
    assert place_of(name) in LAYER_OF, f"place {name!r} into LAYERS of {__file__}"


@pytest.mark.parametrize("name", [name for name in modules() if place_of(name) in LAYER_OF])
def test_imports_point_down(name: str) -> None:
    """A module imports from lower layers, from its own folder, and of its layer only what BESIDE names."""
    place = place_of(name)
    wrong = [
        f"{name}:{line} imports {target} (layer {LAYER_OF.get(place_of(target))})"
        for target, line in imported_modules(name).items()
        if place_of(target) != place
        and LAYER_OF.get(place_of(target), sys.maxsize) >= LAYER_OF[place]
        and place_of(target) not in BESIDE.get(place, ())
    ]

    assert [] == wrong


def test_no_circles() -> None:
    """The modules can be ordered so that each imports only earlier ones."""
    graph = {name: set(imported_modules(name)) for name in modules()}

    order = list(TopologicalSorter(graph).static_order())

    assert set(modules()) <= set(order)


@pytest.mark.parametrize("name", [name for name in modules() if name in PURE or place_of(name) in PURE])
def test_pure_modules_do_no_io(name: str) -> None:
    """The wire and the core know no thread, clock, process or descriptor."""
    impure = [
        f"{name}:{found.line} imports {found.name}"
        for found in imports_of(modules()[name])
        if found.name.split(".")[0] in IMPURE
    ]

    assert [] == impure
