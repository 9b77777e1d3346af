"""Sessions: where they live, in which order they run, and what happens when their worker is gone."""

from __future__ import annotations

from typing import Any

import pytest
from unit.scheduling import Bench, Process, outcome

from snakepit._core import model as m
from snakepit._core.model import Outcome, Request
from snakepit.errors import CommandTimeout, SessionBusy, SessionLost, SessionQuotaExceeded, WorkerDied

SETUP = (("load", None), ("warm", None))


def home(bench: Bench, session_id: str = "s") -> Process:
    """Return the process that a session is bound to."""
    session = bench.scheduler.rules.table.get(session_id)
    assert session is not None
    assert session.worker is not None
    return bench.processes[session.worker.worker_id]


def begun(bench: Bench) -> list[str]:
    """Return what began, process by process in the order of their spawns."""
    return [request.command for process in bench.processes.values() for request in process.begun]


def errors(requests: list[Request]) -> list[str]:
    return [type(request.future.error).__name__ for request in requests]


def busy(bench: Bench, process: Process) -> None:
    """Keep a process at work with a request of nobody's session."""
    while not process.worker.sent:
        bench.submit("busy")


# Where they live ------------------------------------------------------------------------------------


def test_strict_waits_for_its_worker() -> None:
    """A strict session's request waits while its worker is busy, although another worker is idle."""
    bench = Bench(2).up()
    bench.submit("a", session="s")
    second = bench.submit("b", session="s")

    assert outcome(second) is None
    assert ["a"] == [r.command for r in home(bench).worker.sent]
    assert 1 == bench.states().count("idle")
    bench.run()
    assert ["a", "b"] == [r.command for r in home(bench).begun]


def test_forty_calls_of_one_session_run_in_one_worker() -> None:
    """Binding happens in one step: concurrent calls of a new session all go to one worker, in order."""
    bench = Bench(4).up()
    requests = [bench.submit(f"r{number}", session="s") for number in range(40)]

    bench.run()

    assert [f"r{number}" for number in range(40)] == [r.command for r in home(bench).begun]
    assert ["ok"] * 40 == [outcome(request) for request in requests]
    assert 1 == len(bench.events("session.created"))


def test_sessions_spread_over_workers() -> None:
    """A new session binds to the idle worker with the fewest sessions."""
    bench = Bench(3).up()
    for number in range(6):
        bench.submit(session=f"s{number}")
        bench.run()

    assert [2, 2, 2] == [len(slot.worker.sessions) for slot in bench.board.workers.slots if slot.worker]


def test_unbound_session_waits_in_the_queue_once() -> None:
    """The first request of an unbound session stands in the common queue; the others follow it."""
    bench = Bench().up()
    bench.submit("busy")
    for name in "abc":
        bench.submit(name, session="s")
    assert 1 == len(bench.board.queue)
    assert "queued 3" in bench.board.numbers()

    bench.run()

    assert ["busy", "a", "b", "c"] == begun(bench)


def test_cancelled_head_is_followed_by_the_next() -> None:
    """When the request that stands for a session is cancelled, the next one takes its place."""
    bench = Bench().up()
    bench.submit("busy")
    first = bench.submit("a", session="s")
    bench.submit("b", session="s")

    bench.cancel(first)
    bench.run()

    assert ["busy", "b"] == begun(bench)


def test_pinned_head_blocks_nobody() -> None:
    """A request that has to wait for its own worker lets later ones pass to other workers."""
    bench = Bench(2).up()
    bench.submit("a", session="s")
    bench.submit("other")
    pinned = bench.submit("b", session="s")
    free = bench.submit("free")
    other = next(p for p in bench.living() if p is not home(bench))

    other.work()
    bench.read_all()

    assert ["free"] == [r.command for r in other.worker.sent]
    assert outcome(pinned) is None
    bench.run()
    assert ["a", "b"] == [r.command for r in home(bench).begun]
    assert "ok" == outcome(free)


def test_priority_never_overtakes_within_a_session() -> None:
    """A later request of a session waits for the earlier one, whatever its priority."""
    bench = Bench().up()
    bench.submit("busy")
    bench.submit("a", session="s", priority=0)
    bench.submit("b", session="s", priority=9)
    bench.submit("free", priority=5)

    bench.run()

    assert ["busy", "free", "a", "b"] == begun(bench)


