"""When replies leave: each as soon as it exists; those of a batch together, but behind one item at most."""

from __future__ import annotations

from typing import Any

import pytest
from conformance.driver import Bridge, dumps, frame, start_bridge


def frames(*messages: Any) -> bytes:
    """Return messages as a host writes them at once."""
    return b"".join(frame(dumps(message)) for message in messages)


def assert_claims_are_refused(bridge: Bridge, requests: list[Any]) -> None:
    """A language that cannot look into the claim pipe agrees on no claims, and runs nothing that has one."""
    with start_bridge(bridge) as worker:
        agreed = worker.start()["result"]["protocol"]["capabilities"]

        worker.send_bytes(frames(*requests))
        errors = [worker.receive()["error"] for _ in requests]

        assert "claim" not in agreed
        assert {("internal", "ProtocolError")} == {(error["code"], error["type"]) for error in errors}


def test_each_reply_leaves_before_the_next_request_begins(bridge: Bridge) -> None:
    """Twenty requests that arrive together are twenty writes, and their replies wait for no handler."""
    requests = [{"id": n, "command": "identity", "args": {"value": n}} for n in range(1, 21)]
    expected = [{"id": n, "success": True, "result": n} for n in range(1, 21)]
    if "sockets" in bridge.cannot:
        with start_bridge(bridge) as worker:
            worker.start()
            before = worker.writes()

            worker.send_bytes(frames(*requests, {"id": 21, "command": "hang", "args": {}}))
            replies = [worker.receive() for _ in requests]

            assert ("hanging", expected) == (worker.receive()["message"], replies)
            assert worker.writes() - before in (20, 21), "the last write is the log message"
        return
    with start_bridge(bridge, packets=True) as worker:
        worker.start()

        worker.send_bytes(frames(*requests, {"id": 21, "command": "stall", "args": {"ms": None}}))
        packets = [worker.receive_packet() for _ in requests]

        assert [[reply] for reply in expected] == packets


def test_quick_items_of_a_batch_are_answered_together(bridge: Bridge) -> None:
    """A hundred of them take fewer writes than a hundred, whatever else the machine does."""
    size, packets = 100, "sockets" not in bridge.cannot
    replies: list[Any] = []
    with start_bridge(bridge, packets=packets) as worker:
        worker.start()
        before, received = worker.writes(), 0

        worker.send({"id": 1, "command": "identity", "batch": [{"value": n} for n in range(size)]})
        while len(replies) < size:
            replies += worker.receive_packet() if packets else [worker.receive()]
            received += 1

        assert [(1, n, n) for n in range(size)] == [(r["id"], r["index"], r["result"]) for r in replies]
        assert (received if packets else worker.writes() - before) < size - 1


def test_reply_of_a_batch_waits_behind_one_item_at_most(bridge: Bridge) -> None:
    """What is older than a millisecond is written before the next item begins."""
    with start_bridge(bridge) as worker:
        worker.start()

        worker.send({"id": 1, "command": "stall", "batch": [{"ms": 0}, {"ms": 2}, {"ms": None}]})
        replies = [worker.receive(), worker.receive()]

        assert [(0, 0), (1, 2)] == [(reply["index"], reply["result"]) for reply in replies]


def test_reply_of_a_batch_does_not_wait_for_a_promise(bridge: Bridge) -> None:
    """An item that waits asynchronously keeps no reply of the items before it; without async they end the batch."""
    waiting = [] if "async" in bridge.cannot else [{"ms": None}]
    with start_bridge(bridge) as worker:
        worker.start()

        worker.send({"id": 1, "command": "stall_later", "batch": [{"ms": 0}, {"ms": 0}, *waiting]})
        replies = [worker.receive(), worker.receive()]

        assert [0, 1] == [reply["index"] for reply in replies]


def test_errors_of_a_batch_keep_their_order(bridge: Bridge) -> None:
    """Results and errors alternate as their items do."""
    items = [{"operation": "divide", "a": n, "b": n % 2} for n in range(20)]
    with start_bridge(bridge) as worker:
        worker.start()

        worker.send({"id": 1, "command": "compute", "batch": items})
        replies = [worker.receive() for _ in items]

        assert [(n, n % 2 == 1) for n in range(20)] == [(reply["index"], reply["success"]) for reply in replies]


def test_long_results_of_a_batch_keep_their_order(bridge: Bridge) -> None:
    """Those that are written alone do not overtake those that wait, and none is too many to wait."""
    sizes = [10, 50_000, 50_000, 10, 300_000, 10]
    with start_bridge(bridge) as worker:
        worker.start()

        worker.send({"id": 1, "command": "text", "batch": [{"size": size} for size in sizes]})
        replies = [worker.receive() for _ in sizes]

        assert list(enumerate(sizes)) == [(reply["index"], len(reply["result"])) for reply in replies]


@pytest.mark.parametrize("ending", ["in a batch", "alone"])
def test_recalled_requests_are_answered_together_and_before_anything_runs(bridge: Bridge, ending: str) -> None:
    """Twenty that were taken back are one write; a request behind them begins only after it.

    They may be more writes: with sockets that a language cannot use, only the order is seen.
    """
    behind = {"batch": [{"ms": None}]} if ending == "in a batch" else {"args": {"ms": None}}
    taken_back = [{"id": n, "command": "stall", "args": {"ms": 0}, "claim": True} for n in range(1, 21)]
    if "claim" in bridge.cannot:
        assert_claims_are_refused(bridge, taken_back)
        return
    packets = "sockets" not in bridge.cannot
    with start_bridge(bridge, packets=packets) as worker:
        worker.start()

        worker.send_bytes(frames(*taken_back, {"id": 21, "command": "stall", **behind}))
        packet = worker.receive_packet() if packets else [worker.receive() for _ in taken_back]

        assert [{"id": n, "type": "recalled"} for n in range(1, 21)] == packet


def test_recalled_requests_are_answered_before_the_worker_waits(bridge: Bridge) -> None:
    """Also when the frame behind them is not complete yet."""
    taken_back = [{"id": n, "command": "stall", "args": {"ms": 0}, "claim": True} for n in (1, 2)]
    request = frames({"id": 3, "command": "identity", "args": {"value": 3}})
    if "claim" in bridge.cannot:
        assert_claims_are_refused(bridge, taken_back)
        return
    with start_bridge(bridge) as worker:
        worker.start()

        worker.send_bytes(frames(*taken_back) + request[:9])
        recalled = [worker.receive(), worker.receive()]
        worker.send_bytes(request[9:])

        assert [{"id": 1, "type": "recalled"}, {"id": 2, "type": "recalled"}] == recalled
        assert 3 == worker.receive()["result"]
