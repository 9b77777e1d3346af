"""map and map_unordered: the standard contract, and what commands add to it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, balance, handler_pool, lines

from snakepit import CommandError, CommandTimeout, EncodeError, SnakepitExecutor
from snakepit._pool import map as _map

from gates import Gate
from leaks import wait_until


@pytest.fixture(scope="module")
def pool() -> Iterator[SnakepitExecutor]:
    """Return a pool that the tests of this file share."""
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        yield ex


@pytest.fixture
def single() -> Iterator[SnakepitExecutor]:
    """Return a pool of one worker."""
    with handler_pool(1) as ex:
        ex.wait_ready()
        yield ex


def values(items: Any) -> Any:
    """Return the args of "run" for each item."""
    return ({"value": item} for item in items)


@pytest.mark.parametrize("chunksize", [None, 1, 7, 1000])
@pytest.mark.parametrize("buffersize", [None, 1, 10])
def test_results_come_in_order(pool: SnakepitExecutor, chunksize: int | None, buffersize: int | None) -> None:
    """Whatever the sizes, results stand in the order of the items."""
    results = pool.map("run", values(range(100)), chunksize=chunksize, buffersize=buffersize)

    assert list(range(100)) == list(results)


@pytest.mark.parametrize("buffersize", [None, 1, 10])
def test_unordered_has_them_all(pool: SnakepitExecutor, buffersize: int | None) -> None:
    """map_unordered gives every result once."""
    assert list(range(100)) == sorted(pool.map_unordered("run", values(range(100)), buffersize=buffersize))


def test_unordered_gives_what_is_done(pool: SnakepitExecutor, gate: Gate) -> None:
    """A held item holds only its own result up."""
    items: list[Any] = [{"gate": gate.path, "value": "held"}]
    held = pool.submit("hold", items[0])
    gate.wait_started()
    results = pool.map_unordered("run", values(range(20)))

    assert list(range(20)) == sorted(results)
    assert not held.done()
    gate.open()
    held.result(LIMIT_S)


def test_the_empty_map(pool: SnakepitExecutor) -> None:
    """No items, no results, nothing submitted."""
    accepted = pool.stats().requests

    assert [] == [*pool.map("run", []), *pool.map_unordered("run", [])]
    assert accepted == pool.stats().requests


def test_all_input_is_read_at_once_without_a_buffersize(pool: SnakepitExecutor) -> None:
    """The standard contract: the iterable is drained by the call itself."""
    read: list[int] = []

    results = pool.map("run", ({"value": read.append(n) or n} for n in range(10)))

    assert list(range(10)) == read
    assert list(range(10)) == list(results)


def test_buffersize_with_an_endless_generator(pool: SnakepitExecutor) -> None:
    """No more items are out than allowed, so an endless input works (F25)."""
    read = itertools.count()
    items = ({"value": n} for n in read)

    results = pool.map("run", items, buffersize=5)

    assert list(range(50)) == list(itertools.islice(results, 50))
    assert next(read) <= 56
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["map", "map_unordered"])
def test_timeout_counts_from_the_call(single: SnakepitExecutor, gate: Gate, method: str) -> None:
    """When the results are not there in time the iterator raises TimeoutError and cancels the rest."""
    items = [{"gate": gate.path, "value": n} for n in range(4)]

    results = getattr(single, method)("hold", items, timeout=0.2)
    gate.wait_started()

    with pytest.raises(TimeoutError):
        next(results)
    assert 3 == single.stats().cancelled
    gate.open()


@pytest.mark.parametrize("begin", [False, True], ids=["unstarted", "started"])
@pytest.mark.parametrize("method", ["map", "map_unordered"])
def test_closing_cancels_the_rest(
    single: SnakepitExecutor, make_gate: Callable[[], Gate], tmp_path: Path, method: str, begin: bool
) -> None:
    """close() cancels what has not begun, also before the first result was taken."""
    gate, log = make_gate(), tmp_path / "runs"
    items = [{"gate": gate.path, "value": n, "log": str(log)} for n in range(10)]

    # With a queue time-out nothing is sent ahead; for cancel() what lies in a pipe has begun.
    results = getattr(single, method)("hold", items, queue_timeout=60)
    gate.wait_started()
    if begin:
        gate.release()
        assert 0 == next(results)
        gate.wait_started()
    results.close()

    assert 8 + (not begin) == single.stats().cancelled
    gate.open()
    assert "after" == single.execute("run", {"value": "after"})
    assert ["0", "1"][: 1 + begin] == lines(log)


def test_a_dropped_map_is_still_run(single: SnakepitExecutor, tmp_path: Path) -> None:
    """Somebody who never looks at the results has the work done, as in the standard library."""
    log = tmp_path / "runs"

    single.map("run", [{"value": n, "log": str(log)} for n in range(5)])

    wait_until(lambda: len(lines(log)) == 5)


def test_an_exception_ends_the_iteration_and_cancels_the_rest(single: SnakepitExecutor, gate: Gate) -> None:
    """The standard contract: the item's exception is raised at its place."""
    results = single.map("run", [{"value": 1}, {"wrong": 1}, {"value": 2}])

    assert 1 == next(results)
    with pytest.raises(CommandError, match="wrong"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_return_exceptions_costs_that_item_only(pool: SnakepitExecutor) -> None:
    """With return_exceptions each error stands at its item's place."""
    items: list[Any] = [{"value": 0}, {"value": {1}}, {"wrong": 1}, {"value": 3}]

    results = list(pool.map("run", items, return_exceptions=True))

    assert [0, 3] == [results[0], results[3]]
    assert [EncodeError, True] == [type(results[1]), isinstance(results[2], CommandError)]


def test_one_item_that_cannot_be_sent(pool: SnakepitExecutor) -> None:
    """An item that cannot be encoded raises at its place; those before it have their results."""
    results = pool.map("run", [{"value": 1}, {"value": {1}}, {"value": 2}])

    assert 1 == next(results)
    with pytest.raises(EncodeError, match="/args/value: set"):
        next(results)


def test_item_timeout(single: SnakepitExecutor, gate: Gate) -> None:
    """item_timeout bounds each item's run, not the whole."""
    items = [{"gate": gate.path, "value": n} for n in range(2)]

    results = list(single.map("hold", items, item_timeout=0.15, return_exceptions=True))

    assert [CommandTimeout] * 2 == [type(error) for error in results]
    assert 2 == single.stats().command_timeouts


def test_a_timed_out_item_is_not_the_maps_timeout(single: SnakepitExecutor, gate: Gate) -> None:
    """CommandTimeout is a TimeoutError, but it is the item's and can be returned."""
    items = [{"gate": gate.path}]

    results = list(single.map("hold", items, timeout=30, item_timeout=0.1, return_exceptions=True))

    assert [CommandTimeout] == [type(error) for error in results]


def test_session(pool: SnakepitExecutor) -> None:
    """session= keeps the items in one worker and in order."""
    results = list(pool.map("append", ([n] for n in range(30)), session="m"))

    assert 1 == len({pid for pid, _ in results})
    assert list(range(30)) == results[-1][1]
    pool.end_session("m")


def test_map_waits_for_room_in_a_small_queue() -> None:
    """With a bounded queue map waits for room instead of failing half-way."""
    with handler_pool(2, max_queue_size=3) as ex:
        assert list(range(100)) == list(ex.map("run", values(range(100))))
        assert (100, 0) == (balance(ex.stats()), ex.stats().pool_saturated)


def test_a_raising_iterable_cancels_what_was_submitted(single: SnakepitExecutor, gate: Gate) -> None:
    """The input's own exception comes out of map, and none of the items read so far runs."""
    running = single.submit("hold", {"gate": gate.path})
    gate.wait_started()

    def items() -> Iterator[Any]:
        yield {"value": 1}
        yield {"value": 2}
        raise OSError("disk")

    for method in (single.map, single.map_unordered):
        with pytest.raises(OSError, match="disk"):
            method("run", items())
    gate.open()
    running.result(LIMIT_S)
    stats = single.stats()
    assert (1, 0, 0) == (stats.completed, stats.queued, stats.running)
    assert 1 == stats.requests - stats.cancelled


def test_shutdown_during_a_buffered_map(gate: Gate) -> None:
    """A map that still has to submit ends with the error of a submit after shutdown."""
    ex = handler_pool(1)
    results = ex.map("run", values(itertools.count()), buffersize=2)
    next(results)

    ex.shutdown()

    with pytest.raises(RuntimeError, match="after shutdown"):
        list(results)


class Late(Future[int]):
    """Ends well at the very moment at which the wait for it is over."""

    def result(self, timeout: float | None = None) -> int:
        """Return the result, once."""
        if timeout is not None:
            self.set_result(7)
            raise TimeoutError
        return super().result()


def test_an_item_that_ends_as_the_time_is_over() -> None:
    """Its result counts; it is not taken for a failure without an exception."""
    assert 7 == _map._outcome(Late(), 0.0, True)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["map", "map_unordered"])
def test_chunks_of_callables_have_one_outcome(name: str) -> None:
    """So exceptions cannot stand at the places of their items, and are not asked for."""
    with SnakepitExecutor(1) as ex:
        run = getattr(ex, name)
        with pytest.raises(ValueError, match="return_exceptions needs a chunksize of 1, not 3"):
            run(divmod, [1, 2], [0, 1], chunksize=3, return_exceptions=True)

        outcomes = list(run(divmod, [1, 2], [0, 1], chunksize=1, return_exceptions=True))

    assert [(2, 0), "ZeroDivisionError"] == sorted(
        (type(item).__name__ if isinstance(item, Exception) else item for item in outcomes), key=str
    )
