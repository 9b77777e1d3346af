"""Times longer than the system can be asked to wait: they mean what they say."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, config

from snakepit import CallableAdapter, PythonAdapter, SnakepitExecutor

MONTH_S = 30 * 86400.0


@pytest.mark.parametrize("seconds", [MONTH_S, 1e12, math.inf])
@pytest.mark.parametrize(
    "name",
    [
        "health_check_interval_s",
        "kill_grace_s",
        "max_worker_age_s",
        "restart_backoff_cap_s",
        "session_ttl_s",
        "shutdown_grace_s",
        "worker_idle_timeout_s",
        "worker_init_timeout_s",
        "timeout",
    ],
)
def test_a_pool_with_a_long_time_serves(name: str, seconds: float) -> None:
    """The pool's threads rest with such a time ahead of them, and go on afterwards."""
    limit: Any = seconds if name == "timeout" else None
    settings = config() if name == "timeout" else config(**{name: seconds})
    with SnakepitExecutor(PythonAdapter(), 1, config=settings) as ex:
        for number in range(10):
            answer = ex.submit("echo", {"n": number}, timeout=limit, session="s").result(LIMIT_S)
            assert number == answer["echoed"]["n"]
            ex.wait_ready(LIMIT_S)

    with SnakepitExecutor(CallableAdapter(), 1, config=settings, timeout=limit) as ex:
        for number in range(10):
            assert number + 1 == ex.submit(operator.add, number, 1).result(LIMIT_S)
            ex.wait_ready(LIMIT_S)
