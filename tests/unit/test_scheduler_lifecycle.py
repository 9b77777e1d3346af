"""Workers: how they start, fail, are judged and replaced; how the pool breaks, heals and ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
from unit.scheduling import Bench, outcome

from snakepit._core import model as m
from snakepit._core.lifecycle import CLOSED_PIPE_GRACE_S
from snakepit._core.model import ExitReason, Outcome, PoolState
from snakepit.errors import PoolBroken, ProtocolError, WorkerDied, WorkerStartError


def fail_start(bench: Bench, tail: str = "ImportError: no") -> None:
    """Let the first process that is starting end before its handshake."""
    process = next(p for p in bench.living() if not p.ready)
    bench.spawned(process)
    bench.exit(process, code=3, tail=tail)


def ids(bench: Bench) -> list[str]:
    return [slot.worker.worker_id if slot.worker else "" for slot in bench.board.workers.slots]


def reasons(bench: Bench) -> list[str]:
    return [event["reason"] for event in bench.events("worker.exited")]


# Starting -------------------------------------------------------------------------------------------


def test_floor_is_started_at_once() -> None:
    """The pool starts min_workers workers at its start, and they serve after their handshakes."""
    bench = Bench(3, min_workers=2).start()

    assert ["starting", "starting", ""] == bench.states()
    request = bench.submit()
    bench.advance(0.5)
    bench.ready_all()

    assert ["request"] == [type(a.requests[0]).__name__.lower() for a in bench.actions(m.Dispatch)]
    assert 0.5 == bench.actions(m.Emit)[-1].measurements.get("initialization_time_s", 0.5)
    bench.run()
    assert "ok" == outcome(request)
    assert 2 == len(bench.events("worker.spawned"))


def test_growth_on_demand() -> None:
    """Without a floor a worker is started for each waiting request, up to the pool's size."""
    bench = Bench(3, min_workers=0).start()
    assert ["", "", ""] == bench.states()

    bench.submit("a")
    assert ["starting", "", ""] == bench.states()
    bench.ready_all()
    bench.submit("b")
    bench.submit("c")
    bench.submit("d")
    assert ["busy", "starting", "starting"] == bench.states()
    bench.ready_all()
    bench.run()

    assert ["idle", "idle", "idle"] == bench.states()
    bench.submit("e")
    assert 3 == len(bench.processes)


def test_no_growth_for_a_worker_that_is_only_being_checked() -> None:
    """A health check that is under way does not make the pool grow."""
    bench = Bench(2, min_workers=0, health_check_interval_s=5.0).start()
    bench.submit()
    bench.ready_all()
    bench.run()
    bench.advance(5.0)
    assert ["checking", ""] == bench.states()

    request = bench.submit()

    assert ["checking", ""] == bench.states()
    bench.run()
    assert "ok" == outcome(request)


def test_wait_ready() -> None:
    """Waiters start the workers they ask for and are answered when these are ready."""
    bench = Bench(3, min_workers=0).start()
    bench.handle(m.WorkersWanted(2, "two"))
    bench.handle(m.WorkersWanted(9, "all"))
    assert ["starting"] * 3 == bench.states()

    bench.ready(bench[0])
    assert [] == bench.notices
    bench.ready(bench[1])
    assert [("two", None)] == [(n.waiter, n.error) for n in bench.notices]
    bench.ready(bench[2])

    assert [("two", None), ("all", None)] == [(n.waiter, n.error) for n in bench.notices]
    bench.handle(m.WorkersWanted(1, "late"))
    assert "late" == bench.notices[-1].waiter


def test_handshake_timeout() -> None:
    """A worker that is not ready in time is ended and its slot is started again after a back-off."""
    bench = Bench(worker_init_timeout_s=2.0).start()
    bench.spawned(bench[0])

    bench.advance(2.0)
    condemned = bench[0].condemned
    assert condemned is not None
    assert (ExitReason.START_FAILED, False) == (condemned.reason, condemned.polite)
    bench.exit_condemned()
    assert [""] == bench.states()
    bench.advance(0.2)

    assert ["starting"] == bench.states()
    error = bench.scheduler.lifecycle.policy.last_error
    assert "failed to start: it did not answer the handshake within 2 s (ended by the pool)" in str(error)
    bench.ready(bench[0])
    assert ["idle"] == bench.states()


def test_late_handshake_of_a_condemned_worker() -> None:
    """A handshake that arrives after its time-out changes nothing."""
    bench = Bench(worker_init_timeout_s=2.0).start()
    bench.advance(2.0)

    bench.ready(bench[0])
    bench.handle(m.StartFailed(bench[0].worker_id, ValueError(), fatal=True))

    assert ["condemned"] == bench.states()
    assert PoolState.OPEN is bench.scheduler.state


