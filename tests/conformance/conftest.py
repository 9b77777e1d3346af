"""Gives each test every bridge: Python in each interpreter found, Node, and the other languages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance.driver import Bridge, find_bridges, prepare


@pytest.fixture(params=find_bridges(), ids=str)
def bridge(request: pytest.FixtureRequest, require_runtime: Callable[[str], str]) -> Bridge:
    """Return one bridge after the other; a missing runtime skips loudly, or fails with ``CI=true``."""
    chosen: Bridge = request.param
    if chosen.language != "python":
        require_runtime(chosen.runtime)
    prepare(chosen)
    return chosen


@pytest.fixture
def node(require_runtime: Callable[[str], str]) -> Bridge:
    """Return the Node bridge."""
    require_runtime("node")
    (bridge,) = (bridge for bridge in find_bridges() if bridge.runtime == "node")
    return bridge
