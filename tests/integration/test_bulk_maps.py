"""Maps of commands whose items may travel together: the same results, counts and ends as item by item."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, balance, config, handler_pool, saboteur_pool

from snakepit import (
    CommandAdapter,
    CommandError,
    EncodeError,
    JavaScriptAdapter,
    ProtocolError,
    SnakepitExecutor,
    WorkerDied,
)
from snakepit._core.dispatcher import Dispatcher
from snakepit._pool.bulk import Bulk

from gates import Gate
from leaks import wait_until

Sizes = list[int]


@pytest.fixture
def pool() -> Iterator[SnakepitExecutor]:
    """Return a pool of two workers."""
    with handler_pool(2) as ex:
        ex.wait_ready(workers=2)
        yield ex


@pytest.fixture
def single() -> Iterator[SnakepitExecutor]:
    """Return a pool of one worker."""
    with handler_pool(1) as ex:
        ex.wait_ready()
        yield ex


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> Sizes:
    """Return the list of the sizes in which items are sent, and let seven at a time be sent from the second part on."""
    seen: Sizes = []
    split = Bulk.split

    def recording(self: Bulk, most: int) -> Any:
        part = split(self, most if not seen else 7)
        if part is not None:
            seen.append(part.weight)
        return part

    monkeypatch.setattr(Bulk, "split", recording)
    return seen


def values(items: Any) -> Any:
    """Return the args of "run" for each item."""
    return [{"value": item} for item in items]


def test_ten_thousand_in_order(pool: SnakepitExecutor) -> None:
    """Every result stands at its place."""
    assert list(range(10_000)) == list(pool.map("run", values(range(10_000))))
    stats = pool.stats()
    assert (10_000, 10_000, 0) == (stats.requests, stats.completed, stats.queued)


def test_ten_thousand_unordered(pool: SnakepitExecutor) -> None:
    """Every result comes once."""
    assert list(range(10_000)) == sorted(pool.map_unordered("run", values(range(10_000))))


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("method", ["map", "map_unordered"])
def test_hardly_any_items(pool: SnakepitExecutor, method: str, count: int) -> None:
    """None and one are no special cases."""
    assert list(range(count)) == list(getattr(pool, method)("run", values(range(count))))


def test_slow_items_go_one_by_one_to_all_workers(pool: SnakepitExecutor, gate: Gate) -> None:
    """Items that are held keep no others from a worker that is free."""
    results = pool.map("hold", [{"gate": gate.path, "value": n} for n in range(6)])
    gate.wait_started(2)

    stats = pool.stats()
    assert (2, 4) == (stats.running, stats.queued)
    gate.open()
    assert list(range(6)) == list(results)


def test_items_travel_together(single: SnakepitExecutor, sizes: Sizes) -> None:
    """What is sent as one has one answer for each item."""
    assert list(range(30)) == list(single.map("run", values(range(30))))
    assert max(sizes) == 7
    assert sum(sizes) == 30


def test_bad_and_failing_items_cost_themselves(single: SnakepitExecutor, sizes: Sizes) -> None:
    """In a part as well: the neighbours have their results."""
    items: list[Any] = values(range(40))
    items[10], items[20], items[21] = {"value": {1}}, {"wrong": 1}, {"wrong": 2}

    results = list(single.map("run", items, return_exceptions=True))

    assert isinstance(results[10], EncodeError)
    assert all(isinstance(results[place], CommandError) for place in (20, 21))
    good = [n for n in range(40) if n not in (10, 20, 21)]
    assert good == [results[n] for n in good]
    stats = single.stats()
    assert (39, 37, 2) == (stats.requests, stats.completed, stats.errors)
    assert 7 in sizes


def test_a_death_in_a_part(single: SnakepitExecutor, sizes: Sizes, gate: Gate) -> None:
    """What was answered before counts; the rest of the part died with the worker; nothing runs twice."""
    items: list[Any] = values(range(15))
    # 1 alone, then 1..7 together: 4 is held, so that the answers before it are written, and killed there.
    items[4] = {"value": 4, "gate": gate.path}
    results = single.map_unordered("hold_or_run", items, return_exceptions=True)
    pid = gate.wait_started()[0].pid

    os.kill(pid, signal.SIGKILL)
    outcomes = list(results)

    dead = [error for error in outcomes if isinstance(error, WorkerDied)]
    assert 1 <= len(dead) <= 7
    assert len(outcomes) == 15
    assert set(range(8, 15)) | {0} <= {value for value in outcomes if type(value) is int}
    stats = single.stats()
    assert (15, 15 - len(dead), len(dead)) == (stats.requests, stats.completed, stats.errors)


def test_close_while_a_part_runs(single: SnakepitExecutor, sizes: Sizes, gate: Gate) -> None:
    """What is with a worker goes on; the rest is cancelled, and counted so."""
    items: list[Any] = values(range(30))
    items[3] = {"value": 3, "gate": gate.path}
    results: Any = single.map("hold_or_run", items)
    gate.wait_started()

    results.close()

    stats = single.stats()
    assert (30, 7, 22) == (stats.requests, stats.running, stats.cancelled)
    gate.open()
    assert "after" == single.execute("run", {"value": "after"})
    assert (9, 22, 0) == (single.stats().completed, single.stats().cancelled, single.stats().running)


@pytest.mark.parametrize("cancel", [False, True])
def test_shutdown_in_the_middle(sizes: Sizes, gate: Gate, cancel: bool) -> None:
    """Without cancel_futures all is run; with it, what is with a worker."""
    ex = handler_pool(1)
    items: list[Any] = values(range(30))
    items[3] = {"value": 3, "gate": gate.path}
    results = ex.map("hold_or_run", items, return_exceptions=True)
    gate.wait_started()

    ex.shutdown(wait=False, cancel_futures=cancel)
    gate.open()
    outcomes = list(results)

    assert list(range(8)) == outcomes[:8]
    if cancel:
        assert [CancelledError] * 22 == [type(error) for error in outcomes[8:]]
    else:
        assert list(range(30)) == outcomes
    assert 30 == balance(ex.stats()) == ex.stats().requests
    ex.shutdown()


def test_kill_workers_in_the_middle(sizes: Sizes, gate: Gate) -> None:
    """The part has died, what waited is cancelled."""
    ex = handler_pool(1)
    items: list[Any] = values(range(30))
    items[3] = {"value": 3, "gate": gate.path}
    results = ex.map("hold_or_run", items, return_exceptions=True)
    gate.wait_started()

    ex.kill_workers()
    outcomes = list(results)

    kinds = [type(outcome) for outcome in outcomes]
    assert [int] == kinds[:1]
    assert set(kinds[3:8]) == {WorkerDied}
    assert [CancelledError] * 22 == kinds[8:]
    stats = ex.stats()
    assert 30 == balance(stats) == stats.requests
    assert (22, kinds.count(WorkerDied)) == (stats.cancelled, stats.errors)


def test_a_cancel_between_the_choice_and_the_split(
    single: SnakepitExecutor, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The manager picks a bulk, 2. its caller cancels it, 3. the manager splits it: nothing of it is sent."""
    held = single.submit("hold", {"gate": gate.path})
    gate.wait_started()
    results: Any = single.map("run", values(range(10)))
    start_part = Dispatcher._start_part

    def interrupted(self: Dispatcher, worker: Any, bulk: Any) -> None:
        thread = threading.Thread(target=results.close)
        thread.start()
        thread.join(LIMIT_S)
        start_part(self, worker, bulk)

    monkeypatch.setattr(Dispatcher, "_start_part", interrupted)
    gate.open()
    held.result(LIMIT_S)
    wait_until(lambda: single.stats().available == 1)
    stats = single.stats()
    assert (11, 1, 10, 0) == (stats.requests, stats.completed, stats.cancelled, stats.queued)