def test_back_off_grows_and_is_capped() -> None:
    """The delay before a slot's next start doubles, varies by 20 %, and has a cap."""
    bench = Bench(restart_budget=50, restart_backoff_cap_s=1.0).start()
    delays = []
    for _ in range(8):
        fail_start(bench)
        deadline = bench.scheduler.next_deadline()
        assert deadline is not None
        delays.append(deadline - bench.now)
        bench.advance(2.0)

    for expected, actual in zip([0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0], delays, strict=True):
        assert expected == pytest.approx(actual, rel=0.2 + 1e-9)


@pytest.mark.parametrize("factor", [1, 1.0, 1e80, 1e308, math.inf, 10**300])
def test_any_factor_of_the_back_off(factor: float) -> None:
    """However fast the delay grows, it ends at its cap; and it need not grow."""
    bench = Bench(restart_budget=100, restart_backoff_factor=factor, restart_backoff_jitter=0).start()
    for number in range(80):
        fail_start(bench)
        deadline = bench.scheduler.next_deadline()
        assert deadline is not None
        grows = number and factor > 1
        assert (10.0 if grows else 0.1) == pytest.approx(deadline - bench.now)
        bench.advance(11.0)


@pytest.mark.parametrize("floor", [0, 1])
def test_no_other_slot_evades_the_back_off(floor: int) -> None:
    """While a slot waits before its next start, no other one is started in its place."""
    bench = Bench(3, min_workers=floor).start()
    bench.submit()

    fail_start(bench)

    assert ["", "", ""] == bench.states()
    bench.advance(0.2)
    assert 1 == bench.states().count("starting")


def test_restart_budget() -> None:
    """After so many consecutive failed starts the pool is broken; the cause tells of the last one."""
    bench = Bench(2, min_workers=1, restart_budget=3).start()
    requests = [bench.submit(), bench.submit(session="s"), bench.submit(session="s")]
    bench.handle(m.WorkersWanted(1, "waiter"))

    for _ in range(3):
        assert PoolState.OPEN is bench.scheduler.state
        fail_start(bench)
        bench.advance(5.0)

    assert PoolState.BROKEN is bench.scheduler.state
    for request in requests:
        assert isinstance(request.future.error, PoolBroken)
    cause = bench.refused.__cause__ if bench.refused else None
    assert isinstance(cause, WorkerStartError)
    assert (("worker", "--now"), 3, None, "ImportError: no") == (
        cause.argv, cause.exit_code, cause.signal, cause.stderr_tail,
    )  # fmt: skip
    assert "ended with exit code 3 before its handshake; command line: worker --now" in str(cause)
    assert "its stderr ended with:\nImportError: no" in str(cause)
    assert "size 2" in str(bench.refused)
    told = bench.notices[0].error
    assert (type(cause), str(cause), cause.__cause__) == (type(told), str(told), told.__cause__)
    assert cause is not told
    assert 1 == len(bench.events("pool.broken"))
    late = bench.submit()
    assert isinstance(late.future.error, PoolBroken)
    bench.handle(m.WorkersWanted(1, "late"))
    assert str(cause) == str(bench.notices[-1].error)


def test_failed_handshake_is_the_cause() -> None:
    """The error that a worker answered its handshake with is told by the start error."""
    bench = Bench(restart_budget=1).start()
    process = bench[0]
    bench.spawned(process)
    problem = ValueError("no module handlers")

    bench.handle(m.StartFailed(process.worker_id, problem))
    bench.exit_condemned()

    cause = bench.refused.__cause__ if bench.refused else None
    assert isinstance(cause, WorkerStartError)
    assert problem is cause.__cause__
    assert "failed to start: no module handlers (ended by the pool)" in str(cause)
    assert [ExitReason.START_FAILED.value] == reasons(bench)


def test_spawn_refused() -> None:
    """A process that the system refuses counts as a failed start, with the reason and the command line."""
    bench = Bench(restart_budget=2).start()
    refusal = WorkerStartError("out of processes", argv=("python",))

    bench.handle(m.SpawnRefused(bench[0].worker_id, refusal))
    bench.advance(1.0)
    bench.handle(m.SpawnRefused(bench[0].worker_id, refusal))

    cause = bench.refused.__cause__ if bench.refused else None
    assert isinstance(cause, WorkerStartError)
    assert ("python",) == cause.argv
    assert "worker pool-0-2 failed to start: out of processes" in str(cause)


def test_garbage_in_the_place_of_a_handshake() -> None:
    """A worker that breaks the protocol while it starts has failed to start."""
    bench = Bench().start()
    bench.spawned(bench[0])

    bench.handle(m.Misbehaved(bench[0].worker_id, ProtocolError("what")))
    bench.handle(m.Misbehaved(bench[0].worker_id, ProtocolError("what")))
    bench.exit_condemned()

    assert 1 == bench.scheduler.lifecycle.policy.failures


