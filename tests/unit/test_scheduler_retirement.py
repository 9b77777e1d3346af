"""Planned replacement: turns, strict sessions that are waited for, and everybody's work meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from unit.scheduling import Bench, outcome

from snakepit._core import model as m
from snakepit._core.model import ExitReason, PoolState, Worker, WorkerState


def worker_of(request: m.Request) -> Worker:
    assert request.worker is not None
    return request.worker


def reasons(bench: Bench) -> list[str]:
    return [str(event["reason"]) for event in bench.events("worker.exited")]


def holding(size: int = 1, **config: object) -> tuple[Bench, Worker]:
    """Return a bench whose first worker holds the strict session "s", idle."""
    bench = Bench(size, **config).up()  # type: ignore[arg-type]
    request = bench.submit("bind", session="s")
    bench.run()
    return bench, worker_of(request)


def lining_up(bench: Bench, worker: Worker) -> None:
    """Line one worker up for replacement, as its memory would."""
    bench.handle(m.RssMeasured(worker.worker_id, 2000))


# Common work while a worker waits for its sessions --------------------------------------------------


def retire_by_request(bench: Bench, worker: Worker) -> None:
    bench.handle(m.RestartRequested(worker.worker_id))


def retire_by_recycle(bench: Bench, worker: Worker) -> None:
    bench.handle(m.RecycleRequested())


def retire_by_memory(bench: Bench, worker: Worker) -> None:
    lining_up(bench, worker)


def retire_by_age(bench: Bench, worker: Worker) -> None:
    assert worker.expires_at is not None
    bench.advance(worker.expires_at - bench.now)


@pytest.mark.parametrize("retire", [retire_by_request, retire_by_recycle, retire_by_memory, retire_by_age])
def test_common_work_goes_on_while_a_worker_waits_for_its_sessions(
    retire: Callable[[Bench, Worker], None],
) -> None:
    """Whatever asks for the replacement, the only worker serves everybody until its session has ended."""
    limits = {"max_worker_rss_bytes": 1000, "max_worker_age_s": 50.0, "health_check_interval_s": 1e6}
    bench, worker = holding(**limits)

    retire(bench, worker)
    free = [bench.submit("free") for _ in range(3)]
    bench.run()
    assert ["ok"] * 3 == [outcome(request) for request in free]
    assert {worker} == {request.worker for request in free}
    bench.handle(m.SessionEnded("s"))

    assert WorkerState.CONDEMNED is worker.state


@pytest.mark.parametrize("end", ["session_ended", "session_expired", "time_over"])
def test_endless_common_work_does_not_keep_a_worker(end: str) -> None:
    """Once nothing holds it, or at ``session_drain_s``, it goes between two requests, however many wait."""
    bench, worker = holding(session_ttl_s=4.0, session_drain_s=9.0, health_check_interval_s=1e6)
    bench.handle(m.RestartRequested(worker.worker_id))
    waiting = [bench.submit(f"free {n}") for n in range(20)]
    if end == "time_over":
        bench.submit("use", session="s")

    if end == "session_ended":
        bench.handle(m.SessionEnded("s"))
    else:
        bench.advance(4.0 if end == "session_expired" else 9.0)
    assert WorkerState.BUSY is worker.state
    bench.reply()

    assert WorkerState.CONDEMNED is worker.state
    assert ["ok"] + [None] * 19 == [outcome(request) for request in waiting]
    bench.exit_condemned()
    bench.ready_all()
    bench.run()
    assert ["ok"] * 20 == [outcome(request) for request in waiting]


@pytest.mark.parametrize("setup", [(), (("load", None),)])
def test_at_the_limit_strict_sessions_are_lost_or_set_up_again(setup: tuple[tuple[str, None], ...]) -> None:
    """What waits at ``session_drain_s`` gets SessionLost; a session with a set-up goes on in the new worker."""
    bench = Bench(session_drain_s=5.0).up()
    bench.submit("bind", session="s", setup=setup)
    bench.run()
    worker = bench[0].worker
    running = bench.submit("long")
    bench.handle(m.RestartRequested(worker.worker_id))
    waiting = bench.submit("use", session="s", setup=setup)

    bench.advance(5.0)
    assert WorkerState.BUSY is worker.state
    bench.reply()
    bench.exit_condemned()
    bench.ready_all()
    bench.run()

    assert "ok" == outcome(running)
    assert ("SessionLost" if not setup else "NoneType") == type(waiting.future.error).__name__
    assert ["recycled"] == reasons(bench)
    commands = [request.command for request in bench[0].begun]
    assert (["load", "use"] if setup else []) == commands


def test_the_time_for_sessions_is_not_begun_anew() -> None:
    """Health checks go on while a worker waits for its sessions, and do not prolong that time."""
    bench, worker = holding(2, session_drain_s=50.0, health_check_interval_s=10.0, health_check_timeout_s=5.0)
    bench.handle(m.RestartRequested(worker.worker_id))

    checks = 0
    for _ in range(49):
        bench.advance(1.0)
        if worker.state is WorkerState.CHECKING:
            checks += 1
            bench.run()
    assert WorkerState.IDLE is worker.state
    bench.advance(2.0)
    bench.run()
    bench.advance(0.0)

    assert checks >= 4
    assert WorkerState.CONDEMNED is worker.state


def test_a_deaf_worker_that_waits_for_its_sessions_is_found() -> None:
    """A worker that retires is still checked: one that does not answer is replaced for its health."""
    bench, worker = holding(session_drain_s=500.0, health_check_interval_s=10.0, health_check_timeout_s=5.0)
    bench.handle(m.RestartRequested(worker.worker_id))

    bench.advance(10.0)
    assert WorkerState.CHECKING is worker.state
    bench.advance(5.0)
    bench.exit_condemned()

    assert ["health"] == reasons(bench)


def test_nothing_is_sent_ahead_to_a_worker_that_retires() -> None:
    """A worker that retires gets one request at a time, so that it can go after any of them."""
    bench, worker = holding(can_claim=True)
    worker.service_s = 1e-5
    bench.handle(m.RestartRequested(worker.worker_id))

    for _ in range(100):
        bench.submit("tiny")
    bench.reply()
    retiring = len(worker.sent)
    bench.handle(m.SessionEnded("s"))
    bench.reply()
    bench.exit_condemned()
    bench.ready_all()
    bench.reply()

    assert 1 == retiring
    assert len(bench[0].worker.sent) > 1


def test_an_idle_worker_is_preferred_to_one_that_retires() -> None:
    """Common work goes to a worker that retires only when no other is idle."""
    bench, worker = holding(2)
    bench.handle(m.RestartRequested(worker.worker_id))

    first, second = bench.submit("first"), bench.submit("second")

    assert worker is not first.worker
    assert worker is second.worker


@pytest.mark.parametrize("mode", ["strict", "fail_fast"])
def test_no_session_begins_on_a_worker_that_retires(mode: str) -> None:
    """A new session waits for another worker, and what stands behind it does not wait with it."""
    bench, worker = holding(2)
    bench.handle(m.RestartRequested(worker.worker_id))
    busy = bench.submit("busy")
    assert worker is not busy.worker

    opener = bench.submit("new", session="t", affinity=mode)
    behind = bench.submit("behind")
    hint = bench.submit("hint", session="h", affinity="hint")
    assert (None, worker) == (opener.worker, behind.worker)
    bench.run()

    assert busy.worker is opener.worker
    assert hint.worker in (worker, busy.worker)
    assert ["ok"] * 4 == [outcome(request) for request in (busy, opener, behind, hint)]


def test_a_session_begins_on_a_worker_that_retires_when_there_is_no_other() -> None:
    """Where every worker retires, a new session is served at once instead of waiting for the replacement."""
    bench, worker = holding(session_drain_s=10.0)
    bench.handle(m.RestartRequested(worker.worker_id))
    bench.advance(6.0)

    opener = bench.submit("new", session="t")
    bench.run()
    assert ("ok", worker) == (outcome(opener), opener.worker)
    bench.advance(4.0)

    assert WorkerState.CONDEMNED is worker.state


def test_an_elastic_pool_grows_for_a_session_that_a_retiring_worker_does_not_take() -> None:
    """With a free slot, a new session gets a worker of its own instead of one that is about to go."""
    bench = Bench(2, min_workers=0).start()
    bench.submit("bind", session="s")
    bench.ready_all()
    bench.run()
    bench.handle(m.RecycleRequested())
    assert 1 == len(bench.living())

    opener = bench.submit("new", session="t")
    bench.ready_all()
    bench.run()

    assert ("ok", 2) == (outcome(opener), len(bench.living()))


def test_a_waiting_first_request_is_cancelled_and_times_out() -> None:
    """The first request of a session that no worker may take yet can be withdrawn like any other."""
    bench, worker = holding(2)
    bench.handle(m.RestartRequested(worker.worker_id))
    bench.submit("busy")
    first = bench.submit("new", session="t")
    second = bench.submit("new", session="u", queue_timeout_s=1.0)

    assert bench.cancel(first)
    bench.advance(1.0)

    assert ("cancelled", m.Outcome.QUEUE_TIMEOUT) == (outcome(first), outcome(second))
    assert 0 == len(bench.board.queue)


# Turns ----------------------------------------------------------------------------------------------


def test_others_have_their_turn_while_one_waits_for_its_sessions() -> None:
    """A worker that waits for its sessions holds up nobody's replacement, and goes in its turn afterwards."""
    bench, patient = holding(3, session_drain_s=100.0, health_check_interval_s=1e6)

    bench.handle(m.RecycleRequested())
    for _ in range(2):
        assert 1 == bench.states().count("condemned")
        bench.exit_condemned()
        assert 1 == bench.states().count("starting")
        bench.ready_all()
    assert (["idle"] * 3, ["recycled"] * 2) == (bench.states(), reasons(bench))
    bench.handle(m.SessionEnded("s"))

    assert ["condemned"] == [state for state in bench.states() if state != "idle"]
    assert WorkerState.CONDEMNED is patient.state


