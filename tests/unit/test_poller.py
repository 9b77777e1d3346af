"""How long the pool's thread asks the system to wait."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from snakepit._pool.poller import Poller, _Epoll, _Selector


@pytest.fixture(params=[_Epoll, _Selector])
def poller(request: pytest.FixtureRequest) -> Iterator[Poller[str]]:
    """Return each kind of poller."""
    make: Callable[[], Any] = request.param
    made = make()
    yield made
    made.close()


@pytest.mark.parametrize("seconds", [None, 0.0, 30 * 86400.0, 1e300, math.inf])
def test_any_time_can_be_waited_for(poller: Poller[str], seconds: float | None) -> None:
    """What the system cannot take, more milliseconds than 31 bits hold, is as good as for ever."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"x")
    poller.watch(read_fd, "the pipe")

    ready = poller.poll(seconds)

    poller.unwatch(read_fd)
    os.close(read_fd)
    os.close(write_fd)
    assert 1 == len(ready)