def test_the_sums_hold_at_every_reading(pool: SnakepitExecutor) -> None:
    """Whenever somebody looks."""
    results = pool.map("run", values(range(5000)))
    for _ in results:
        stats = pool.stats()
        assert stats.requests == balance(stats) == 5000
        assert stats.queued >= 0


def test_recycling_in_the_middle() -> None:
    """A worker gets no more items than it may still answer."""
    with handler_pool(1, max_tasks_per_child=50) as ex:
        assert list(range(500)) == list(ex.map("run", values(range(500))))
        wait_until(lambda: ex.stats().recycled >= 9)


def test_two_maps_and_calls_between(pool: SnakepitExecutor) -> None:
    """They do not mix."""
    one = pool.map("run", values(range(2000)))
    call = pool.submit("run", {"value": "call"})
    two = pool.map("run", values(range(2000, 4000)))

    assert "call" == call.result(LIMIT_S)
    assert list(range(2000, 4000)) == list(two)
    assert list(range(2000)) == list(one)


def test_big_items(single: SnakepitExecutor) -> None:
    """Frames stay small, whatever the items are."""
    items = [{"value": "x" * 50_000} for _ in range(50)] + [{"value": "y" * 200_000}] + values(range(50))

    results = list(single.map("run", items))

    assert [item["value"] for item in items] == results


