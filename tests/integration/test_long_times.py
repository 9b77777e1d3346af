"""Times longer than the system can be asked to wait: they mean what they say."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, config

from snakepit import CallableAdapter, PythonAdapter, SnakepitExecutor

MONTH_S = 30 * 86400.0


@pytest.mark.parametrize("seconds", [MONTH_S, 1e9, 1e10, 1e11, 1e300, math.inf])
def test_callers_wait_for_a_long_time(seconds: float) -> None:
    """Wherever a caller gives a time to wait: locks of the system know no such one."""
    settings = config(startup_timeout_s=seconds)
    limits: Any = {"timeout": seconds, "queue_timeout": seconds}
    with SnakepitExecutor(PythonAdapter(), 1, config=settings, queue_full="block", max_queue_size=2, **limits) as ex:
        ex.wait_ready()
        ex.wait_ready(seconds)
        args = [{"n": number} for number in range(10)]
        for results in (
            ex.map("echo", args, timeout=seconds),
            ex.map("echo", args, timeout=seconds, chunksize=2, item_timeout=seconds),
            ex.map_unordered("echo", args, timeout=seconds),
        ):
            assert list(range(10)) == sorted(answer["echoed"]["n"] for answer in results)
        with ex.session("s", ttl_s=seconds) as view:
            assert view.execute("echo", {"n": 1})["echoed"] == {"n": 1}
        ex.shutdown(timeout=seconds)

    with SnakepitExecutor(PythonAdapter(), 1) as ex:
        for results in (ex.map("echo", args, timeout=seconds), ex.map_unordered("echo", args, timeout=seconds)):
            assert list(range(10)) == sorted(answer["echoed"]["n"] for answer in results)


def test_a_session_that_never_expires() -> None:
    """An endless time to live is not the pool's."""
    with SnakepitExecutor(PythonAdapter(), 1) as ex:
        view = ex.session("s", ttl_s=math.inf)
        assert view.execute("echo", {"n": 1})["echoed"] == {"n": 1}
        assert math.inf == ex._manager.ask(lambda scheduler: scheduler.rules.table.get("s").ttl_s)


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
