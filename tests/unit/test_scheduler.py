"""Queueing, time-outs, cancellation, and what is sent ahead and taken back."""

from __future__ import annotations

import math
from typing import Any

import pytest
from unit.scheduling import Bench, outcome

from snakepit._core import model as m
from snakepit._core.model import Outcome, Request
from snakepit._core.portions import MAX_AHEAD, MAX_AHEAD_BYTES
from snakepit.errors import CommandTimeout, InternalError, ProtocolError, QueueTimeout, WorkerDied


def names(requests: Any) -> list[str]:
    return [request.command for request in requests]


def fast(size: int = 1, **options: Any) -> Bench:
    """Return a bench whose first worker has claim tokens and has shown to be fast."""
    bench = Bench(size, can_claim=True, **options).up()
    bench.submit("warm-up")
    bench.run()
    return bench


def fed(count: int = 6, size: int = 1, **options: Any) -> tuple[Bench, list[Request]]:
    """Return a bench whose first worker runs ``r0`` and holds what follows in its pipe, unbegun."""
    bench = fast(size, **options)
    for index in range(1, size):
        bench.submit(f"busy{index}", priority=1)
        assert f"busy{index}" in bench.sent(size - index) + bench.sent(0)
    requests = [bench.submit(f"r{number}", chunk="map") for number in range(count)]
    return bench, requests


# The queue ------------------------------------------------------------------------------------------


def test_first_in_first_out() -> None:
    """One worker runs requests in the order of acceptance, one at a time."""
    bench = Bench().up()
    requests = [bench.submit(name) for name in "abc"]

    order = [bench.reply().command for _ in requests]

    assert ["a", "b", "c"] == order
    assert ["ok"] * 3 == [outcome(request) for request in requests]


def test_larger_priority_runs_sooner() -> None:
    """A larger priority overtakes, first in first out within."""
    bench = Bench().up()
    bench.submit("running")
    for name, priority in (("low", -1), ("a", 0), ("high", 5), ("b", 0), ("high2", 5)):
        bench.submit(name, priority=priority)

    order = [bench.reply().command for _ in range(6)]

    assert ["running", "high", "high2", "a", "b", "low"] == order


def test_idle_worker_gets_the_request_at_once() -> None:
    """A request goes to the worker that was idle for the shortest time."""
    bench = Bench(2).up()
    bench.submit("a")
    bench.submit("b")
    bench.reply(0)
    bench.reply(1)

    bench.submit("c")

    assert (["c"], []) == (bench.sent(1), bench.sent(0)) or (["c"], []) == (bench.sent(0), bench.sent(1))
    assert bench.actions(m.Dispatch)[-1].worker is bench.actions(m.Resolve)[-1].request.worker


def test_each_request_resolves_with_its_own_reply() -> None:
    """A failing reply resolves its request too: the error is the reply's."""
    bench = Bench().up()
    request = bench.submit()

    bench.reply(error=ValueError("no"))

    assert isinstance(request.future.end, m.Resolve)


# Time-outs ------------------------------------------------------------------------------------------


def test_queue_timeout() -> None:
    """A request that waits too long fails and never runs; the message has times and the pool's numbers."""
    bench = Bench().up()
    bench.submit("running")
    request = bench.submit("late", queue_timeout_s=0.5)

    bench.advance(0.6)

    assert Outcome.QUEUE_TIMEOUT is outcome(request)
    assert isinstance(request.future.error, QueueTimeout)
    assert "waited 0.500 s in the queue and never ran" in str(request.future.error)
    assert "pool 'pool': size 1, busy 1, idle 0, starting 0, queued 1" in str(request.future.error)
    assert [{"command": "late", "session": None, "pool": "pool"}] == bench.events("pool.queue_timeout")
    bench.run()
    assert ["running"] == names(bench[0].begun)


