"""Events that could come in either order, in both: the scheduler's outcome is one of two, and complete."""

from __future__ import annotations

import pytest
from unit.scheduling import Bench, outcome

from snakepit._core import model as m
from snakepit._core.model import ExitReason, Outcome, PoolState


@pytest.mark.parametrize("first", ["reply", "deadline"])
def test_queue_deadline_against_dispatch(first: str) -> None:
    """At one instant a worker becomes free and a queue deadline is over: the first event decides, once (T8 c)."""
    bench = Bench(can_claim=True).up()
    bench.submit("running")
    request = bench.submit("contested", queue_timeout_s=1.0)
    process = bench[0]
    process.work()
    bench.now += 1.0
    assert bench.now == request.queue_deadline

    if first == "reply":
        bench.read(process)
        bench.handle(m.DeadlinePassed())
    else:
        bench.handle(m.DeadlinePassed())
        bench.read(process)

    if first == "reply":
        assert ["contested"] == bench.sent()
        assert outcome(request) is None
        bench.reply()
        assert "ok" == outcome(request)
    else:
        assert Outcome.QUEUE_TIMEOUT is outcome(request)
        assert ["idle"] == bench.states()
        assert [] == bench.sent()
    assert 1 == bench.ends[request]


@pytest.mark.parametrize("first", ["exit", "shutdown"])
def test_exit_while_starting_against_shutdown(first: str) -> None:
    """A worker ends before its handshake while the pool closes: nothing is started in its place (T8 f)."""
    bench = Bench().start()
    process = bench[0]
    bench.spawned(process)

    if first == "exit":
        bench.exit(process, code=1)
        bench.handle(m.ShutdownRequested())
    else:
        bench.handle(m.ShutdownRequested())
        assert [ExitReason.SHUTDOWN] == [action.reason for action in bench.actions(m.Condemn)]
        bench.exit(process, code=1)
    bench.advance(60.0)

    assert 1 == len(bench.processes)
    assert PoolState.CLOSED is bench.scheduler.state
    assert bench.closed


@pytest.mark.parametrize("first", ["pong", "deadline"])
def test_pong_against_ping_deadline(first: str) -> None:
    """A health check's answer and its deadline at one instant: the first event decides about the worker (T8 h)."""
    bench = Bench(health_check_interval_s=10.0, health_check_timeout_s=2.0).up()
    process = bench[0]
    bench.advance(10.0)
    assert ["checking"] == bench.states()
    process.work()
    bench.now += 2.0

    if first == "pong":
        bench.read(process)
        bench.handle(m.DeadlinePassed())
    else:
        bench.handle(m.DeadlinePassed())
        bench.read(process)

    if first == "pong":
        assert ["idle"] == bench.states()
        assert [] == bench.actions(m.Condemn)
    else:
        assert [ExitReason.HEALTH] == [action.reason for action in bench.actions(m.Condemn)]
        bench.exit(process, signal=15)
        bench.ready_all()
        assert ["idle"] == bench.states()


@pytest.mark.parametrize("first", ["reply", "deadline"])
def test_run_deadline_against_reply(first: str) -> None:
    """A reply and the end of its time at one instant: one of them ends the request, the other is dropped (T8 d)."""
    bench = Bench().up()
    request = bench.submit("contested", timeout_s=1.0)
    process = bench[0]
    process.work()
    bench.now += 1.0

    if first == "reply":
        bench.read(process)
        bench.handle(m.DeadlinePassed())
    else:
        bench.handle(m.DeadlinePassed())
        bench.read(process)

    assert ("ok" if first == "reply" else Outcome.COMMAND_TIMEOUT) == outcome(request)
    assert (first == "reply") == (process.condemned is None)
    assert 1 == bench.ends[request]


def test_a_condemned_worker_exits_before_the_signal() -> None:
    """A worker exits of itself while it is being ended: it is buried once, its slot filled once (T8 i)."""
    bench = Bench().up()
    bench.submit("running", timeout_s=1.0)
    process = bench[0]
    bench.begin(process)
    bench.advance(1.0)

    bench.exit(process, code=0)
    bench.handle(m.Exited(process.worker_id, signal=9))

    assert 1 == len(bench.actions(m.Forget))
    assert 2 == len(bench.processes)


def test_a_hint_session_keeps_its_order_behind_its_set_up() -> None:
    """What is more urgent takes the set-up's worker; the session's second request does not overtake the first."""
    bench = Bench(2, min_workers=1).up()
    setup = (("one", None),)
    first = bench.submit("first", session="s", affinity="hint", setup=setup, priority=-1)
    second = bench.submit("second", session="s", affinity="hint", setup=setup, priority=-1)
    assert ["one"] == bench.sent()
    urgent = [bench.submit(f"urgent{n}") for n in range(2)]

    bench.reply()
    bench.ready_all()

    assert [["urgent0"], ["urgent1"]] == [bench.sent(0), bench.sent(1)]
    bench.reply(1)
    assert [] == bench.sent(1)
    bench.reply(0)
    assert [["first"], ["second"]] == [bench.sent(0), bench.sent(1)]
    bench.run()
    assert ["ok"] * 4 == [outcome(request) for request in (first, second, *urgent)]
