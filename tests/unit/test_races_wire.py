"""The cache of verdicts on functions, when an id changes hands behind it."""

from __future__ import annotations

import gc
import os
import pickle
import sys
import types
import weakref
from collections.abc import Iterator

import pytest

from snakepit._wire import callables as _callables

SOURCE = "def first():\n    return 1\ndef second():\n    return 2\n"


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """A module with two functions, importable while the test runs."""
    made = types.ModuleType("races_wire_functions")
    sys.modules[made.__name__] = made
    exec(SOURCE, made.__dict__)  # noqa: S102  # the constant above
    yield made
    del sys.modules[made.__name__]


def test_a_late_callback_spares_the_new_entry(module: types.ModuleType) -> None:
    """A dead function's callback that comes after its id got a new entry leaves that entry alone."""
    _callables.encode_call(module.first, (), {})
    key = id(module.first)
    old = _callables._by_reference[key]
    new = weakref.ref(module.second)
    _callables._by_reference[key] = new

    del module.first
    gc.collect()

    assert old() is None
    assert new is _callables._by_reference.pop(key)


def test_a_callback_in_time_removes_its_entry(module: types.ModuleType) -> None:
    """A dead function's entry goes with it."""
    _callables.encode_call(module.first, (), {})
    key = id(module.first)
    assert key in _callables._by_reference

    del module.first
    gc.collect()

    assert key not in _callables._by_reference


def test_cloudpickle_is_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is pickled while another thread has just begun to import cloudpickle."""
    monkeypatch.setitem(sys.modules, "cloudpickle", types.ModuleType("cloudpickle"))

    body = _callables.encode_call(os.getpid, (), {})

    assert (os.getpid, (), {}) == pickle.loads(body)