def test_own_lane_and_queue_are_fair() -> None:
    """A worker takes the older one of its own and the common requests."""
    bench = Bench().up()
    bench.submit("a", session="s")
    bench.submit("x")
    bench.submit("b", session="s")
    bench.submit("y")

    bench.run()

    assert ["a", "x", "b", "y"] == begun(bench)


def test_hint_goes_elsewhere_while_busy() -> None:
    """A hint session's request is served by another idle worker; the binding stays."""
    bench = Bench(2).up()
    bench.submit("a", session="s", affinity="hint")
    bound = home(bench)
    bench.submit("b", session="s", affinity="hint")

    assert bound is home(bench)
    assert ["a"] == [r.command for r in bound.worker.sent]
    bench.run()
    bench.submit("c", session="s", affinity="hint")
    assert ["c"] == [r.command for r in bound.worker.sent]


def test_hint_moves_when_its_worker_is_lost() -> None:
    """A hint session whose worker dies is bound anew without an error, and an event tells it."""
    bench = Bench(2).up()
    request = bench.submit("a", session="s", affinity="hint")
    bench.exit(home(bench), signal=9)
    assert isinstance(request.future.error, WorkerDied)

    following = bench.submit("b", session="s", affinity="hint")
    bench.run()

    assert "ok" == outcome(following)
    assert 1 == len(bench.events("session.moved"))
    assert [] == bench.events("session.lost")


def test_fail_fast() -> None:
    """A fail_fast session's request fails when its worker has work, and runs when it has none."""
    bench = Bench(2).up()
    first = bench.submit("a", session="s", affinity="fail_fast")
    refused = bench.submit("b", session="s", affinity="fail_fast")
    bench.run()
    later = bench.submit("c", session="s")
    busy(bench, home(bench))
    bench.run()

    assert ["ok", Outcome.ERROR, "ok"] == [outcome(request) for request in (first, refused, later)]
    assert isinstance(refused.future.error, SessionBusy)
    assert "size 2" in str(refused.future.error)
    busy(bench, home(bench))
    assert Outcome.ERROR is outcome(bench.submit("d", session="s", affinity="strict"))


def test_fail_fast_followers_of_the_binding_request() -> None:
    """What waited behind the request that binds a fail_fast session finds its worker at work."""
    bench = Bench().up()
    bench.submit("busy")
    first = bench.submit("a", session="s", affinity="fail_fast")
    second = bench.submit("b", session="s", affinity="fail_fast")
    assert outcome(second) is None

    bench.reply()

    assert isinstance(second.future.error, SessionBusy)
    bench.run()
    assert "ok" == outcome(first)


def test_fail_fast_waits_for_a_health_check() -> None:
    """A health check is no work: a fail_fast request waits for its answer."""
    bench = Bench(health_check_interval_s=5.0).up()
    bench.submit(session="s", affinity="fail_fast")
    bench.run()
    bench.advance(5.0)
    assert ["checking"] == bench.states()

    request = bench.submit(session="s")
    bench.run()

    assert "ok" == outcome(request)


def test_the_call_that_binds_fixes_the_mode() -> None:
    """A mode that never came to a binding does not count; afterwards it stays."""
    bench = Bench().up()
    bench.submit("busy")
    bench.cancel(bench.submit(session="s", affinity="fail_fast"))
    bench.submit(session="s", affinity="strict")
    bench.run()
    bench.submit(session="s", affinity="hint")

    session = bench.scheduler.rules.table.get("s")

    assert session is not None
    assert "strict" == session.mode


# Loss -----------------------------------------------------------------------------------------------


def test_running_dies_and_waiting_is_lost() -> None:
    """Of a lost strict session what runs gets WorkerDied, what waits SessionLost; then it binds anew."""
    bench = Bench(2).up()
    requests = [bench.submit(f"r{number}", session="s") for number in range(3)]
    in_the_inbox = bench.accept("r3", session="s")

    bench.exit(home(bench), code=3)
    bench.handle(m.Submitted(in_the_inbox))
    anew = bench.submit("r4", session="s")

    assert ["WorkerDied", "SessionLost", "SessionLost", "SessionLost"] == errors([*requests, in_the_inbox])
    assert "begins anew" in str(in_the_inbox.future.error)
    assert [{"session": "s", "worker_id": "pool-0-1", "pool": "pool"}] == bench.events("session.lost")
    bench.run()
    assert "ok" == outcome(anew)
    assert 2 == len(bench.events("session.created"))