def test_no_queue_timeout_once_dispatched() -> None:
    """The queue deadline of a dispatched request is gone."""
    bench = Bench().up()
    request = bench.submit("quick", queue_timeout_s=0.5)

    bench.advance(5.0)

    assert outcome(request) is None
    bench.reply()
    assert "ok" == outcome(request)


def test_queue_timeout_includes_start_up() -> None:
    """A request that waits for the first worker to start times out as well."""
    bench = Bench().start()
    request = bench.submit(queue_timeout_s=0.5)

    bench.advance(1.0)

    assert Outcome.QUEUE_TIMEOUT is outcome(request)


def test_queue_timeout_loses_against_cancel() -> None:
    """A request that its caller has cancelled ends without a QueueTimeout."""
    bench = Bench().up()
    bench.submit("running")
    request = bench.submit("late", queue_timeout_s=0.5)
    bench.cancel_future(request)

    bench.advance(1.0)
    bench.hear_cancel(request)

    assert "cancelled" == outcome(request)
    assert [] == bench.actions(m.Fail)


def test_run_timeout_ends_the_worker() -> None:
    """A request that runs too long fails at its deadline and its worker is ended at once."""
    bench = Bench().up()
    request = bench.submit("slow", timeout_s=2.0)
    waiting = bench.submit("next")

    bench.advance(2.0)

    assert isinstance(request.future.error, CommandTimeout)
    assert Outcome.COMMAND_TIMEOUT is outcome(request)
    assert "ran for 2.000 s" in str(request.future.error)
    condemned = bench[0].condemned
    assert condemned is not None
    assert (m.ExitReason.TIMEOUT, False, False) == (condemned.reason, condemned.polite, condemned.kill)
    assert outcome(waiting) is None
    bench.exit_condemned()
    bench.ready_all()
    bench.run()
    assert "ok" == outcome(waiting)


def test_run_time_begins_when_oldest() -> None:
    """The run time of a request sent ahead begins when the one before it is answered."""
    bench, _ = fed(2)
    bench.run()
    first = bench.submit("first")
    bench.reply()
    first = bench.submit("first", chunk="map")
    second = bench.submit("second", chunk="map", timeout_s=1.0)
    assert ["first"] == bench.sent()
    bench.advance(5.0)
    bench.reply()

    bench.advance(0.9)
    assert outcome(second) is None
    bench.advance(0.2)

    assert "ok" == outcome(first)
    assert Outcome.COMMAND_TIMEOUT is outcome(second)
    assert "waited 5.000 s in the queue and ran for 1.000 s" in str(second.future.error)


def test_reply_read_before_the_deadline_wins() -> None:
    """A reply that is in the pipe when the time-out passes is the result."""
    bench = Bench().up()
    request = bench.submit(timeout_s=1.0)
    bench[0].work()

    bench.advance(1.5)

    assert "ok" == outcome(request)
    assert bench[0].condemned is None


def test_first_requests_that_time_out_cost_no_restart_budget() -> None:
    """Workers whose first request times out have not failed to start."""
    bench = Bench(restart_budget=2).up()
    for _ in range(4):
        request = bench.submit(timeout_s=1.0)
        bench.advance(1.0)
        assert Outcome.COMMAND_TIMEOUT is outcome(request)
        bench.exit_condemned()
        bench.ready_all()

    assert m.PoolState.OPEN is bench.scheduler.state
    assert 4 == bench.scheduler.lifecycle.restarts


# Cancellation ---------------------------------------------------------------------------------------


def test_cancelled_request_never_runs() -> None:
    """A queued request that is cancelled leaves the queue."""
    bench = Bench().up()
    bench.submit("running")
    request = bench.submit("gone")
    other = bench.submit("kept")

    assert bench.cancel(request)
    bench.run()

    assert ["running", "kept"] == names(bench[0].begun)
    assert "ok" == outcome(other)
    assert 0 == bench.ends[request]