def test_raising_initializer_breaks_the_pool_at_once() -> None:
    """A fatal start failure breaks the pool without further attempts."""
    bench = Bench(2).start()
    request = bench.submit()
    bench.handle(m.WorkersWanted(1, "waiter"))
    bench.spawned(bench[0])

    bench.handle(m.StartFailed(bench[0].worker_id, ValueError("init"), fatal=True))

    assert isinstance(request.future.error, PoolBroken)
    told = bench.notices[0].error
    assert (PoolBroken, str(bench.refused)) == (type(told), str(told))
    assert ["condemned", "condemned"] == bench.states()
    bench.exit_condemned()
    assert ["", ""] == bench.states()


def test_proven_workers_cost_no_budget() -> None:
    """A worker that has answered may crash as often as it likes; its slot is filled at once."""
    bench = Bench(restart_budget=2).up()
    for _ in range(5):
        bench.submit()
        bench.run()
        bench.exit(bench[0], signal=9)
        assert ["starting"] == bench.states()
        bench.ready_all()

    assert PoolState.OPEN is bench.scheduler.state
    assert 5 == bench.scheduler.lifecycle.restarts


def test_idle_death_of_an_unused_worker_is_a_failed_start() -> None:
    """A worker that ends before it was given anything has failed to start; exit code 0 is no excuse."""
    bench = Bench(restart_budget=1).up()

    bench.exit(bench[0], code=0)

    assert PoolState.BROKEN is bench.scheduler.state
    assert "before it was given anything but its handshake" in str(bench.refused)


def test_death_in_the_first_request_is_no_failed_start() -> None:
    """A request that kills fresh workers costs its own future only."""
    bench = Bench(restart_budget=1).up()
    request = bench.submit()

    bench.exit(bench[0], signal=11)

    assert isinstance(request.future.error, WorkerDied)
    assert PoolState.OPEN is bench.scheduler.state
    assert ["pool-0-2"] == ids(bench)


def test_answer_resets_the_budget() -> None:
    """Failed starts count only as long as they are consecutive."""
    bench = Bench(2, restart_budget=2).start()
    bench.spawned(bench[0])
    bench.exit(bench[0], code=1)
    bench.ready(bench[1])
    bench.submit()
    bench.run()

    bench.advance(1.0)
    fail_start(bench)

    assert PoolState.OPEN is bench.scheduler.state


def test_recycle_heals() -> None:
    """recycle() opens a broken pool again: with a full budget, and at once."""
    bench = Bench(2, restart_budget=2).start()
    fail_start(bench)
    fail_start(bench)
    assert PoolState.BROKEN is bench.scheduler.state

    bench.handle(m.RecycleRequested())
    bench.exit_condemned()

    assert PoolState.OPEN is bench.scheduler.state
    assert bench.refused is None
    assert ["starting", "starting"] == bench.states()
    bench.ready_all()
    request = bench.submit()
    bench.run()
    assert "ok" == outcome(request)
    assert 0 == bench.scheduler.lifecycle.policy.failures


def test_heal_before_the_workers_are_gone() -> None:
    """A pool that is healed while its workers still end fills their slots when they are gone."""
    bench = Bench(2, restart_budget=1).start()
    bench.ready(bench[1])
    fail_start(bench)
    assert ["", "condemned"] == bench.states()

    bench.handle(m.RecycleRequested())
    assert ["starting", "condemned"] == bench.states()
    bench.exit_condemned()

    assert ["starting", "starting"] == bench.states()


# Judging --------------------------------------------------------------------------------------------


def test_idle_workers_are_checked() -> None:
    """Idle workers are pinged at every interval, busy ones are left alone."""
    bench = Bench(2, health_check_interval_s=10.0).up()
    bench.submit("long")
    bench.advance(10.0)

    assert ["busy", "checking"] == sorted(bench.states())
    assert 2 == bench.board.workers.available + bench.board.workers.busy
    checking = next(p for p in bench.living() if p.worker.state is m.WorkerState.CHECKING)
    checking.work()
    bench.read_all()
    assert ["busy", "idle"] == sorted(bench.states())
    assert checking.condemned is None


def test_deaf_worker_is_replaced() -> None:
    """An idle worker that does not answer in time is ended and replaced."""
    bench = Bench(health_check_interval_s=10.0, health_check_timeout_s=3.0).up()

    bench.advance(13.0)
    condemned = bench[0].condemned
    assert condemned is not None
    assert ExitReason.HEALTH is condemned.reason
    bench.exit_condemned()

    assert ["pool-0-2"] == ids(bench)
    assert ["health"] == reasons(bench)


def test_death_during_a_check_fails_nobody() -> None:
    """A worker that dies while it is checked takes no request with it."""
    bench = Bench(health_check_interval_s=10.0).up()
    bench.advance(10.0)

    bench.exit(bench[0], signal=9)

    assert [] == bench.actions(m.Fail)
    assert ["starting"] == bench.states()


def test_work_waits_for_the_answer_to_a_check() -> None:
    """A request that comes during a check is sent after the answer."""
    bench = Bench(health_check_interval_s=10.0).up()
    bench.advance(10.0)
    request = bench.submit()
    assert outcome(request) is None

    bench.run()

    assert "ok" == outcome(request)


