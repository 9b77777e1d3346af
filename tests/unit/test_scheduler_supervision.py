"""Supervision: limits of a worker, pauses between failed starts, healing, elastic pools."""

from __future__ import annotations

import random

import pytest
from unit.scheduling import Bench, outcome

from snakepit._core import model as m
from snakepit._core.model import PoolState, Slot, Worker
from snakepit._core.restarts import RestartPolicy
from snakepit.errors import PoolBroken


def reasons(bench: Bench) -> list[str]:
    return [str(event["reason"]) for event in bench.events("worker.exited")]


def lining_up(bench: Bench, worker: Worker) -> None:
    """Line one worker up for replacement, as its memory would."""
    bench.handle(m.RssMeasured(worker.worker_id, 2000))


# Limits ---------------------------------------------------------------------------------------------


def test_a_large_request_limit_varies_and_is_never_exceeded() -> None:
    """Workers are lined up within the last tenth of their requests, each at its own place, one after another."""
    bench = Bench(4, max_requests_per_worker=100, can_claim=True).up()
    places = [worker.lined_up_at for worker in bench.board.workers.by_id.values()]
    assert all(90 <= place <= 100 for place in places)
    assert len(set(places)) > 2

    for _ in range(600):
        bench.submit()
    for _ in range(20):
        bench.run()
        bench.exit_condemned()
        bench.ready_all()

    served = [len(process.begun) for process in bench.processes.values() if not process.alive]
    assert len(served) >= 4
    assert all(90 <= number <= 100 for number in served)
    assert min(served) < 100
    assert {"max_requests"} == set(reasons(bench))
    assert all(outcome(request) == "ok" for request in bench.requests)


@pytest.mark.parametrize("seed", range(5))
def test_a_small_request_limit_is_exact(seed: int) -> None:
    """Below ten requests nothing varies: a worker answers exactly as many as it may."""
    bench = Bench(max_requests_per_worker=9, seed=seed).up()
    for _ in range(20):
        bench.submit()

    for _ in range(3):
        bench.run()
        bench.exit_condemned()
        bench.ready_all()

    assert [9, 9, 2] == [len(process.begun) for process in bench.processes.values()]


def test_memory_of_a_fresh_worker_is_no_reason_to_replace_it() -> None:
    """A limit below what an unused worker needs does not replace one worker after another."""
    bench = Bench(max_worker_rss_bytes=1000).up()
    for _ in range(5):
        lining_up(bench, bench[0].worker)
    assert ["idle"] == bench.states()

    bench.submit()
    bench.run()
    lining_up(bench, bench[0].worker)

    assert ["condemned"] == bench.states()


# Back-off and healing -------------------------------------------------------------------------------


def delays(rng: random.Random, jitter: float = 0.2) -> list[float]:
    policy = RestartPolicy(first_s=0.1, factor=2.0, cap_s=10.0, jitter=jitter, budget=50, rng=rng)
    slot = Slot(0)
    return [policy.failed(slot, ValueError()) for _ in range(12)]


def test_delays_vary_within_their_share() -> None:
    """The same seed gives the same delays, another seed others, all within 20 % of the capped doubling."""
    plain = delays(random.Random(1), jitter=0.0)
    varied = delays(random.Random(1))

    assert [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 10, 10] == pytest.approx(plain)
    assert varied == delays(random.Random(1))
    assert varied != delays(random.Random(2))
    shares = [delay / base for delay, base in zip(varied, plain, strict=True)]
    assert all(0.8 <= share <= 1.2 for share in shares)
    assert 12 == len(set(shares))
    assert min(shares) < 0.95 < 1.05 < max(shares)


def spend(bench: Bench) -> None:
    """Let every start fail until the pool is broken."""
    for _ in range(50):
        if bench.scheduler.state is PoolState.BROKEN:
            return
        for process in bench.living():
            if process.condemned is None and not process.ready:
                bench.spawned(process)
                bench.exit(process, code=1, tail="no model")
        bench.exit_condemned()
        bench.advance(15.0)
    raise AssertionError("the budget is never spent")


def test_a_worker_that_idled_for_long_had_started() -> None:
    """Deaths of workers that nobody needed break no pool, however many, once they were ready for the longest pause."""
    bench = Bench(restart_budget=2, restart_backoff_cap_s=10.0).up()

    for _ in range(5):
        bench.advance(10.0)
        bench.exit(next(process for process in bench.processes.values() if process.alive), signal=9)
        bench.ready_all()
    assert (PoolState.OPEN, 0) == (bench.scheduler.board.state, bench.scheduler.lifecycle.policy.failures)

    bench.advance(9.0)
    bench.exit(next(process for process in bench.processes.values() if process.alive), signal=9)

    assert 1 == bench.scheduler.lifecycle.policy.failures


def test_a_pool_is_healed_and_breaks_again_and_is_healed() -> None:
    """Each recycle() gives a full budget; what comes while the pool is broken fails, and what comes after serves."""
    bench = Bench(2, restart_budget=3).start()
    starts = 0
    for _ in range(3):
        before = bench.submit()
        spend(bench)
        between = bench.submit()
        assert [True, True] == [isinstance(r.future.error, PoolBroken) for r in (before, between)]
        assert "no model" in str(before.future.error)
        bench.exit_condemned()
        assert 0 == len(bench.living())
        assert len(bench.processes) - starts <= 6
        starts = len(bench.processes)
        bench.handle(m.RecycleRequested())
        bench.handle(m.RecycleRequested())
        assert PoolState.OPEN is bench.scheduler.state

    served = bench.submit()
    bench.exit_condemned()
    bench.ready_all()
    bench.run()

    assert "ok" == outcome(served)
    assert 3 == len(bench.events("pool.broken"))


# Elastic pools --------------------------------------------------------------------------------------


def test_bursts_do_not_make_an_elastic_pool_flap() -> None:
    """Workers are kept over pauses shorter than their idle time, and go one idle time after the last burst."""
    bench = Bench(4, min_workers=0, worker_idle_timeout_s=10.0, health_check_interval_s=1e6).start()
    for _ in range(20):
        for _ in range(4):
            bench.submit()
        bench.ready_all()
        bench.run()
        bench.advance(9.0)
    assert (4, 4) == (len(bench.processes), len(bench.living()))

    bench.advance(1.0)

    assert ["condemned"] * 4 == bench.states()
    bench.exit_condemned()
    assert 0 == len(bench.living())


def test_the_pool_shrinks_to_what_a_trickle_needs() -> None:
    """With one request at a time, the worker used last serves on, and the others go."""
    bench = Bench(4, min_workers=0, worker_idle_timeout_s=10.0, health_check_interval_s=1e6).start()
    for _ in range(4):
        bench.submit()
    bench.ready_all()
    bench.run()

    for _ in range(5):
        bench.advance(3.0)
        bench.submit()
        bench.run()
    bench.exit_condemned()

    assert 1 == len(bench.living())
    assert ["idle"] * 3 == reasons(bench)


def test_growth_while_a_worker_fails_to_start() -> None:
    """Each waiting request has at most one start under way, failed ones in their back-off included."""
    bench = Bench(4, min_workers=0, restart_budget=50).start()
    bench.submit()
    first = bench.living()[0]
    bench.spawned(first)
    bench.exit(first, code=1)
    assert (0, 1) == (len(bench.living()), bench.board.workers.backing_off)

    bench.submit()
    assert (1, 1) == (len(bench.living()), bench.board.workers.backing_off)
    bench.ready_all()
    bench.run()

    assert ["ok", "ok"] == [outcome(request) for request in bench.requests]
    assert 2 == len(bench.processes)
