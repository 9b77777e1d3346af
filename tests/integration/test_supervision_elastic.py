"""Pools that grow when there is work and shrink when there is none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from integration.workers.pools import LIMIT_S, config, handler_pool, lines, recorded, saboteur_pool

from snakepit import SnakepitExecutor

from gates import Gate
from leaks import is_gone, wait_until

IDLE_S = 0.3


def exits(seen: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> list[str]:
    return [metadata["reason"] for _, _, metadata in list(seen)]


def test_a_pool_of_callables_starts_empty() -> None:
    """Without a floor no worker is there before the first call, and one is after it."""
    with SnakepitExecutor(max_workers=3) as ex:
        assert (0, ()) == (ex.stats().workers, ex.workers())

        pid = ex.submit(os.getpid).result(LIMIT_S)

        assert [pid] == [info.pid for info in ex.workers()]


def test_bursts_grow_the_pool_and_pauses_empty_it(make_gate: Callable[[], Gate]) -> None:
    """Each burst gets all workers at once, each pause ends them all; nothing of that counts as a restart."""
    elastic = config(min_workers=0, worker_idle_timeout_s=IDLE_S)
    with recorded("snakepit.worker.exited") as seen, handler_pool(4, config=elastic) as ex:
        assert 0 == ex.stats().workers
        for burst in range(3):
            gate = make_gate()
            futures = [ex.submit("hold", {"gate": gate.path, "value": n}) for n in range(6)]
            pids = {arrival.pid for arrival in gate.wait_started(4, LIMIT_S)}
            assert 4 == len(pids) == ex.stats().busy
            gate.open()
            assert list(range(6)) == [future.result(LIMIT_S) for future in futures]

            wait_until(lambda: ex.stats().workers == 0, LIMIT_S, "all have gone")

            assert ["idle"] * 4 * (burst + 1) == exits(seen)
            assert all(is_gone(pid) for pid in pids)
        assert (0, 0, 18) == (ex.stats().restarts, ex.stats().recycled, ex.stats().completed)


def test_the_floor_stays_and_serves(gate: Gate) -> None:
    """Workers above min_workers go, those of the floor stay."""
    elastic = config(min_workers=1, worker_idle_timeout_s=IDLE_S)
    with recorded("snakepit.worker.exited") as seen, handler_pool(3, config=elastic) as ex:
        futures = [ex.submit("hold", {"gate": gate.path, "value": n}) for n in range(3)]
        gate.wait_started(3, LIMIT_S)
        gate.open()
        assert [0, 1, 2] == [future.result(LIMIT_S) for future in futures]

        wait_until(lambda: len(exits(seen)) == 2, LIMIT_S, "two have gone")
        (left,) = (info.pid for info in ex.workers())

        assert left == ex.submit("pid").result(LIMIT_S)
        assert ["idle", "idle"] == exits(seen)


def test_a_worker_with_a_strict_session_stays_until_the_session_ends(gate: Gate) -> None:
    """Idle for long, it is not shrunk away beside one that is; the session is whole, and its end frees the worker."""
    elastic = config(min_workers=0, worker_idle_timeout_s=IDLE_S)
    with recorded("snakepit.worker.exited", "snakepit.session.lost") as seen, handler_pool(2, config=elastic) as ex:
        pid = ex.submit("put", {"key": "k", "value": 1}, session="s").result(LIMIT_S)
        held = ex.submit("hold", {"gate": gate.path}, session="s")
        gate.wait_started()
        other = ex.submit("pid").result(LIMIT_S)
        assert pid != other
        gate.open()
        held.result(LIMIT_S)

        wait_until(lambda: seen, LIMIT_S, "the one without a session has gone")
        assert 1 == ex.submit("fetch", {"key": "k"}, session="s").result(LIMIT_S)
        assert [pid] == [info.pid for info in ex.workers()]
        ex.end_session("s")

        wait_until(lambda: ex.stats().workers == 0, LIMIT_S, "it has gone as well")
        assert [("snakepit.worker.exited", "idle")] * 2 == [(event, m["reason"]) for event, _, m in seen]


def test_growth_while_starts_fail(tmp_path: Path) -> None:
    """Waiting requests make no more starts than there are of them, and are served once a start succeeds."""
    good, log = tmp_path / "good", tmp_path / "starts"
    env = {"SABOTEUR_START": "exit", "SABOTEUR_GOOD": str(good), "SABOTEUR_LOG": str(log)}
    elastic = config(min_workers=0, restart_budget=1000, restart_backoff_s=0.05, restart_backoff_cap_s=0.05)
    with saboteur_pool(4, env=env, config=elastic) as ex:
        assert 0 == ex.stats().workers
        futures = [ex.submit("do", {"value": n}) for n in range(2)]
        wait_until(lambda: len(lines(log)) >= 6, LIMIT_S, "starts fail")
        slots = ex._manager.ask(lambda scheduler: [slot.incarnation for slot in scheduler.board.workers.slots])

        good.touch()

        assert [0, 1] == [future.result(LIMIT_S) for future in futures]
        assert 2 == sum(number > 0 for number in slots)
        assert (2, 0) == (ex.stats().completed, ex.stats().errors)