def test_protocol_error() -> None:
    """A worker that breaks the protocol fails the request in flight with that error and is replaced."""
    bench = Bench().up()
    request, waiting = bench.submit(), bench.submit()
    error = ProtocolError("first bytes")

    bench.handle(m.Misbehaved(bench[0].worker_id, error))
    bench.exit_condemned()
    bench.ready_all()
    bench.run()

    assert error is request.future.error
    assert "ok" == outcome(waiting)
    assert ["protocol"] == reasons(bench)


def test_misbehaving_idle_worker() -> None:
    """An idle worker that breaks the protocol is replaced and nobody notices."""
    bench = Bench().up()
    bench.submit()
    bench.run()

    bench.handle(m.Misbehaved(bench[0].worker_id, ProtocolError("x")))
    bench.exit_condemned()

    assert [] == bench.actions(m.Fail)
    assert ["starting"] == bench.states()


def test_closed_pipe_waits_for_the_exit() -> None:
    """A closed pipe is followed by an exit; until then the worker gets nothing, and the exit is told."""
    bench = Bench().up()
    bench.submit(session="s")
    bench.run()
    process = bench[0]
    process.closed = True
    bench.handle(m.PipeClosed(process.worker_id))
    bench.handle(m.PipeClosed(process.worker_id))

    free, bound = bench.submit(), bench.submit(session="s")
    assert [] == bench.sent()
    bench.exit(process, signal=11)
    bench.ready_all()
    bench.run()

    assert "ok" == outcome(free)
    assert "SessionLost" == type(bound.future.error).__name__
    assert ["crash"] == reasons(bench)


def test_closed_pipe_without_an_exit_is_a_protocol_error() -> None:
    """A worker that closed its pipe and lives on has broken the protocol."""
    bench = Bench().up()
    request = bench.submit()
    bench[0].closed = True
    bench.handle(m.PipeClosed(bench[0].worker_id))

    bench.advance(CLOSED_PIPE_GRACE_S)

    assert isinstance(request.future.error, ProtocolError)
    assert "did not exit" in str(request.future.error)
    assert ["condemned"] == bench.states()
    bench.handle(m.PipeClosed(bench[0].worker_id))


def test_closed_pipe_while_starting_and_while_checked() -> None:
    """A pipe closed during the start or a health check is judged by the exit all the same."""
    bench = Bench(2, min_workers=1, health_check_interval_s=5.0).up()
    bench.advance(5.0)
    process = bench[0]
    process.work()
    process.closed = True
    bench.handle(m.PipeClosed(process.worker_id))
    bench.read_all()
    assert ["idle", ""] == bench.states()
    bench.handle(m.RestartRequested(process.worker_id))
    assert process.condemned is None
    bench.exit(process, signal=9)
    starting = bench[0]
    bench.spawned(starting)
    bench.handle(m.PipeClosed(starting.worker_id))

    bench.ready(starting)
    starting.closed = True
    bench.advance(CLOSED_PIPE_GRACE_S)

    assert starting.condemned is not None
    assert ExitReason.PROTOCOL is starting.condemned.reason


# Replacing ------------------------------------------------------------------------------------------


def test_max_requests_is_exact() -> None:
    """A worker that has answered as many requests as it may is ended politely and replaced."""
    bench = Bench(max_requests_per_worker=2).up()
    for _ in range(5):
        bench.submit()

    for _ in range(3):
        bench.run()
        bench.exit_condemned()
        bench.ready_all()

    assert [2, 2, 1] == [len(process.begun) for process in bench.processes.values()]
    assert ["max_requests"] * 2 == reasons(bench)
    assert (0, 2) == (bench.scheduler.lifecycle.restarts, bench.scheduler.lifecycle.recycled)
    assert [True, True] == [c.polite for c in bench.actions(m.Condemn)]
    assert 2 == len(bench.events("worker.recycled"))


def test_a_chunk_counts_its_items() -> None:
    """max_requests_per_worker counts the items of a chunk."""
    bench = Bench(max_requests_per_worker=3).up()
    bench.submit(weight=3)

    bench.run()

    assert ["condemned"] == bench.states()


def test_age() -> None:
    """Workers past their age are replaced one after another, at ages that vary by 10 %."""
    bench = Bench(2, max_worker_age_s=100.0, health_check_interval_s=1e6).up()
    ages = [w.expires_at - bench.now for w in bench.board.workers.by_id.values() if w.expires_at]
    assert all(90 <= age <= 110 for age in ages)
    assert ages[0] != ages[1]

    bench.advance(111.0)
    assert 1 == bench.states().count("condemned")
    bench.exit_condemned()
    assert 1 == bench.states().count("starting")
    assert 0 == bench.states().count("condemned")
    bench.ready_all()

    assert 1 == bench.states().count("condemned")
    bench.exit_condemned()
    bench.ready_all()
    assert ["max_age", "max_age"] == reasons(bench)
    assert 2 == bench.scheduler.lifecycle.recycled