def test_the_next_request_learns_of_the_loss() -> None:
    """When none was waiting, the next one and those accepted with it get SessionLost; then it binds anew."""
    bench = Bench(2).up()
    bench.submit("r0", session="s")
    bench.run()
    bench.exit(home(bench), code=0)
    first = bench.accept("r1", session="s")
    second = bench.accept("r2", session="s")

    bench.handle(m.Submitted(first))
    third = bench.accept("r3", session="s")
    bench.handle(m.Submitted(second))
    bench.handle(m.Submitted(third))
    bench.run()

    assert ["SessionLost", "SessionLost", "NoneType"] == errors([first, second, third])
    assert "ok" == outcome(third)


def test_a_cancelled_request_hears_of_no_loss() -> None:
    """A loss that only cancelled requests would have told is told to the next request."""
    bench = Bench(2).up()
    bench.submit("r0", session="s")
    bench.run()
    bench.exit(home(bench), code=0)
    deaf = [bench.accept(f"r{number}", session="s") for number in (1, 2)]

    # The callers cancel before the manager has seen the requests, and it sees the requests first.
    assert all(bench.cancel_future(request) for request in deaf)
    for request in deaf:
        bench.handle(m.Submitted(request))
    for request in deaf:
        bench.hear_cancel(request)
    told = bench.submit("r3", session="s")
    anew = bench.submit("r4", session="s")
    bench.run()

    assert ["cancelled", "cancelled", "ok"] == [outcome(request) for request in (*deaf, anew)]
    assert isinstance(told.future.error, SessionLost)


def test_waiting_requests_that_were_cancelled_hear_of_no_loss() -> None:
    """A worker is lost while all that waited for it have been cancelled: the next request learns of the loss."""
    bench = Bench(2).up()
    running, waiting = (bench.submit(command, session="s") for command in ("a", "b"))

    assert bench.cancel_future(waiting)
    bench.exit(home(bench), code=3)
    bench.hear_cancel(waiting)
    told = bench.submit("c", session="s")
    anew = bench.submit("d", session="s")
    bench.run()

    assert ["WorkerDied", "NoneType", "SessionLost", "NoneType"] == errors([running, waiting, told, anew])
    assert ["cancelled", "ok"] == [outcome(waiting), outcome(anew)]


def test_a_time_out_loses_the_session_too() -> None:
    """A strict session whose running request times out is lost; that request gets its CommandTimeout."""
    bench = Bench(2).up()
    running = bench.submit("a", session="s", timeout_s=1.0)
    waiting = bench.submit("b", session="s")

    bench.advance(1.0)

    assert isinstance(running.future.error, CommandTimeout)
    assert isinstance(waiting.future.error, SessionLost)
    again = bench.submit("c", session="s")
    bench.run()
    assert "ok" == outcome(again)


def test_sent_ahead_requests_of_a_lost_session() -> None:
    """What was sent ahead for a session that is lost fails with it as well."""
    bench = Bench(can_claim=True).up()
    bench.submit("warm-up")
    bench.run()
    requests = [bench.submit(f"r{number}", session="s") for number in range(4)]
    bench.reply()
    assert ["r1", "r2", "r3"] == bench.sent()

    bench.exit(bench[0], signal=9)

    assert ["NoneType", "WorkerDied", "SessionLost", "SessionLost"] == errors(requests)
    again = bench.submit(session="s")
    bench.ready_all()
    bench.run()
    assert "ok" == outcome(again)


@pytest.mark.parametrize("ended", [False, True])
def test_sent_ahead_requests_of_a_session_lost_by_a_time_out(ended: bool) -> None:
    """What is taken back from a worker that is ended fails as lost; nobody else is told again."""
    bench = Bench(can_claim=True).up()
    bench.submit("warm-up")
    bench.run()
    requests = [bench.submit(f"r{number}", session="s", timeout_s=1.0) for number in range(4)]
    bench.reply()
    if ended:
        bench.handle(m.SessionEnded("s"))

    bench.advance(1.0)

    assert ["NoneType", "CommandTimeout", "SessionLost", "SessionLost"] == errors(requests)
    assert outcome(bench.submit(session="s")) is None