@pytest.mark.parametrize("end", ["session_ended", "time_over"])
def test_a_worker_freed_of_its_sessions_waits_for_its_turn(end: str) -> None:
    """Two workers never leave in turn at once, and the one that waits serves on until then."""
    bench, patient = holding(3, session_drain_s=10.0, health_check_interval_s=1e6)
    bench.handle(m.RecycleRequested())
    bench.exit_condemned()
    assert 1 == bench.states().count("starting")

    if end == "session_ended":
        bench.handle(m.SessionEnded("s"))
    else:
        bench.advance(10.0)
    assert WorkerState.CONDEMNED is not patient.state
    both = [bench.submit(), bench.submit()]
    bench.run()
    assert ["ok", "ok"] == [outcome(request) for request in both]
    assert 0 == bench.states().count("condemned")
    bench.ready_all()

    assert WorkerState.CONDEMNED is patient.state


def test_only_one_worker_at_a_time_is_closed_to_new_sessions() -> None:
    """Of several workers with sessions that stand in the line, one waits for its sessions; the others take new ones."""
    bench = Bench(3, max_worker_rss_bytes=1000, health_check_interval_s=1e6).up()
    bound = [bench.submit("bind", session=name) for name in "abc"]
    bench.run()
    assert 3 == len({request.worker for request in bound})

    for request in bound:
        lining_up(bench, worker_of(request))
    assert 1 == len(bench.board.workers.retiring)
    opener = bench.submit("new", session="d")
    bench.run()
    assert worker_of(opener).retire is None
    order = []
    for name, request in zip("abc", bound, strict=True):
        bench.handle(m.SessionEnded(name))
        bench.handle(m.SessionEnded("d"))
        order.append(worker_of(request).state)
        bench.exit_condemned()
        bench.ready_all()

    assert [WorkerState.CONDEMNED] * 3 == order
    assert ["max_rss"] * 3 == reasons(bench)