def test_memory() -> None:
    """A worker that holds too much memory is replaced after its request; without a limit it is only noted."""
    bench = Bench(max_worker_rss_bytes=1000).up()
    request = bench.submit()

    bench.handle(m.RssMeasured(bench[0].worker_id, 999))
    bench.handle(m.RssMeasured(bench[0].worker_id, 1001))
    bench.handle(m.RssMeasured(bench[0].worker_id, 1002))
    assert bench[0].condemned is None
    bench.run()
    bench.exit_condemned()
    bench.handle(m.RssMeasured(bench[0].worker_id, 5000))

    assert "ok" == outcome(request)
    assert ["max_rss"] == reasons(bench)
    assert ["starting"] == bench.states()


def test_idle_workers_above_the_floor_are_ended() -> None:
    """Workers above the floor that are idle for too long are ended politely; their slots stay empty."""
    bench = Bench(3, min_workers=1, worker_idle_timeout_s=5.0).start()
    for _ in range(3):
        bench.submit()
    bench.ready_all()
    bench.run()

    bench.advance(4.0)
    bench.submit("keeps one young")
    bench.run()
    bench.advance(1.0)
    assert 2 == bench.states().count("condemned")
    bench.exit_condemned()

    assert 1 == bench.states().count("idle")
    assert (0, 0) == (bench.scheduler.lifecycle.restarts, bench.scheduler.lifecycle.recycled)
    assert ["idle", "idle"] == reasons(bench)


def test_condemned_workers_are_no_spare_ones() -> None:
    """A worker that is being ended does not stand in for the floor."""
    bench = Bench(2, min_workers=1, worker_idle_timeout_s=5.0).start()
    bench.submit(timeout_s=4.0)
    bench.submit()
    bench.ready_all()
    running = next(p for p in bench.living() if p.worker.sent[0].timeout_s is not None)
    other = next(p for p in bench.living() if p is not running)
    other.work()
    bench.read_all()

    bench.advance(20.0)

    assert running.condemned is not None
    assert other.condemned is None


def test_strict_sessions_worker_is_never_shrunk_away() -> None:
    """An idle worker that holds a strict session stays."""
    bench = Bench(2, min_workers=0, worker_idle_timeout_s=5.0).start()
    bench.submit(session="s")
    bench.submit(session="h", affinity="hint")
    bench.ready_all()
    bench.run()

    bench.advance(20.0)

    assert ["condemned", "idle"] == sorted(bench.states())
    session = bench.scheduler.rules.table.get("s")
    assert session is not None
    assert session.worker is not None
    bench.handle(m.SessionEnded("s"))
    bench.advance(10.0)
    assert ["condemned", "condemned"] == bench.states()


def test_restart_worker() -> None:
    """restart_worker drains that worker and replaces it: the same slot, the next incarnation."""
    bench = Bench(2).up()
    running = bench.submit()
    process = bench.processes[running.worker.worker_id] if running.worker else None
    assert process is not None

    bench.handle(m.RestartRequested(process.worker_id))
    bench.handle(m.RestartRequested(process.worker_id))
    assert process.condemned is None
    free = bench.submit()
    assert free.worker is not running.worker
    bench.run()
    bench.handle(m.RestartRequested(process.worker_id))
    bench.exit_condemned()
    bench.ready_all()

    assert "ok" == outcome(running)
    assert [f"pool-{process.worker.slot.index}-2"] == [
        event["worker_id"] for event in bench.events("worker.recycled")
    ]


def test_restart_of_a_starting_worker() -> None:
    """A worker that is starting is replaced at once."""
    bench = Bench().start()

    bench.handle(m.RestartRequested("pool-0-1"))
    assert ["condemned"] == bench.states()
    bench.exit(bench[0], signal=15)

    assert ["pool-0-2"] == ids(bench)
    assert 0 == bench.scheduler.lifecycle.policy.failures


def test_recycle_replaces_one_at_a_time() -> None:
    """recycle() replaces every worker, never more than one at a time, and running calls finish."""
    bench = Bench(3).up()
    requests = [bench.submit() for _ in range(3)]

    bench.handle(m.RecycleRequested())
    bench.handle(m.RecycleRequested())
    bench.run()
    for _ in range(3):
        assert 1 == bench.states().count("condemned")
        bench.exit_condemned()
        assert 1 == bench.states().count("starting")
        bench.ready_all()

    assert ["idle"] * 3 == bench.states()
    assert ["pool-0-2", "pool-1-2", "pool-2-2"] == ids(bench)
    assert ["ok"] * 3 == [outcome(request) for request in requests]
    assert (0, 3) == (bench.scheduler.lifecycle.restarts, bench.scheduler.lifecycle.recycled)


