"""The Python bridge as a module, beside the one that a test process may have already."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from snakepit._bridges import bridge_path

__all__ = ("load_bridge",)


def load_bridge(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the bridge as a module of its own, known by its name for as long as the patch lasts."""
    spec = importlib.util.spec_from_file_location("bridge_under_test", bridge_path("python/snakepit_bridge.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    for name in (spec.name, "snakepit_bridge"):
        monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module