def test_begun_request_of_a_lost_session() -> None:
    """A begun request outlives the loss of its session; what was accepted before the loss was told fails."""
    bench = Bench(2, can_claim=True).up()
    bench.submit("warm-up", session="s")
    bench.run()
    process = home(bench)
    requests = [bench.submit(f"r{number}", session="s") for number in range(4)]
    bench.reply(process.worker.slot.index)
    process.work()
    bench.begin(process)
    waiting = bench.accept("late", session="s")

    bench.handle(m.Misbehaved(process.worker_id, ValueError("garbage")))
    bench.handle(m.Submitted(waiting))
    anew = bench.submit("anew", session="s")
    bench.exit_condemned()
    bench.ready_all()
    bench.run()

    expected = ["NoneType", "ValueError", "WorkerDied", "SessionLost", "SessionLost"]
    assert expected == errors([*requests, waiting])
    assert "ok" == outcome(anew)


def test_ended_session_is_not_lost() -> None:
    """A session that was ended while its last request ran leaves no loss to be told."""
    bench = Bench(2).up()
    request = bench.submit(session="s")
    bench.handle(m.SessionEnded("s"))

    bench.advance(1.0)
    bench.cancel(request, running=True)
    bench.exit_condemned()

    assert 0 == len(bench.scheduler.rules.table)
    following = bench.submit(session="s")
    bench.run()
    assert "ok" == outcome(following)


def test_sent_ahead_requests_return_to_their_lane() -> None:
    """What is taken back for another's cancellation goes on in its own worker, in order."""
    bench = Bench(can_claim=True).up()
    bench.submit("warm-up")
    bench.run()
    requests = [bench.submit(f"r{number}", session="s") for number in range(5)]
    bench.reply()

    bench.cancel(requests[2], running=True)
    bench.run()

    assert ["warm-up", "r0", "r1", "r3", "r4"] == begun(bench)


def test_fail_fast_is_lost_like_strict() -> None:
    """A fail_fast session that lost its worker tells the next request."""
    bench = Bench(2).up()
    bench.submit(session="s", affinity="fail_fast")
    bench.run()
    bench.exit(home(bench), signal=9)

    told = bench.submit(session="s")

    assert isinstance(told.future.error, SessionLost)


def test_a_loss_that_was_told_lets_the_mode_change() -> None:
    """After SessionLost the call that binds anew fixes the mode anew."""
    bench = Bench(2).up()
    bench.submit(session="s")
    bench.run()
    bench.exit(home(bench), signal=9)
    bench.submit(session="s")

    bench.submit(session="s", affinity="hint")

    session = bench.scheduler.rules.table.get("s")
    assert session is not None
    assert "hint" == session.mode


def test_a_loss_that_was_told_lets_the_time_to_live_change() -> None:
    """After SessionLost the call that binds anew fixes the time to live anew, also to a shorter one."""
    bench = Bench(2, session_ttl_s=3600.0).up()
    bench.submit(session="s")
    bench.run()
    bench.exit(home(bench), signal=9)
    bench.submit(session="s")

    bench.submit(session="s", ttl_s=2.0)
    bench.run()
    bench.advance(1.9)
    assert 1 == len(bench.scheduler.rules.table)
    bench.advance(0.1)

    assert 0 == len(bench.scheduler.rules.table)


# Set-up ---------------------------------------------------------------------------------------------


def test_setup_runs_before_the_first_request() -> None:
    """Set-up commands run before the session's first request, and once."""
    bench = Bench().up()
    requests = [bench.submit(name, session="s", setup=SETUP) for name in "ab"]
    other = bench.submit("other")

    bench.run()

    assert ["load", "warm", "a", "b", "other"] == begun(bench)
    assert ["ok"] * 3 == [outcome(request) for request in [*requests, other]]


def test_setup_is_replayed_instead_of_a_loss() -> None:
    """With a set-up a lost worker is no SessionLost: what waited runs elsewhere, set up again, in order."""
    bench = Bench(2).up()
    first = bench.submit("a", session="s", setup=SETUP)
    rest = [bench.submit(name, session="s") for name in "bc"]
    process = home(bench)
    for _ in range(2):
        process.work()
        bench.read_all()
    assert ["a"] == [r.command for r in process.worker.sent]

    bench.exit(process, signal=9)
    bench.run()

    assert isinstance(first.future.error, WorkerDied)
    assert ["load", "warm", "b", "c"] == [r.command for r in home(bench).begun]
    assert ["ok", "ok"] == [outcome(request) for request in rest]
    assert [] == bench.events("session.lost")
    assert 1 == len(bench.events("session.moved"))


