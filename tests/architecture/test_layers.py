"""The package is built in layers: a module imports only from lower ones."""

from __future__ import annotations

import sys
from graphlib import TopologicalSorter

import pytest
from architecture.survey import imports_of, modules

# The parts of the scheduler: pure modules of one layer, which may use each other without a circle.
PURE_PARTS = (
    "_affinity",
    "_board",
    "_dispatcher",
    "_invariants",
    "_lanes",
    "_lifecycle",
    "_restarts",
    "_session_rules",
    "_timers",
    "_workers",
)

# The parts of the watchdog, lowest first.
WATCHDOG_PARTS = ("_spawn", "_stderr", "_ward", "_sweep", "_custody")

LAYERS: dict[int, tuple[str, ...]] = {
    0: ("errors", "_clock", "telemetry", "_inbox", "_procfs", "_held_fds", "_reports"),
    1: (
        "_wire",
        "_values",
        "_bridges",
        "_process",
        "_guardian",
        "_guardian_main",
        "_memory",
        "sessions",
        "_callables",
        "_session_records",
        "_session_locks",
        "_session_backends",
        "_session_sqlite",
    ),
    2: ("adapters", "_channel", "_model", "_watchdog", *WATCHDOG_PARTS, "programs"),
    3: ("config", "_scheduler", *PURE_PARTS, "_future", "_launch", "_ledger", "_link"),
    4: ("_manager",),
    5: ("executor",),
    6: ("cli", "testing", "__init__", "__main__"),
}

# What a module may use of its own layer.
BESIDE: dict[str, tuple[str, ...]] = {
    "_wire": ("_values",),
    "_ward": ("_stderr",),
    "_sweep": ("_ward",),
    "_custody": ("_spawn", "_stderr", "_sweep", "_ward"),
    "_watchdog": ("_custody", "_spawn"),
    "_link": ("config",),
    "_session_backends": ("_session_locks", "_session_records"),
    "_session_sqlite": ("_session_backends", "_session_locks", "_session_records"),
    "sessions": ("_session_backends", "_session_locks", "_session_records", "_session_sqlite"),
    "_scheduler": ("config", *PURE_PARTS),
    **dict.fromkeys(PURE_PARTS, ("config", *PURE_PARTS)),
    "__main__": ("cli",),
}

PURE = ("_wire", "_values", "_scheduler", *PURE_PARTS)
IMPURE = {"asyncio", "os", "select", "selectors", "signal", "socket", "subprocess", "threading", "time"}

LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}


def imported_modules(name: str) -> dict[str, int]:
    """Return ``{module of the package: line}`` of what a module needs when it runs."""
    own = {
        found.name.removeprefix("snakepit."): found.line
        for found in imports_of(modules()[name])
        if found.name.startswith("snakepit.") and not found.for_types_only
    }
    return {target.split(".")[0]: line for target, line in own.items()}


@pytest.mark.parametrize("name", modules())
def test_module_has_a_place(name: str) -> None:
    """Every module stands in the table of layers."""
    assert name in LAYER_OF, f"place {name!r} into LAYERS of {__file__}"


@pytest.mark.parametrize("name", [name for name in modules() if name in LAYER_OF])
def test_imports_point_down(name: str) -> None:
    """A module imports from lower layers, and of its own layer only what BESIDE names."""
    wrong = [
        f"{name}.py:{line} imports {target} (layer {LAYER_OF.get(target)})"
        for target, line in imported_modules(name).items()
        if LAYER_OF.get(target, sys.maxsize) >= LAYER_OF[name] and target not in BESIDE.get(name, ())
    ]

    assert [] == wrong


def test_no_circles() -> None:
    """The modules can be ordered so that each imports only earlier ones."""
    graph = {name: set(imported_modules(name)) for name in modules()}

    order = list(TopologicalSorter(graph).static_order())

    assert set(modules()) <= set(order)


@pytest.mark.parametrize("name", [name for name in PURE if name in modules()])
def test_pure_modules_do_no_io(name: str) -> None:
    """The wire, the values and the scheduler know no thread, clock, process or descriptor."""
    impure = [
        f"{name}.py:{found.line} imports {found.name}"
        for found in imports_of(modules()[name])
        if found.name.split(".")[0] in IMPURE
    ]

    assert [] == impure