def test_a_request_to_restart_does_not_wait_for_a_turn() -> None:
    """restart_worker and a spent request limit are obeyed at once, also for one that stands in the line."""
    bench, patient = holding(3, session_drain_s=100.0, health_check_interval_s=1e6)
    bench.handle(m.RecycleRequested())
    lined_up = next(w for w in bench.board.workers.by_id.values() if w.state is WorkerState.IDLE and not w.retire)

    bench.handle(m.RestartRequested(lined_up.worker_id))
    assert 2 == bench.states().count("condemned")
    bench.handle(m.RestartRequested(patient.worker_id))
    bench.handle(m.SessionEnded("s"))

    assert ["condemned"] * 3 == bench.states()


def test_the_line_waits_for_a_worker_that_was_replaced_without_a_turn() -> None:
    """While restart_worker replaces one worker, recycle() takes no second one away."""
    bench = Bench(3).up()
    bench.handle(m.RestartRequested("pool-0-1"))

    bench.handle(m.RecycleRequested())
    assert ["condemned", "idle", "idle"] == bench.states()
    bench.exit_condemned()
    bench.ready_all()

    assert ["condemned"] == [state for state in bench.states() if state != "idle"]


def test_a_broken_pool_forgets_its_line() -> None:
    """What was lined up when the pool broke is not taken up again after it was healed."""
    bench = Bench(2, restart_budget=1).up()
    bench.handle(m.RecycleRequested())
    bench.exit_condemned()
    starting = next(process for process in bench.living() if not process.ready)
    bench.spawned(starting)
    bench.exit(starting, code=1)
    assert PoolState.BROKEN is bench.scheduler.state
    bench.exit_condemned()
    assert not bench.scheduler.lifecycle.pending
    assert bench.scheduler.lifecycle.replacing is None

    bench.handle(m.RecycleRequested())
    bench.ready_all()

    assert ["idle", "idle"] == bench.states()
    assert not bench.scheduler.lifecycle.pending