def test_bytes_travel_alone(single: SnakepitExecutor) -> None:
    """Items with attachments among others."""
    items: list[Any] = [{"data": b"ab" * n} for n in range(1, 20)]

    assert [2 * n for n in range(1, 20)] == list(single.map("size", items))


def test_a_bridge_of_level_0() -> None:
    """It gets plain commands."""
    with saboteur_pool(1, level=0) as ex:
        assert [None] * 100 == list(ex.map("reply", [{"n": n} for n in range(100)]))
        assert (100, 100) == (ex.stats().requests, ex.stats().completed)


@pytest.mark.parametrize("wrong", [0, 5])
def test_a_bridge_of_node(node: str, sizes: Sizes, wrong: int) -> None:
    """An integer that JavaScript refuses costs its item only."""
    items: list[Any] = [{"operation": "add", "a": n, "b": 1} for n in range(40)]
    items[wrong] = {"operation": "add", "a": 2**60, "b": 1}
    with handler_pool(1, adapter=JavaScriptAdapter(node=node)) as ex:
        results = list(ex.map("compute", items, return_exceptions=True))

    assert isinstance(results[wrong], CommandError)
    others = [n for n in range(40) if n != wrong]
    assert [n + 1 for n in others] == [results[n]["result"] for n in others]
    assert 7 in sizes


REPLIES = """
import json, struct, sys
source, sink = sys.stdin.buffer, sys.stdout.buffer
def write(message):
    payload = json.dumps(message).encode()
    sink.write(struct.pack(">I", len(payload)) + payload)
    sink.flush()
while head := source.read(4):
    message = json.loads(source.read(struct.unpack(">I", head)[0]))
    number = message["id"]
    if number == 0:
        protocol = {"version": 1, "capabilities": ["batch"]}
        write({"id": 0, "success": True, "result": {"status": "ok", "protocol": protocol}})
    elif "batch" not in message:
        write({"id": number, "success": True, "result": "single"})
    else:
        write({"id": number, "success": True, "result": "first", "index": 0})
        write({"id": number, "success": True, "result": "wrong", **WRONG})
"""


@pytest.mark.parametrize("wrong", [{"index": 2}, {"index": 0}, {"index": True}, {}, {"type": "recalled", "index": 1}])
def test_replies_out_of_order(sizes: Sizes, wrong: dict[str, Any]) -> None:
    """A worker that loses count has broken the protocol; what it answered before counts."""
    source = REPLIES.replace("WRONG", repr(wrong))
    with SnakepitExecutor(CommandAdapter([sys.executable, "-c", source]), 1, config=config()) as ex:
        results = list(ex.map("any", range(8), return_exceptions=True))

        assert ["single", "first"] == results[:2]
        assert [ProtocolError] * 6 == [type(result) for result in results[2:]]
        assert (8, 2, 6) == (ex.stats().requests, ex.stats().completed, ex.stats().errors)


def test_a_raising_iterable(single: SnakepitExecutor, gate: Gate) -> None:
    """What was let in already is cancelled."""
    held = single.submit("hold", {"gate": gate.path})
    gate.wait_started()

    def items() -> Iterator[Any]:
        yield from values(range(100))
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        single.map("run", items())
    gate.open()
    held.result(LIMIT_S)
    stats = single.stats()
    assert (1, 0, 0) == (stats.completed, stats.queued, stats.running)


def test_workers_are_started_for_a_bulk(gate: Gate) -> None:
    """A bulk asks for as many workers as it has items."""
    with handler_pool(3) as ex:
        results = ex.map("hold", [{"gate": gate.path, "value": n} for n in range(3)])
        gate.wait_started(3)
        gate.open()
        assert [0, 1, 2] == list(results)