def test_later_calls_without_a_setup_keep_it() -> None:
    """A session keeps the set-up it was bound with, also for calls that do not name it."""
    bench = Bench(2).up()
    bench.submit("a", session="s", setup=SETUP)
    bench.run()
    bench.exit(home(bench), signal=9)

    bench.submit("b", session="s")
    bench.run()

    assert ["load", "warm", "b"] == [r.command for r in home(bench).begun]


def test_failing_setup_fails_the_first_request() -> None:
    """A set-up command that fails fails the request that needed it; the next one tries again."""
    bench = Bench().up()
    first = bench.submit("a", session="s", setup=SETUP)
    second = bench.submit("b", session="s")

    bench.reply(error=ValueError("no"))
    bench.run()

    assert "no" == str(first.future.error)
    assert Outcome.ERROR is outcome(first)
    assert ["load", "load", "warm", "b"] == begun(bench)
    assert "ok" == outcome(second)
    assert ["s"] == bench[0].forgot


def test_failing_setup_of_a_cancelled_request() -> None:
    """A set-up that fails for nobody leaves the session as it was before, and others on the worker alone."""
    bench = Bench().up()
    bench.submit("other", session="o")
    bench.run()
    request = bench.submit("a", session="s", setup=SETUP)
    other = bench.submit("other2", session="o")
    bench.cancel(request)

    bench.reply(error=ValueError("no"))
    bench.run()

    assert "ok" == outcome(other)
    assert ["other", "load", "other2"] == begun(bench)


def test_worker_dies_during_setup() -> None:
    """A worker that dies in a set-up fails the request that needed it; the next one is set up elsewhere."""
    bench = Bench(2).up()
    first = bench.submit("a", session="s", setup=SETUP)
    second = bench.submit("b", session="s")

    bench.exit(home(bench), signal=9)
    bench.run()

    assert isinstance(first.future.error, WorkerDied)
    assert "'load'" in str(first.future.error)
    assert "ok" == outcome(second)


def test_setup_times_out() -> None:
    """A set-up command has the time-out of the request that needed it."""
    bench = Bench(2).up()
    first = bench.submit("a", session="s", setup=SETUP, timeout_s=1.0)
    second = bench.submit("b", session="s")

    bench.advance(1.0)
    bench.exit_condemned()
    bench.run()

    assert isinstance(first.future.error, CommandTimeout)
    assert Outcome.COMMAND_TIMEOUT is outcome(first)
    assert "ok" == outcome(second)


def test_late_end_of_an_old_setup_touches_no_new_binding() -> None:
    """A set-up command that dies with a condemned worker does not undo the session's new binding."""
    bench = Bench(2).up()
    request = bench.submit("a", session="s", setup=SETUP)
    old = home(bench)
    bench.scheduler.lifecycle.condemn(old.worker, m.ExitReason.HEALTH)
    bench.handle(m.SessionEnded("unknown"))
    new = home(bench)
    assert new is not old

    bench.exit(old, signal=15)

    assert new is home(bench)
    bench.run()
    assert "ok" == outcome(request)


def test_cancelled_during_its_setup() -> None:
    """A request can be cancelled while its session is being set up."""
    bench = Bench().up()
    request = bench.submit("a", session="s", setup=SETUP)

    assert bench.cancel(request)
    bench.run()

    assert ["load", "warm"] == begun(bench)
    bench.submit("b", session="s")
    bench.run()
    assert ["load", "warm", "b"] == begun(bench)


def test_hint_session_is_set_up_before_its_other_requests() -> None:
    """A hint session's later requests do not overtake the one that waits for the set-up."""
    bench = Bench(2).up()
    bench.submit("busy1")
    bench.submit("busy2")
    for name in "abc":
        bench.submit(name, session="s", affinity="hint", setup=SETUP)

    bench[0].work()
    bench[1].work()
    bench.read_all()
    assert 1 == bench.states().count("idle")
    bench.run()

    assert ["load", "warm", "a"] == [r.command for r in home(bench).begun][1:4]
    assert {"a", "b", "c"} <= set(begun(bench))


def test_hint_session_loses_its_worker_during_setup() -> None:
    """A hint session's waiting requests are set up elsewhere when the set-up's worker dies."""
    bench = Bench(2).up()
    requests = [bench.submit(name, session="s", affinity="hint", setup=SETUP) for name in "abc"]

    bench.exit(home(bench), signal=9)
    bench.run()

    assert [Outcome.DIED, "ok", "ok"] == [outcome(request) for request in requests]


