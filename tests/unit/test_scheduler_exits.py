"""What the claim tokens of a worker that is gone tell: its oldest request may not have begun."""

from __future__ import annotations

import pytest
from unit.scheduling import Bench, outcome

from snakepit._core import model as m
from snakepit._core.model import Outcome, Request
from snakepit.errors import ProtocolError, SessionLost, WorkerDied


def answered_once(bench: Bench, requests: list[Request]) -> None:
    """Let the process answer ``r0``; ``r1`` is the oldest then, and the process has not begun it."""
    bench.reply()
    assert requests[1].started_at is not None
    assert "r1" == bench.sent()[0]


def fed(**options: object) -> tuple[Bench, list[Request]]:
    """Return a bench whose worker runs ``r0`` and holds ``r1`` to ``r3`` in its pipe."""
    bench = Bench(can_claim=True).up()
    # A strict session is bound to the worker by its first request.
    bench.submit("warm-up", **options)
    bench.run()
    bench.submit("opener", **options)
    requests = [bench.submit(f"r{number}", chunk="map", **options) for number in range(4)]
    bench.reply()
    assert ["r0", "r1", "r2", "r3"] == bench.sent()
    return bench, requests


@pytest.mark.parametrize("garbled", [False, True], ids=["exit", "garbage"])
def test_an_oldest_request_that_was_not_begun_is_put_back(garbled: bool) -> None:
    """A worker answers and ends before it takes the next token: nobody fails, and all others run once, in order."""
    bench, requests = fed(timeout_s=5.0)
    answered_once(bench, requests)
    process = bench[0]

    if garbled:
        process.closed = True
        bench.take_all_back(process)
        bench.handle(m.Misbehaved(process.worker_id, ProtocolError("garbage")))
    bench.exit(process, code=5)
    bench.advance(6.0)

    assert ["ok", None, None, None] == [outcome(request) for request in requests]
    bench.ready_all()
    bench.run()
    assert ["ok"] * 4 == [outcome(request) for request in requests]
    assert ["r1", "r2", "r3"] == [request.command for request in bench[0].begun]


def test_an_oldest_request_that_was_begun_fails() -> None:
    """A worker takes the token of its next request and ends: that one has failed, the others are put back."""
    bench, requests = fed()
    answered_once(bench, requests)
    bench.begin(bench[0])

    bench.exit(bench[0], code=5)

    assert ["ok", Outcome.DIED, None, None] == [outcome(request) for request in requests]


def test_a_sessions_oldest_request_that_was_not_begun_is_lost() -> None:
    """It did not die with its worker: its session's state did."""
    bench, requests = fed(session="s")
    answered_once(bench, requests)

    bench.exit(bench[0], code=5)

    assert [SessionLost] * 3 == [type(request.future.error) for request in requests[1:]]


def test_a_message_cut_short_is_told() -> None:
    """The process that ends inside a message of its own has died, and the error says both."""
    bench = Bench().up()
    request = bench.submit()

    bench.handle(m.Exited(bench[0].worker_id, 6, cut="the stream ended inside a frame"))

    assert isinstance(request.future.error, WorkerDied)
    assert 6 == request.future.error.exit_code
    assert "exit code 6 while it ran" in str(request.future.error)
    assert "; the stream ended inside a frame" in str(request.future.error)


@pytest.mark.parametrize("asked", [False, True], ids=["crash", "recycled"])
def test_replacements_of_a_pool_that_drains_are_counted(asked: bool) -> None:
    """A worker that the queue of a closing pool still needs is counted as a restart, or as recycled."""
    bench = Bench().up()
    requests = [bench.submit(name) for name in "ab"]
    if asked:
        bench.handle(m.RestartRequested(bench[0].worker_id))
    bench.handle(m.ShutdownRequested())
    first = bench[0]

    if asked:
        bench.reply()
    bench.exit(first, code=0 if asked else 1)
    bench.ready_all()
    bench.run()

    lifecycle = bench.scheduler.lifecycle
    assert "ok" == outcome(requests[1])
    assert (not asked, asked) == (bool(lifecycle.restarts), bool(lifecycle.recycled))


def test_garbage_right_after_the_handshake_is_the_cause_of_the_failed_start() -> None:
    """A worker that is ready and breaks the protocol before it is given anything: the pool says what it wrote."""
    bench = Bench(restart_budget=1).up()
    process = bench[0]

    bench.handle(m.Misbehaved(process.worker_id, ProtocolError("it wrote garbage")))
    bench.exit(process, signal=15)

    assert bench.scheduler.board.broken_by is not None
    cause = str(bench.scheduler.board.broken_by.__cause__)
    assert "failed to start: it wrote garbage (ended by the pool)" in cause