def test_recycle_goes_on_after_a_crash() -> None:
    """A worker that dies in its turn, or before it, does not hold up the replacement of the others."""
    bench = Bench(3).up()
    requests = [bench.submit() for _ in range(3)]
    bench.handle(m.RecycleRequested())

    bench.exit(bench[1], signal=9)
    bench.exit(bench[0], signal=9)
    bench.ready_all()
    bench.run()
    for _ in range(3):
        bench.exit_condemned()
        bench.ready_all()

    assert {"pool-0-2", "pool-1-2", "pool-2-2"} == set(ids(bench))
    assert 3 == len([request for request in requests if outcome(request)])


def test_recycle_includes_starting_workers() -> None:
    """A worker that was starting when recycle() was called is replaced as well."""
    bench = Bench(2).start()
    bench.ready(bench[1])

    bench.handle(m.RecycleRequested())

    assert ["condemned", "condemned"] == bench.states()


def test_retiring_worker_waits_for_its_strict_sessions() -> None:
    """A retiring worker serves its strict sessions on until they end; nothing else goes there."""
    bench = Bench(2).up()
    first = bench.submit("a", session="s")
    worker = first.worker
    assert worker is not None
    bench.handle(m.RestartRequested(worker.worker_id))
    bench.run()
    assert m.WorkerState.IDLE is worker.state

    following = bench.submit("b", session="s")
    free = bench.submit("free")
    assert worker is following.worker
    assert worker is not free.worker
    bench.run()
    bench.handle(m.SessionEnded("s"))

    assert m.WorkerState.CONDEMNED is worker.state
    assert [ExitReason.RECYCLED] == [c.reason for c in bench.actions(m.Condemn)]


def test_expiry_frees_a_retiring_worker() -> None:
    """A retiring worker is replaced when its last strict session expires."""
    bench = Bench(session_ttl_s=5.0, max_requests_per_worker=1).up()
    bench.submit(session="s")
    bench.run()
    assert ["idle"] == bench.states()

    bench.advance(5.0)

    assert ["condemned"] == bench.states()


def test_drain_limit() -> None:
    """After session_drain_s a retiring worker is replaced: its running call ends, the sessions are lost."""
    bench = Bench(session_drain_s=5.0).up()
    running = bench.submit("a", session="s")
    waiting = bench.submit("b", session="s")
    bench.handle(m.RestartRequested("pool-0-1"))

    bench.advance(5.0)
    assert bench[0].condemned is None
    bench.run()

    assert "ok" == outcome(running)
    assert "SessionLost" == type(waiting.future.error).__name__
    assert ["condemned"] == bench.states()


def test_drain_limit_counts_from_a_health_check() -> None:
    """A worker that is asked to retire while it is being checked drains after the answer."""
    bench = Bench(2, session_drain_s=5.0, health_check_interval_s=10.0).up()
    first = bench.submit(session="s")
    bench.run()
    worker = first.worker
    assert worker is not None
    bench.advance(10.0)
    bench.handle(m.RestartRequested(worker.worker_id))
    bench.run()
    assert m.WorkerState.IDLE is worker.state

    bench.advance(5.0)

    assert m.WorkerState.CONDEMNED is worker.state


# Shutdown -------------------------------------------------------------------------------------------


def test_shutdown_of_an_idle_pool() -> None:
    """Idle workers are ended politely, starting ones at once, and the pool closes when they are gone."""
    bench = Bench(2).start()
    bench.ready(bench[0])

    bench.handle(m.ShutdownRequested())
    assert [True, False] == [c.polite for c in bench.actions(m.Condemn)]
    assert not bench.closed
    bench.exit_condemned()

    assert bench.closed
    assert PoolState.CLOSED is bench.scheduler.state
    bench.handle(m.ShutdownRequested())
    bench.handle(m.EndRequested())
    late = bench.submit()
    assert isinstance(late.future.error, PoolBroken)
    bench.handle(m.WorkersWanted(1, "late"))
    assert isinstance(bench.notices[-1].error, RuntimeError)
    bench.handle(m.RecycleRequested())


def test_shutdown_without_workers_closes_at_once() -> None:
    """A pool that never started a worker closes at once."""
    bench = Bench(2, min_workers=0).start()

    bench.handle(m.ShutdownRequested())

    assert bench.closed


def test_shutdown_finishes_accepted_work() -> None:
    """What was accepted is finished first, sessions included; nothing is started beyond that."""
    bench = Bench(2).up()
    requests = [bench.submit(session="s" if number % 2 else None) for number in range(10)]
    bench.handle(m.WorkersWanted(2, "served"))

    bench.handle(m.ShutdownRequested())
    assert [] == bench.actions(m.Condemn)
    bench.run()
    bench.exit_condemned()

    assert ["ok"] * 10 == [outcome(request) for request in requests]
    assert bench.closed
    assert [] == bench.events("session.lost")
    assert 2 == len(bench.processes)