def test_cancel_wins_against_claim() -> None:
    """A request whose future is cancelled before the news arrives is skipped, and the next one is sent."""
    bench = Bench().up()
    bench.submit("running")
    request = bench.submit("gone")
    bench.submit("kept")

    bench.cancel_future(request)
    bench.reply()
    bench.hear_cancel(request)

    assert ["kept"] == bench.sent()
    assert m.RequestState.DONE is request.state


def test_queue_full_of_cancelled_requests() -> None:
    """Cancelled requests at the head are skipped whatever their number."""
    bench = Bench().up()
    bench.submit("running")
    for request in [bench.submit() for _ in range(200)]:
        bench.cancel(request)
    last = bench.submit("last")

    bench.reply()

    assert ["last"] == bench.sent()
    assert 0 == len(bench.board.queue)
    bench.reply()
    assert "ok" == outcome(last)


def test_cancelled_before_it_was_heard_of() -> None:
    """A cancellation that is handled before its request leaves nothing behind."""
    bench = Bench().up()
    request = bench.accept()
    bench.cancel(request)

    bench.handle(m.Submitted(request))

    assert [] == bench.sent()


def test_cancel_running_ends_the_worker() -> None:
    """cancel(running=True) ends the worker of a running request; a later reply settles nothing."""
    bench = Bench().up()
    request = bench.submit()
    bench[0].begin()

    assert not bench.cancel(request)
    assert bench.cancel(request, running=True)
    bench[0].finish()
    bench.read_all()

    condemned = bench[0].condemned
    assert condemned is not None
    assert m.ExitReason.CANCELLED is condemned.reason
    assert 0 == bench.ends[request]
    bench.exit_condemned()
    assert 1 == bench.scheduler.lifecycle.restarts


def test_cancel_of_what_was_sent_ahead_takes_it_back() -> None:
    """A request in the pipe is taken back; the rest goes on in order and no worker is ended."""
    bench, requests = fed(5)
    bench.reply()
    assert ["r1", "r2", "r3", "r4"] == bench.sent()

    bench.cancel(requests[2], running=True)

    assert ["r1"] == bench.sent()
    bench.run()
    assert ["warm-up", "r0", "r1", "r3", "r4"] == names(bench[0].begun)
    assert bench[0].condemned is None


def test_cancel_of_what_was_begun_ahead_ends_the_worker_at_its_turn() -> None:
    """Begun before it could be taken back, a cancelled request ends its worker once it is the oldest."""
    bench, requests = fed(4)
    bench.reply()
    process = bench[0]
    process.work()
    assert requests[2] is bench.begin(process)

    bench.cancel(requests[2], running=True)
    assert process.condemned is None
    bench.read_all()

    assert "ok" == outcome(requests[1])
    assert process.condemned is not None
    assert m.ExitReason.CANCELLED is process.condemned.reason
    assert outcome(requests[3]) is None


# Sending ahead --------------------------------------------------------------------------------------


def test_ahead_to_a_fast_worker() -> None:
    """A worker that has shown to be fast gets a deep queue's requests ahead of time, at most MAX_AHEAD."""
    bench = fast()
    for number in range(2 * MAX_AHEAD):
        bench.submit(f"r{number}")

    bench.reply()

    assert MAX_AHEAD == len(bench.sent())
    assert MAX_AHEAD - 1 == bench.board.ahead
    bench.run()
    assert [f"r{number}" for number in range(2 * MAX_AHEAD)] == names(bench[0].begun)[1:]


