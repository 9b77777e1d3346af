"""Bulks in the scheduler: which worker is given how many items, and what becomes of the rest."""

from __future__ import annotations

import pytest
from unit.scheduling import Bench

from snakepit._core import model as m
from snakepit._core.portions import LEAST_S, MAX_PART, PART_S, SLOW_S, part_size


def bulk(bench: Bench, items: int) -> m.Request:
    """Submit a bulk of items."""
    request = bench.accept_bulk(items)
    bench.handle(m.Submitted(request))
    return request


def weights(bench: Bench) -> list[int]:
    """Return how many items each part had, oldest first."""
    return [r.weight for action in bench.actions(m.Dispatch) for r in action.requests if r.command == "bulk"]


def warm(item_s: float, size: int = 1, **options: bool) -> Bench:
    """Return a bench whose workers have taken ``item_s`` for a request."""
    bench = Bench(size, **options).up()
    for worker in bench.board.workers.by_id.values():
        worker.item_s = worker.service_s = item_s
    return bench


@pytest.mark.parametrize(
    ("item_s", "items", "workers", "size"),
    [
        pytest.param(None, 1000, 1, 1, id="unknown"),
        pytest.param(SLOW_S * 1.01, 1000, 1, 1, id="slow"),
        pytest.param(1e-4, 1000, 1, int(PART_S / 1e-4), id="time"),
        pytest.param(0.0, 100_000, 1, MAX_PART, id="most"),
        pytest.param(1e-5, 401, 2, 101, id="share"),
        pytest.param(1e-5, 30, 2, int(LEAST_S / 1e-5), id="least"),
        pytest.param(1e-5, 3, 2, 3, id="rest"),
    ],
)
def test_the_size_of_a_part(item_s: float | None, items: int, workers: int, size: int) -> None:
    """By the time of an item, the items left and the workers that share them."""
    bench = Bench().up()
    worker = bench[0].worker
    worker.item_s = item_s

    assert size == part_size(worker, items, workers)


def test_a_worker_that_takes_no_batch_gets_single_items() -> None:
    """However fast it is."""
    bench = warm(1e-6, can_batch=False)
    bulk(bench, 5)
    bench.run()

    assert [1] * 5 == weights(bench)


def test_every_item_is_sent_once() -> None:
    """The bulk ends, without an action of its own, with its last part."""
    bench = warm(1e-5, 2)
    request = bulk(bench, 1000)
    bench.run()

    assert 1000 == sum(weights(bench))
    assert (m.RequestState.DONE, 0, 0) == (request.state, request.weight, bench.ends[request])
    assert all(bench.ends[part] == 1 for part in request.future.parts)


def test_idle_workers_share_a_bulk() -> None:
    """No worker is idle while items wait, and nothing is sent ahead of a part's answer."""
    bench = warm(1.0, 3, can_claim=True)
    bulk(bench, 10)

    assert [["bulk"]] * 3 == [bench.sent(index) for index in range(3)]


def test_the_rest_keeps_its_place() -> None:
    """What was accepted later runs later, also when the rest has been put back."""
    bench = warm(1.0)
    bulk(bench, 3)
    bench.submit("later")
    bench.submit("sooner", priority=1)

    assert ["bulk", "sooner", "bulk", "bulk", "later"] == [bench.reply().command for _ in range(5)]


def test_the_time_of_a_part_is_that_of_its_items() -> None:
    """A part of many items makes no worker slow."""
    bench = warm(1e-4)
    bulk(bench, 100)
    bench.now += 0.003
    bench.reply()

    assert bench[0].worker.item_s == pytest.approx(1e-4)


def test_a_part_keeps_to_what_a_worker_may_still_answer() -> None:
    """A worker that is to be replaced after so many requests gets no more items."""
    bench = Bench(1, max_requests_per_worker=8).up()
    bench[0].worker.item_s = 1e-5
    bulk(bench, 100)

    assert [8] == weights(bench)


def test_a_cancelled_bulk_is_not_split() -> None:
    """1. The caller cancels, 2. the manager picks the bulk, 3. it hears of the cancellation."""
    bench = warm(1.0)
    bench.submit("running")
    request = bulk(bench, 10)
    assert bench.cancel_future(request)
    bench.reply()
    bench.hear_cancel(request)

    assert [] == weights(bench)
    assert [] == bench.sent()


def test_the_death_of_a_worker_costs_its_part_only() -> None:
    """The rest goes to the next worker."""
    bench = warm(1e-4)
    request = bulk(bench, 100)
    bench[0].begin()
    bench.exit(bench[0], signal=11)
    bench.ready_all()
    bench.run()

    first, *others = request.future.parts
    assert isinstance(first.future.end, m.Fail)
    assert all(isinstance(part.future.end, m.Resolve) for part in others)
    assert 100 == sum(part.weight for part in request.future.parts)


def test_shutdown_cancels_the_rest() -> None:
    """With one Cancel for the bulk; its running part goes on."""
    bench = warm(1.0)
    request = bulk(bench, 5)
    bench.handle(m.ShutdownRequested(cancel_queued=True))

    assert [request] == [action.request for action in bench.actions(m.Cancel)]
    bench.run()
    assert [1] == weights(bench)


def test_a_bulk_asks_for_workers() -> None:
    """As many as it has items."""
    bench = Bench(3, 0).up()
    bulk(bench, 2)

    assert 2 == len(bench.actions(m.Spawn))