def test_shutdown_starts_workers_for_queued_work() -> None:
    """Work that was accepted before any worker was started is done."""
    bench = Bench(2, min_workers=0).start()
    request = bench.accept()
    bench.handle(m.Submitted(request))
    bench.handle(m.WorkersWanted(2, "waiter"))
    bench.handle(m.ShutdownRequested())
    assert isinstance(bench.notices[0].error, RuntimeError)

    bench.ready_all()
    bench.run()
    bench.exit_condemned()

    assert "ok" == outcome(request)
    assert bench.closed


def test_crash_while_draining() -> None:
    """A worker that crashes while the pool drains is replaced only as the queue demands."""
    bench = Bench(2).up()
    requests = [bench.submit(name) for name in "abc"]
    bench.handle(m.ShutdownRequested())

    bench.exit(bench[0], signal=9)
    bench.exit(bench[1], signal=9)
    assert 1 == bench.states().count("starting")
    bench.ready_all()
    bench.run()
    bench.exit_condemned()

    assert ["ok"] == [outcome(request) for request in requests if outcome(request) is not Outcome.DIED]
    assert bench.closed


def test_no_respawn_when_nothing_is_queued() -> None:
    """A starting worker that dies while the pool closes is not started again."""
    bench = Bench(2).start()
    bench.handle(m.ShutdownRequested())

    for process in bench.living():
        bench.exit(process, code=1)

    assert bench.closed
    assert 2 == len(bench.processes)


def test_shutdown_with_cancel_queued() -> None:
    """cancel_futures cancels what waits, finishes what runs, and drops set-ups that nobody waits for."""
    bench = Bench(2).up()
    running = bench.submit("a")
    setup = bench.submit("b", session="s", setup=(("one", None), ("two", None)))
    bench.submit("c", session="s")
    queued = bench.submit("d")

    bench.handle(m.ShutdownRequested(cancel_queued=True))
    bench.run()
    bench.exit_condemned()

    assert ["ok", "cancelled", "cancelled"] == [outcome(request) for request in (running, setup, queued)]
    assert {"a", "one"} == {r.command for p in bench.processes.values() for r in p.begun}
    assert bench.closed


def test_cancel_queued_reaches_ended_sessions() -> None:
    """What waits for a session that is ending, or for its successor, is cancelled as well."""
    bench = Bench().up()
    running = bench.submit("busy")
    old = [bench.submit(session="s"), bench.submit(session="s")]
    bench.handle(m.SessionEnded("s"))
    new = [bench.submit(session="s"), bench.submit(session="s")]

    bench.handle(m.ShutdownRequested(cancel_queued=True))

    assert ["cancelled"] * 4 == [outcome(request) for request in [*old, *new]]
    assert outcome(running) is None
    assert [False] == [session.ended for session in bench.scheduler.rules.table.values()]


def test_retiring_worker_does_not_hold_up_the_shutdown() -> None:
    """A retiring worker does not wait for idle sessions once the pool drains."""
    bench = Bench(max_requests_per_worker=1).up()
    first = bench.submit(session="s")
    second = bench.submit()
    bench.run()
    assert ["idle"] == bench.states()

    bench.handle(m.ShutdownRequested())
    bench.exit_condemned()
    bench.ready_all()
    bench.run()
    bench.exit_condemned()

    assert ["ok", "ok"] == [outcome(first), outcome(second)]
    assert bench.closed


@pytest.mark.parametrize("kill", [False, True])
def test_end_requested(kill: bool) -> None:
    """EndRequested fails what runs, cancels what waits and ends every worker at once."""
    bench = Bench(3, can_claim=True).start()
    bench.ready(bench[0])
    bench.submit("warm-up")
    bench.run()
    requests = [bench.submit(f"r{number}", chunk="map") for number in range(3)]
    bench.reply()
    running = [r for r in requests if r.state is m.RequestState.SENT]
    queued = bench.submit("last", session="s")
    cancelled = bench.submit("x")
    bench.cancel(running[0], running=True) if len(running) > 2 else None

    bench.handle(m.EndRequested(kill=kill))

    for request in running:
        assert isinstance(request.future.error, WorkerDied)
        assert Outcome.DIED is outcome(request)
    assert "waited in its pipe" in str(running[-1].future.error)
    assert ["cancelled", "cancelled"] == [outcome(queued), outcome(cancelled)]
    assert {(False, kill)} == {(c.polite, c.kill) for c in bench.actions(m.Condemn)}
    bench.exit_condemned()
    assert bench.closed
    assert {"terminated"} == set(reasons(bench))


def test_shutdown_with_a_limit() -> None:
    """What still runs at the limit is ended, what waits is cancelled; the earliest limit counts."""
    bench = Bench().up()
    running, waiting = bench.submit(), bench.submit()
    bench.handle(m.ShutdownRequested(end_at=bench.now + 5.0))
    bench.handle(m.ShutdownRequested(end_at=bench.now + 2.0))
    bench.handle(m.ShutdownRequested(end_at=bench.now + 9.0))

    bench.advance(1.9)
    assert bench[0].condemned is None
    bench.advance(0.1)

    assert [Outcome.DIED, "cancelled"] == [outcome(running), outcome(waiting)]
    bench.exit_condemned()
    assert bench.closed