def test_ahead_is_refilled_at_half() -> None:
    """A pipe is filled again once half of it is answered."""
    bench = fast()
    for number in range(3 * MAX_AHEAD):
        bench.submit(f"r{number}")
    bench.reply()

    for _ in range(MAX_AHEAD // 2 - 1):
        bench.reply()
    assert MAX_AHEAD // 2 + 1 == len(bench.sent())
    bench.reply()

    assert MAX_AHEAD == len(bench.sent())


def test_ahead_follows_the_service_time() -> None:
    """No more is sent ahead than a few milliseconds of work; a slow reply counts at once."""
    bench = fast()
    for number in range(20):
        bench.submit(f"r{number}")
    bench.advance(0.001)
    bench.reply()
    assert 5 == len(bench.sent())

    bench.advance(1.0)
    for _ in range(5):
        bench.reply()

    assert 1 == len(bench.sent())


def test_what_is_answered_between_two_looks_is_doubled() -> None:
    """A worker that may have waited for the host gets twice as much ahead, however long the host's turn was."""
    bench = Bench(1, can_claim=True).up()
    for number in range(200):
        bench.submit(f"r{number}")
    sent = []
    for _ in range(9):
        sent.append(len(bench.sent()))
        bench.now += 1.0  # a turn in which the host does not look at the pipe
        for _ in range(sent[-1]):
            bench[0].work()
        bench.read(bench[0], most=sent[-1])
        bench.scheduler.board.looked_at = bench.now

    assert [1, 2, 4, 8, 16, 32, MAX_AHEAD] == sent[:7]


def test_what_was_unanswered_at_a_look_is_not_doubled() -> None:
    """A worker that is known to have worked all the time gets no more than a few milliseconds of it."""
    bench = Bench(1, can_claim=True).up()
    for number in range(20):
        bench.submit(f"r{number}")
    for _ in range(5):
        bench.advance(0.02)
        bench.reply()

        assert 1 == len(bench.sent())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"queue_timeout_s": 60.0}, id="queue time-out"),
        pytest.param({"priority": 1}, id="priority"),
        pytest.param({"size_bytes": MAX_AHEAD_BYTES + 1}, id="size"),
        pytest.param({"session": "s", "affinity": "fail_fast"}, id="fail_fast"),
        pytest.param({"session": "s", "affinity": "hint"}, id="hint"),
        pytest.param({"session": "s", "setup": (("one", None),)}, id="setup"),
    ],
)
def test_never_ahead(options: dict[str, Any]) -> None:
    """What must not wait behind another request, or could not move on in order, is never sent ahead."""
    bench = fast()
    for number in range(8):
        bench.submit(f"r{number}", chunk="map", **options)

    while bench.sent():
        assert 1 == len(bench.sent())
        bench.reply()
    assert 0 == len(bench.board.queue)


@pytest.mark.parametrize("encoded_bytes", [MAX_AHEAD_BYTES + 1, math.inf], ids=["put back", "not encoded"])
def test_never_ahead_whose_bytes_count_no_more(encoded_bytes: float) -> None:
    """What was large the first time is so again, and what is not encoded yet may turn out to be."""
    bench = fast()
    requests = [bench.accept(f"r{number}", chunk="map") for number in range(8)]
    for request in requests:
        request.encoded_bytes = encoded_bytes
    bench.handle(m.Submitted(*requests))

    while bench.sent():
        assert 1 == len(bench.sent())
        bench.reply()
    assert ["ok"] * 8 == [outcome(request) for request in requests]


def test_never_ahead_without_claims() -> None:
    """A worker from which nothing can be taken back gets one request at a time."""
    bench = Bench().up()
    for number in range(10):
        bench.submit(f"r{number}")

    bench.reply()
    bench.reply()

    assert 1 == len(bench.sent())


def test_not_ahead_of_a_short_queue() -> None:
    """A queue that the workers can take at once is not sent ahead, except what belongs together."""
    bench = fast(2)
    bench.submit("a")
    bench.submit("b")
    bench.submit("c")
    bench.submit("d")

    bench.reply(0)

    assert 1 == len(bench.sent(0))