# The end of a session -------------------------------------------------------------------------------


def test_end_session_tells_the_worker_after_its_requests() -> None:
    """The worker is told after the session's accepted requests, and the id is free."""
    bench = Bench().up()
    for name in "ab":
        bench.submit(name, session="s")

    bench.handle(m.SessionEnded("s"))
    bench.handle(m.SessionEnded("s"))
    assert [] == bench.actions(m.EndSession)
    bench.run()
    bench[0].begin()

    assert ["a", "b"] == begun(bench)
    assert ["s"] == bench[0].forgot
    assert bench.scheduler.rules.table.get("s") is None
    assert {} == bench[0].worker.sessions


def test_end_of_an_idle_session() -> None:
    """An idle session ends at once; a worker that keeps no sessions is not told."""
    bench = Bench(can_end_session=False).up()
    bench.submit(session="s")
    bench.run()

    bench.handle(m.SessionEnded("s"))

    assert [] == bench.actions(m.EndSession)
    assert 0 == len(bench.scheduler.rules.table)


def test_hint_session_ends_on_every_worker_it_visited() -> None:
    """Each worker that served a hint session is told of its end."""
    bench = Bench(2).up()
    for _ in range(2):
        bench.submit(session="s", affinity="hint")
    bench.run()

    bench.handle(m.SessionEnded("s"))

    assert 2 == len(bench.actions(m.EndSession))


def test_visited_workers_do_not_pile_up() -> None:
    """A session that outlives many workers forgets those that are gone."""
    bench = Bench(2).up()
    for _ in range(12):
        bench.submit(session="s", affinity="hint")
        bench.submit(session="s", affinity="hint")
        for process in bench.living():
            bench.exit(process, signal=9)
        bench.ready_all()

    session = bench.scheduler.rules.table.get("s")

    assert session is not None
    assert 6 > len(session.visited)


def test_same_id_after_its_end() -> None:
    """A session of the same id begins only when the ended one has finished, with a state of its own."""
    bench = Bench(2).up()
    bench.submit("old1", session="s")
    bench.submit("old2", session="s")
    bench.handle(m.SessionEnded("s"))
    new = [bench.submit(name, session="s", affinity="hint") for name in ("new1", "new2")]

    assert 1 == bench.states().count("busy")
    bench.run()

    assert ["ok", "ok"] == [outcome(request) for request in new]
    assert 1 == len(bench.actions(m.EndSession))
    first = bench.actions(m.Dispatch)
    commands = [request.command for action in first for request in action.requests]
    assert ["old1", "old2", "new1", "new2"] == commands


def test_ended_successor_of_an_ended_session() -> None:
    """A successor that ends before it began waits for its predecessor like any other."""
    bench = Bench(2).up()
    bench.submit("old", session="s")
    bench.handle(m.SessionEnded("s"))
    middle = bench.submit("middle", session="s")
    bench.handle(m.SessionEnded("s"))
    bench.cancel(middle)
    new = bench.submit("new", session="s")

    assert 1 == bench.states().count("busy")
    bench.run()

    assert "ok" == outcome(new)
    assert ["old", "new"] == [r.command for a in bench.actions(m.Dispatch) for r in a.requests]


@pytest.mark.parametrize("how", ["one after another", "all at once", "the last one first"])
def test_many_successors_that_end_in_vain(how: str) -> None:
    """Whoever tries again and again behind a session that is at work leaves nothing behind, and gets its turn."""
    bench = Bench(max_sessions=1).up()
    bench.submit("old", session="s")
    bench.handle(m.SessionEnded("s"))
    check = bench.scheduler.check
    bench.scheduler.check = lambda: None  # type: ignore[method-assign]  # it walks through all of them each time

    tries = []
    for _ in range(5000):
        tries.append(bench.submit("retry", session="s", queue_timeout_s=1.0))
        bench.handle(m.SessionEnded("s"))
        if how == "one after another":
            bench.advance(1.0)
            assert 1 == len(bench.scheduler.rules.table.values())
    if how == "all at once":
        bench.advance(1.0)
    for request in reversed(tries):
        bench.cancel(request)
    check()
    assert 1 == len(bench.scheduler.rules.table.values())
    assert {"cancelled" if how == "the last one first" else Outcome.QUEUE_TIMEOUT} == set(map(outcome, tries))

    new = bench.submit("new", session="s", affinity="hint")
    assert ["old"] == bench.sent()
    bench.run()

    check()
    assert "ok" == outcome(new)
    assert ["old", "new"] == begun(bench)