def test_end_requested_hurries_a_polite_end() -> None:
    """kill_workers during a polite end sends KILL."""
    bench = Bench().up()
    bench.handle(m.ShutdownRequested())
    bench.handle(m.EndRequested())
    assert 1 == len(bench.actions(m.Condemn))

    bench.handle(m.EndRequested(kill=True))

    assert [False, True] == [c.kill for c in bench.actions(m.Condemn)]
    bench.exit_condemned()
    assert bench.closed


def test_broken_while_draining() -> None:
    """A pool that breaks while it drains fails what is left and closes."""
    bench = Bench(min_workers=0, restart_budget=2).start()
    request = bench.submit()
    bench.handle(m.ShutdownRequested())

    fail_start(bench)
    bench.advance(5.0)
    fail_start(bench)

    assert isinstance(request.future.error, PoolBroken)
    assert bench.closed
    assert isinstance(bench.refused, PoolBroken)


def test_shutdown_of_a_broken_pool() -> None:
    """A broken pool closes like any other."""
    bench = Bench(2, restart_budget=1).start()
    bench.ready(bench[1])
    fail_start(bench)
    assert PoolState.BROKEN is bench.scheduler.state

    bench.handle(m.ShutdownRequested())
    assert not bench.closed
    bench.exit_condemned()

    assert bench.closed


def test_breaking_fails_running_requests() -> None:
    """When the pool breaks, running requests fail with it and their late replies settle nothing."""
    bench = Bench(2, restart_budget=1).start()
    bench.ready(bench[1])
    request = bench.submit()
    bench[1].begin()

    fail_start(bench)
    assert isinstance(request.future.error, PoolBroken)
    bench[1].finish()
    bench.read_all()
    bench.exit_condemned()

    assert 1 == bench.ends[request]
    assert ["", ""] == bench.states()
    assert ["start_failed", "broken"] == reasons(bench)


def test_breaking_and_ending_with_the_pools_own_requests() -> None:
    """Health checks and set-up commands in pipes and lanes are no futures: they end with their workers."""
    for end in (m.EndRequested(), None):
        bench = Bench(3, min_workers=2, restart_budget=1, health_check_interval_s=10.0).up()
        bench.advance(10.0)
        bench[0].work()
        bench.read_all()
        request = bench.submit(session="s", setup=(("one", None), ("two", None)))
        assert ["busy", "checking", ""] == bench.states()

        if end is None:
            bench.submit()
            bench.submit()
            fail_start(bench)
        else:
            bench.handle(end)
        bench.exit_condemned()

        assert ("cancelled" if end else Outcome.ERROR) == outcome(request)
        assert ["", "", ""] == bench.states()


def test_idle_time_goes_on_after_a_health_check() -> None:
    """A worker that is checked while it idles is ended for its idle time all the same."""
    bench = Bench(min_workers=0, worker_idle_timeout_s=5.0, health_check_interval_s=4.0).start()
    bench.submit()
    bench.ready_all()
    bench.run()
    bench.advance(4.0)
    assert ["checking"] == bench.states()
    bench.advance(1.5)
    bench.run()
    bench.advance(3.0)
    bench.run()

    bench.advance(5.0)

    assert ["condemned"] == bench.states()


def test_exit_event_says_why() -> None:
    """The exit event carries the reason, the exit status and the last of stderr."""
    bench = Bench().up()
    bench.submit()
    bench.run()
    bench.advance(2.0)

    bench.exit(bench[0], code=7, tail="bye")

    exits: Any = [a for a in bench.actions(m.Emit) if a.event == "snakepit.worker.exited"]
    assert {"uptime_s": 2.0} == exits[0].measurements
    assert {
        "pool": "pool",
        "worker_id": "pool-0-1",
        "reason": "crash",
        "exit_code": 7,
        "signal": None,
        "stderr_tail": "bye",
    } == exits[0].metadata
    assert 1 == len(bench.events("worker.restarted"))


@pytest.mark.parametrize("seconds", [1e-13, 1e-300])
@pytest.mark.parametrize("name", ["health_check_interval_s", "worker_idle_timeout_s"])
def test_times_below_the_clocks_resolution(name: str, seconds: float) -> None:
    """The pool looks after its workers often, and does other things as well; a strict session's worker is kept."""
    bench = Bench(1, min_workers=0, **{name: seconds}).start()
    bench.submit(session="s")
    bench.ready_all()
    bench.run()

    for _ in range(10):
        deadline = bench.scheduler.next_deadline()
        assert deadline is not None
        assert bench.now < deadline <= bench.now + 0.001
        bench.advance(0.001)

    assert "ok" == outcome(bench.requests[0])
    last = bench.submit(session="s")
    bench.run()
    assert "ok" == outcome(last)