def test_nothing_ahead_in_return_for_the_replies_of_a_closed_worker() -> None:
    """A worker that reads no more gets nothing for what it had answered before."""
    bench = Bench(1, can_claim=True).up()
    for number in range(200):
        bench.submit(f"r{number}")
    bench.reply()
    bench.reply()
    process = bench[0]
    for _ in range(len(process.worker.sent) - 1):
        process.work()
    count = len(bench.actions(m.Dispatch))

    process.closed = True
    bench.handle(m.PipeClosed(process.worker_id))
    while bench.read(process, most=MAX_AHEAD):
        pass

    assert count == len(bench.actions(m.Dispatch))
    assert 1 == len(process.worker.sent)


def test_a_chunk_goes_ahead_together() -> None:
    """Requests of one map go ahead even when the queue is short."""
    bench, _ = fed(3)

    bench.reply()

    assert ["r1", "r2"] == bench.sent()


def test_not_more_ahead_than_the_worker_may_answer() -> None:
    """max_requests_per_worker is exact although requests are sent ahead."""
    bench = fast(max_requests_per_worker=4)
    requests = [bench.submit(f"r{number}") for number in range(9)]
    first = bench[0]

    bench.reply()
    assert 2 == len(bench.sent())
    bench.reply()
    bench.reply()

    assert 4 == len(first.begun)
    assert first.condemned is not None
    assert (m.ExitReason.MAX_REQUESTS, True) == (first.condemned.reason, first.condemned.polite)
    bench.exit_condemned()
    bench.ready_all()
    for _ in range(6):
        bench.run()
        bench.exit_condemned()
        bench.ready_all()
    assert ["ok"] * 9 == [outcome(request) for request in requests]
    assert {4} == {len(p.begun) for p in list(bench.processes.values())[:2]}


def test_ahead_skips_what_was_cancelled() -> None:
    """A cancelled request is not sent ahead, though the news of it comes later."""
    bench = fast()
    requests = [bench.submit(f"r{number}") for number in range(5)]
    bench.cancel_future(requests[2])

    bench.reply()

    assert ["r1", "r3", "r4"] == bench.sent()
    bench.hear_cancel(requests[2])


def test_an_idle_worker_takes_half() -> None:
    """A worker that becomes idle gets half of what was sent ahead to another."""
    bench, requests = fed(7, size=2)
    victim = next(index for index in (0, 1) if bench.sent(index)[0] == "r0")
    thief = 1 - victim
    bench.reply(victim)
    assert 6 == len(bench.sent(victim))

    bench.reply(thief)

    stolen = bench.sent(thief)
    assert ["r1", "r2", "r3"] == bench.sent(victim)
    assert "r4" == stolen[0]
    bench.run()
    assert ["ok"] * 7 == [outcome(request) for request in requests]


def test_nothing_is_sent_while_frames_have_to_be_skipped() -> None:
    """A worker with taken-back frames in its pipe gets no more, and is idle only after the last skip."""
    bench, _ = fed(4, size=2)
    victim = next(index for index in (0, 1) if bench.sent(index)[0] == "r0")
    bench.reply(victim)
    bench.reply(1 - victim)
    process = bench[victim]
    assert 0 < process.worker.skips
    process.work()
    while process.written and process.written[0] != "skipped":
        bench.read(process)
    while len(bench.sent(victim)):
        process.work()
        bench.read(process)
    if process.worker.skips:
        assert m.WorkerState.BUSY is process.worker.state

    process.begin()
    bench.read_all()

    assert 0 == process.worker.skips
    assert m.WorkerState.IDLE is process.worker.state


def test_nothing_left_to_take_back() -> None:
    """A worker that has begun all it was sent is not asked again before its next reply."""
    bench, requests = fed(2, size=2)
    victim = next(index for index in (0, 1) if bench.sent(index)[0] == "r0")
    more = bench.submit("r2", chunk="map")
    bench.reply(victim)
    process = bench[victim]
    assert ["r1", "r2"] == bench.sent(victim)
    process.work()
    bench.begin(process)
    before = len(bench.actions(m.TakeBack))

    bench.reply(1 - victim)
    bench.submit("other")
    bench.reply(1 - victim)

    assert before + 1 == len(bench.actions(m.TakeBack))
    process.finish()
    bench.read_all()
    assert ["ok"] * 3 == [outcome(request) for request in [*requests, more]]