@pytest.mark.parametrize("stage", ["in line", "waiting for its sessions"])
def test_a_worker_that_dies_before_its_turn_is_forgotten(stage: str) -> None:
    """A crash takes a worker out of the line; the others have their turns."""
    bench, patient = holding(3, session_drain_s=100.0, health_check_interval_s=1e6)
    bench.handle(m.RecycleRequested())
    waiting = [w for w in bench.board.workers.by_id.values() if w.state is WorkerState.IDLE]
    victim = patient if stage != "in line" else next(w for w in waiting if w is not patient)

    bench.exit(bench.processes[victim.worker_id], signal=9)
    bench.advance(1.0)
    bench.ready_all()
    bench.handle(m.SessionEnded("s"))
    for _ in range(3):
        bench.exit_condemned()
        bench.ready_all()

    assert ["crash", "recycled", "recycled"] == sorted(reasons(bench))
    assert ["idle"] * 3 == bench.states()
    assert not bench.scheduler.lifecycle.pending


def test_no_further_worker_is_given_up_for_one_that_does_not_start() -> None:
    """While the replacement of one worker fails to start, the others of the line stay and serve."""
    bench = Bench(3, restart_budget=50).up()
    for _ in range(3):
        bench.submit()
    bench.run()
    bench.handle(m.RecycleRequested())
    bench.exit_condemned()

    for _ in range(10):
        starting = [p for p in bench.living() if not p.ready]
        assert 1 == len(starting)
        bench.spawned(starting[0])
        bench.exit(starting[0], code=1)
        bench.advance(15.0)
        bench.run()
    assert 2 == bench.states().count("idle")
    bench.ready_all()

    assert 1 == bench.states().count("condemned")


def test_a_retiring_worker_is_not_shrunk_away() -> None:
    """A worker that waits for its sessions does not go for its idle time."""
    bench, worker = holding(2, session_drain_s=100.0, worker_idle_timeout_s=5.0, health_check_interval_s=1e6)
    bench.board.min_workers = 0
    bench.handle(m.RestartRequested(worker.worker_id))

    bench.advance(50.0)
    bench.exit_condemned()

    assert WorkerState.IDLE is worker.state
    assert [ExitReason.IDLE.value] == reasons(bench)