def test_successors_around_one_that_ends_in_vain() -> None:
    """They keep their order, and begin one after another."""
    bench = Bench(2).up()
    requests = []
    for name in ("first", "second", "third", "fourth"):
        requests.append(bench.submit(name, session="s"))
        bench.handle(m.SessionEnded("s"))

    bench.cancel(requests[2])
    assert 3 == len(bench.scheduler.rules.table.values())
    bench.run()

    assert ["first", "second", "fourth"] == [r.command for a in bench.actions(m.Dispatch) for r in a.requests]
    assert 3 == len(bench.actions(m.EndSession))
    assert [] == bench.scheduler.rules.table.values()


def test_blocked_successor_outlives_its_time_to_live() -> None:
    """A successor without work is kept until its predecessor has ended, and expires after that."""
    bench = Bench(session_ttl_s=5.0).up()
    bench.submit("old", session="s")
    bench.handle(m.SessionEnded("s"))
    bench.cancel(bench.submit("new", session="s"))
    bench.advance(20.0)
    assert 1 == len(bench.scheduler.rules.table)

    bench.run()
    bench.advance(5.0)

    assert 0 == len(bench.scheduler.rules.table)


def test_end_during_setup_drops_the_rest_of_it() -> None:
    """A session that ends while it is set up for nobody runs no further set-up command."""
    bench = Bench().up()
    request = bench.submit("a", session="s", setup=SETUP)
    bench.handle(m.SessionEnded("s"))

    bench.cancel(request)
    bench.run()
    bench[0].begin()

    assert ["load"] == begun(bench)
    assert ["s"] == bench[0].forgot
    assert ["idle"] == bench.states()


def test_a_more_urgent_request_waits_for_a_set_up_that_was_left_to_itself() -> None:
    """Who comes after the only request was cancelled in the middle of its set-up runs after the rest of it."""
    bench = Bench().up()
    doomed = bench.submit("doomed", session="s", setup=SETUP, priority=-1)
    bench.cancel(doomed)

    urgent = bench.submit("urgent", session="s", setup=SETUP, priority=1)
    bench.run()

    assert [*(command for command, _ in SETUP), "urgent"] == begun(bench)
    assert isinstance(urgent.future.end, m.Resolve)
    assert ["idle"] == bench.states()


def test_idle_session_expires() -> None:
    """A binding ends after its time to live without requests; a request begins it anew."""
    bench = Bench(session_ttl_s=10.0).up()
    bench.submit(session="s")
    bench.submit(session="short", ttl_s=2.0)
    bench.run()
    bench.advance(9.0)
    bench.submit(session="s")
    bench.run()
    assert [{"session": "short", "pool": "pool"}] == bench.events("session.expired")

    bench.advance(9.0)
    assert 1 == len(bench.scheduler.rules.table)
    bench.advance(1.0)

    assert 0 == len(bench.scheduler.rules.table)
    assert 2 == len(bench.actions(m.EndSession))


def test_busy_session_does_not_expire() -> None:
    """The time to live begins when the last request has ended."""
    bench = Bench(session_ttl_s=1.0).up()
    bench.submit(session="s")

    bench.advance(50.0)

    assert 1 == len(bench.scheduler.rules.table)


def test_full_table_evicts_the_least_recently_used_hint() -> None:
    """A full table makes room by ending the hint session that was idle for longest."""
    bench = Bench(max_sessions=3).up()
    for name, mode in (("a", "strict"), ("b", "hint"), ("c", "hint")):
        bench.submit(session=name, affinity=mode)
        bench.run()
    bench.submit(session="b")
    bench.run()

    request = bench.submit(session="d")
    bench.run()

    assert "ok" == outcome(request)
    table = bench.scheduler.rules.table
    assert ["a", "b", "d"] == sorted(session.session_id for session in table.values())


def test_quota() -> None:
    """A full table of strict or busy sessions refuses a new one; those in it are served."""
    bench = Bench(max_sessions=2).up()
    bench.submit(session="a")
    bench.run()
    bench.submit(session="b", affinity="hint")

    refused = bench.submit(session="c")

    assert isinstance(refused.future.error, SessionQuotaExceeded)
    assert "max_sessions=2" in str(refused.future.error)
    served: Any = bench.submit(session="a")
    bench.run()
    assert "ok" == outcome(served)