def test_bound_requests_are_not_stolen() -> None:
    """What only its worker may run stays in its pipe."""
    bench = fast(2)
    for number in range(6):
        bench.submit(f"s{number}", session="s")
    home = next(index for index in (0, 1) if bench.sent(index))
    bench.reply(home)
    bench.reply(home)

    bench.submit("free")
    bench.reply(1 - home)

    assert [] == bench.sent(1 - home)
    assert ["s2", "s3", "s4", "s5"] == bench.sent(home)
    assert [] == bench.actions(m.TakeBack)


# Exits with several in the pipe ---------------------------------------------------------------------


def test_only_the_oldest_fails() -> None:
    """When a worker dies only the oldest request fails; the others go back in order, with their place."""
    bench, requests = fed(5)
    bench.reply()
    late = bench.submit("late")
    process = bench[0]
    bench.begin(process)

    bench.exit(process, signal=11, tail="boom")

    died = requests[1].future.error
    assert isinstance(died, WorkerDied)
    assert Outcome.DIED is outcome(requests[1])
    assert (11, None, "boom", process.worker.pid) == (died.signal, died.exit_code, died.stderr_tail, died.pid)
    assert "signal 11 (SIGSEGV)" in str(died)
    assert "'r1'" in str(died)
    bench.ready_all()
    bench.run()
    assert ["r2", "r3", "r4", "late"] == names(bench[0].begun)
    assert "ok" == outcome(late)


def test_reply_in_the_pipe_wins_against_the_exit() -> None:
    """A worker that answers and exits has answered; the next request is not given to it."""
    bench = Bench().up()
    request = bench.submit("answered")
    waiting = bench.submit("waiting")
    process = bench[0]
    process.work()

    bench.exit(process, code=0)

    assert "ok" == outcome(request)
    assert outcome(waiting) is None
    bench.ready_all()
    bench.run()
    assert "ok" == outcome(waiting)


def test_what_was_begun_is_not_put_back() -> None:
    """A request that an ended worker had begun ahead of its reply fails with it and runs nowhere else."""
    bench, requests = fed(4)
    bench.reply()
    process = bench[0]
    process.work()
    assert requests[2] is bench.begin(process)

    bench.handle(m.Misbehaved(process.worker_id, ProtocolError("garbage")))

    assert isinstance(requests[1].future.error, ProtocolError)
    assert ["r2"] == bench.sent()
    bench.exit(process, signal=15)
    assert Outcome.DIED is outcome(requests[2])
    bench.ready_all()
    bench.run()
    assert ["r3"] == names(bench[0].begun)


def test_what_was_begun_keeps_its_time_out() -> None:
    """A request begun on a worker that is being ended still times out."""
    bench, requests = fed(1)
    late = bench.submit("late", chunk="map", timeout_s=1.0)
    bench.submit("last", chunk="map")
    bench.reply()
    bench.submit("more", chunk="map")
    bench.run()
    process = bench[0]
    first = bench.submit("first", chunk="map", timeout_s=1.0)
    second = bench.submit("second", chunk="map", timeout_s=3.0)
    third = bench.submit("third", chunk="map")
    assert "ok" == outcome(late)
    assert ["first"] == bench.sent()
    bench.reply()
    assert ["second", "third"] == bench.sent()
    process.work()
    bench.begin(process)

    bench.handle(m.Misbehaved(process.worker_id, ProtocolError("garbage")))
    bench.advance(10.0)

    assert "ok" == outcome(first)
    assert Outcome.ERROR is outcome(second)
    assert outcome(third) is None
    process.closed = True
    bench.exit(process, signal=9)
    assert Outcome.DIED is outcome(third)
    assert requests


