"""Gives each test every bridge: Python in each interpreter found, and Node."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance.driver import Bridge, find_bridges


@pytest.fixture(params=find_bridges(), ids=str)
def bridge(request: pytest.FixtureRequest, require_runtime: Callable[[str], str]) -> Bridge:
    """Return one bridge after the other; a missing Node skips loudly, or fails with ``CI=true``."""
    chosen: Bridge = request.param
    if chosen.runtime == "node":
        require_runtime("node")
    return chosen


@pytest.fixture
def node(require_runtime: Callable[[str], str]) -> Bridge:
    """Return the Node bridge."""
    require_runtime("node")
    return find_bridges()[-1]
