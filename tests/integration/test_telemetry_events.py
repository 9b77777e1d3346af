"""Each documented event is emitted, with the documented keys, once for each fact."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from integration.workers.pools import LIMIT_S, Seen, adapter, config, handler_pool, recorded, saboteur_pool

from snakepit import QueueFull, telemetry

from gates import Gate
from leaks import wait_until


@pytest.fixture
def seen() -> Iterator[Seen]:
    """Collect everything that is emitted; each emission has the keys of the documentation."""
    with recorded() as emissions:
        yield emissions
    for event, measurements, metadata in emissions:
        expected = telemetry.EVENTS[event]
        assert (set(expected.measurements), set(expected.metadata)) == (set(measurements), set(metadata)), (
            event
        )
        assert all(value >= 0 for value in measurements.values()), event


def of(seen: Seen, event: str) -> list[dict[str, Any]]:
    """Return the metadata of an event's emissions."""
    return [metadata for name, _, metadata in list(seen) if name == f"snakepit.{event}"]


def test_the_life_of_a_worker(seen: Seen) -> None:
    """Spawned, initialized, exited with its reason; restarted after a death, recycled when planned."""
    with handler_pool(1, name="life") as ex:
        pid = ex.execute("pid")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ex.stats().restarts == 1)
        ex.wait_ready()
        ex.recycle()
        wait_until(lambda: ex.stats().recycled == 1)
        ex.wait_ready()

    assert ["life-0-1", "life-0-2", "life-0-3"] == [
        metadata["worker_id"] for metadata in of(seen, "worker.spawned")
    ]
    assert 3 == len(of(seen, "worker.initialized"))
    exited = of(seen, "worker.exited")
    assert ["crash", "recycled", "shutdown"] == [metadata["reason"] for metadata in exited]
    assert (signal.SIGKILL, None) == (exited[0]["signal"], exited[0]["exit_code"])
    assert [("life-0-2", "crash")] == [(m["worker_id"], m["reason"]) for m in of(seen, "worker.restarted")]
    assert [("life-0-3", "recycled")] == [(m["worker_id"], m["reason"]) for m in of(seen, "worker.recycled")]
    assert pid == of(seen, "worker.spawned")[0]["pid"]


def test_every_end_of_a_request(seen: Seen, gate: Gate) -> None:
    """One snakepit.worker.request a request, with how it ended and how long it waited and ran."""
    with handler_pool(1) as ex:
        ex.execute("run", {"value": 1}, session="s")
        ex.submit("fail").exception(LIMIT_S)
        ex.submit("die", {"code": 1}).exception(LIMIT_S)
        ex.submit("hold", {"gate": gate.path}, timeout=1.0).exception(LIMIT_S)
        gate.wait_started()
        held = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        cancelled, late = ex.submit("run"), ex.submit("run", queue_timeout=0.5)
        cancelled.cancel()
        late.exception(LIMIT_S)
        gate.open()
        held.result(LIMIT_S)

    results = [metadata["result"] for metadata in of(seen, "worker.request")]
    assert ["ok", "error", "died", "timeout", "cancelled", "queue_timeout", "ok"] == results
    first = of(seen, "worker.request")[0]
    assert ("run", "s", "pool-0-1", "pool") == (
        first["command"],
        first["session"],
        first["worker_id"],
        first["pool"],
    )
    durations = [m["duration_s"] for event, m, _ in seen if event == "snakepit.worker.request"]
    assert durations[3] >= 1.0
    assert [("run", None)] == [(m["command"], m["session"]) for m in of(seen, "pool.queue_timeout")]


def test_saturated_and_broken(seen: Seen, gate: Gate) -> None:
    """A refusal and the end of the restart budget are told."""
    with handler_pool(1, max_queue_size=0, name="full") as ex:
        held = ex.submit("hold", {"gate": gate.path})
        gate.wait_started()
        with pytest.raises(QueueFull):
            ex.submit("run")
        gate.open()
        held.result(LIMIT_S)
    with saboteur_pool(1, env={"SABOTEUR_START": "exit"}, config=config(restart_budget=1), name="sad") as ex:
        ex.submit("do", {}).exception(LIMIT_S)

    assert ["full"] == [metadata["pool"] for metadata in of(seen, "pool.saturated")]
    (broken,) = of(seen, "pool.broken")
    assert "sad" == broken["pool"]
    assert "no model file" in broken["error"]


def test_a_slow_callback_is_named(seen: Seen) -> None:
    """User code that keeps the pool's thread for long is reported with its request's command."""
    never = threading.Event()
    with handler_pool(1, config=config(callback_slow_s=0.05)) as ex:
        future = ex.submit("run", {"value": 1})
        future.add_done_callback(lambda _: never.wait(0.2))
        wait_until(lambda: of(seen, "pool.callback_slow"))

    slow = of(seen, "pool.callback_slow")
    assert [("pool", "callback", "run")] == [(m["pool"], m["kind"], m["name"]) for m in slow]


def test_the_life_of_a_session(seen: Seen) -> None:
    """Created at the first binding, lost with the worker, moved for hint, expired after its idle time."""
    with handler_pool(1) as ex:
        pid = ex.execute("pid", session="strict")
        ex.session("hint", affinity="hint").execute("pid")
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: ex.stats().restarts == 1)
        ex.session("hint", affinity="hint", ttl_s=0.05).execute("pid")
        ex.session("short", ttl_s=0.05).execute("pid")
        wait_until(lambda: of(seen, "session.expired"))

    assert [("strict", "strict"), ("hint", "hint"), ("short", "strict")] == [
        (m["session"], m["affinity"]) for m in of(seen, "session.created")
    ]
    assert ["strict"] == [m["session"] for m in of(seen, "session.lost")]
    assert [("hint", "pool-0-2")] == [(m["session"], m["worker_id"]) for m in of(seen, "session.moved")]
    assert "short" in [m["session"] for m in of(seen, "session.expired")]


def test_a_raising_handler_is_detached_and_told(seen: Seen) -> None:
    """A handler that raises on the pool's thread is gone after that, and the pool serves on."""
    calls: list[str] = []

    def bad(event: str, _measurements: object, _metadata: object) -> None:
        calls.append(event)
        raise ValueError("handler")

    telemetry.attach("bad", "snakepit.worker.request", bad)
    with handler_pool(1) as ex:
        assert [1, 2] == [ex.execute("run", {"value": n}) for n in (1, 2)]

    assert ["snakepit.worker.request"] == calls
    assert ["bad"] == [metadata["handler_id"] for metadata in of(seen, "telemetry.handler_failed")]


def test_a_handler_may_submit_but_not_wait() -> None:
    """Handlers run on the pool's thread: submit works there, waiting raises instead of hanging."""
    outcome: list[Any] = []
    done = threading.Event()
    with handler_pool(1, adapter=adapter()) as ex:

        def handler(*_: object) -> None:
            telemetry.detach("submitter")
            outcome.append(ex.submit("run", {"value": "from the handler"}))
            try:
                ex.execute("run")
            except RuntimeError as error:
                outcome.append(str(error))
            done.set()

        telemetry.attach("submitter", "snakepit.worker.request", handler)
        ex.execute("run")
        assert done.wait(LIMIT_S)

        assert "from the handler" == outcome[0].result(LIMIT_S)
    assert "would deadlock" in outcome[1]