def test_a_begun_request_times_out_on_a_condemned_worker() -> None:
    """The run time of what a condemned worker had begun is limited as ever."""
    bench, _ = fed(1)
    bench.run()
    process = bench[0]
    bench.submit("first", chunk="map")
    slow = bench.submit("second", chunk="map", timeout_s=1.0)
    bench.submit("third", chunk="map", timeout_s=1.0)
    bench.reply()
    second = bench.submit("fourth", chunk="map")
    process.work()
    begun = bench.begin(process)
    assert begun is not None
    bench.handle(m.Misbehaved(process.worker_id, ProtocolError("garbage")))

    bench.advance(1.0)

    assert Outcome.ERROR is outcome(slow)
    assert Outcome.COMMAND_TIMEOUT is outcome(begun)
    bench.exit_condemned()
    bench.ready_all()
    bench.run()
    assert "ok" == outcome(second)


# Bugs of the caller ---------------------------------------------------------------------------------


def test_impossible_reports_are_internal_errors() -> None:
    """Reports that cannot be true are bugs and say so."""
    bench = Bench().up()
    worker_id = bench[0].worker_id

    with pytest.raises(InternalError, match="nobody took back"):
        bench.scheduler.handle(m.Skipped(worker_id), bench.now)
    with pytest.raises(InternalError, match="1 requests taken back of 0"):
        bench.scheduler.handle(m.TakenBack(worker_id, 1), bench.now)
    with pytest.raises(InternalError, match="cannot become"):
        bench.board.workers.move(bench[0].worker, m.WorkerState.STARTING)
    with pytest.raises(InternalError, match="already has"):
        bench.board.workers.make(bench.board.workers.slots[0], bench.now)
    with pytest.raises(InternalError, match="without being the oldest"):
        bench.scheduler.lifecycle.run_timed_out(bench.accept())


def test_reports_about_workers_that_are_gone_are_ignored() -> None:
    """An event of a worker that is gone changes nothing."""
    bench = Bench().up()
    gone = "pool-0-99"

    for event in (
        m.Started(gone, 1),
        m.Ready(gone),
        m.StartFailed(gone, ValueError()),
        m.SpawnRefused(gone, ValueError()),
        m.Replied(gone),
        m.Skipped(gone),
        m.TakenBack(gone, 0),
        m.Misbehaved(gone, ValueError()),
        m.PipeClosed(gone),
        m.Exited(gone),
        m.RssMeasured(gone, 1),
        m.RestartRequested(gone),
        m.Replied(bench[0].worker_id),
        m.SessionEnded("unknown"),
    ):
        assert [] == bench.handle(event)


def test_names_in_messages() -> None:
    """Requests and workers name themselves without their arguments."""
    bench = Bench().up()
    request = bench.submit("render")

    assert "<Request 1 render sent>" == repr(request)
    assert "<Worker pool-0-1 busy>" == repr(bench[0].worker)
    assert m.Request(None, "own").claim()


# Calls on their callers' own threads ------------------------------------------------------------------


def adopted(bench: Bench, command: str = "direct", index: int = 0, **options: Any) -> Request:
    """Let a caller send a request to the idle worker of a slot, and the scheduler hear of it half a second later."""
    request = bench.send_direct(bench[index], command, **options)
    bench.advance(0.5)
    bench.adopt(bench[index], request)
    return request


def test_an_adopted_request_is_the_workers() -> None:
    """It runs since it was sent, nothing follows it before its answer, and then the worker goes on as ever."""
    bench = fast()
    before = bench.now
    request = adopted(bench)
    others = [bench.submit(f"r{number}", chunk="map") for number in range(10)]

    assert (before, m.RequestState.SENT) == (request.started_at, request.state)
    assert ["busy"] == bench.states()
    assert ["direct"] == bench.sent()
    bench.reply()

    assert "ok" == outcome(request)
    assert "r0" == bench.sent()[0]
    bench.run()
    assert ["ok"] * 10 == [outcome(other) for other in others]


def test_an_adopted_request_times_out_since_it_was_sent() -> None:
    """The time before the scheduler has heard of it counts."""
    bench = Bench().up()
    bench.advance(1.0)
    request = adopted(bench, timeout_s=1.0)

    bench.advance(0.4)
    assert outcome(request) is None
    bench.advance(0.2)

    assert Outcome.COMMAND_TIMEOUT is outcome(request)
    assert "ran for 1.000 s" in str(request.future.error)
    assert ["condemned"] == bench.states()


def test_cancel_of_an_adopted_request_ends_its_worker() -> None:
    """As of any other that runs."""
    bench = Bench().up()
    request = adopted(bench)
    assert bench.cancel(request, running=True)
    assert ["condemned"] == bench.states()
    bench.exit_condemned()
    bench.ready_all()
    assert ["idle"] == bench.states()


def test_the_worker_of_an_adopted_request_dies() -> None:
    """The request fails, is not run again, and costs no restart budget."""
    bench = Bench(restart_budget=1).up()
    request = adopted(bench)
    bench.exit(bench[0], signal=9)

    assert isinstance(request.future.error, WorkerDied)
    bench.ready_all()
    assert ["idle"] == bench.states()


def test_nothing_is_taken_back_from_a_worker_whose_caller_reads() -> None:
    """An idle worker takes nothing from it, and its replacement waits for the answer."""
    bench = Bench(2, can_claim=True).up()
    request = adopted(bench, index=0)
    bench.handle(m.RestartRequested(bench[0].worker_id))

    assert [] == bench.actions(m.TakeBack)
    assert "busy" == bench.states()[0]
    bench.reply(0)
    assert "ok" == outcome(request)
    assert "condemned" in bench.states()


def test_what_was_served_without_the_scheduler_counts() -> None:
    """A worker that answered its callers has proven itself, was used, and has idled since then only."""
    bench = Bench(2, 1, worker_idle_timeout_s=2.0, restart_budget=2).up()
    bench.handle(m.WorkersWanted(2, "waiter"))
    bench.ready_all()
    bench.advance(1.5)
    bench.serve_direct(bench[1])
    bench.serve_direct(bench[1])
    bench.serve(bench[1])
    worker = bench[1].worker

    assert (2, True, True) == (worker.requests, worker.used, worker.proven)
    bench.advance(1.0)
    assert ["condemned", "idle"] == bench.states()


@pytest.mark.parametrize("reason", ["queue", "busy", "retiring", "draining", "most", "broken pipe"])
def test_who_may_not_be_lent(reason: str) -> None:
    """Only an idle worker in service, of an open pool in which nobody waits."""
    bench = Bench(max_requests_per_worker=5 if reason == "most" else None).up()
    worker = bench[0].worker
    lifecycle = bench.scheduler.lifecycle
    assert lifecycle.may_lend(worker) == (reason != "most")
    if reason in ("queue", "busy"):
        bench.submit()
        if reason == "queue":
            bench.submit()
    elif reason == "retiring":
        bench.submit(session="s")
        bench.run()
        assert lifecycle.may_lend(worker)
        bench.handle(m.RestartRequested(worker.worker_id))
    elif reason == "draining":
        bench.submit()
        bench.handle(m.ShutdownRequested())
    elif reason == "broken pipe":
        bench.handle(m.PipeClosed(worker.worker_id))

    assert not lifecycle.may_lend(worker)


def test_late_reports_of_direct_calls_are_ignored() -> None:
    """A worker that is gone has neither served nor been sent anything."""
    bench = Bench().up()
    process = bench[0]
    bench.exit(process, code=0)
    bench.ready_all()
    assert [] == bench.handle(m.Served(process.worker_id, 3))
