"""Each discrepancy that a chaos run looks for is found when it is there."""

from __future__ import annotations

import attrs
import pytest
from chaos.verdict import Call, Run, SessionBook, check_book, check_counters, check_sessions, read_log
from chaos.watch import Book, Record, WatchedFuture, new_rid, watched_futures
from integration.workers.pools import LIMIT_S, handler_pool

from snakepit import PoolStats

from gates import Gate


def record(rid: str = "rid-1", end: str | None = "completed", by: str | None = None, pid: int = 7) -> Record:
    """Return the record of a request that ended as said; completed ones have the answer of that process."""
    made = Record()
    made.rids, made.by, made.pid = (rid,), by, pid
    made.ends = [] if end is None else [end]
    made.value = [rid, pid, None] if end == "completed" else "why"
    return made


def found(*records: Record, runs: list[Run]) -> set[str]:
    """Return the kinds of discrepancy between these records and runs."""
    book = Book()
    book.records += records
    return {row for row, _ in check_book(book, runs)}


def test_an_account_without_discrepancy() -> None:
    """What ran once and was answered, and what was cancelled and never ran, is as it has to be."""
    ended = [record("rid-1"), record("rid-2", "cancelled", "caller"), record("rid-3", "WorkerDied")]

    assert set() == found(*ended, runs=[Run("rid-1", 7), Run("rid-3", 8)])


def test_a_future_that_never_ends_is_lost() -> None:
    """A request without an end is lost."""
    assert {"lost"} == found(record(end=None), runs=[Run("rid-1", 7)])


def test_a_future_settled_twice() -> None:
    """Two settlements, and one that was refused because it came too late, are found."""
    twice, late = record("rid-1"), record("rid-2")
    twice.ends.append("WorkerDied")
    late.refused.append("completed")

    runs = [Run("rid-1", 7), Run("rid-2", 7)]

    assert {"twice"} == found(twice, runs=runs[:1])
    assert {"twice"} == found(late, runs=runs[1:])


@pytest.mark.parametrize(
    ("end", "by"),
    [
        ("cancelled", "caller"),
        ("cancelled", "pool"),
        ("QueueTimeout", None),
        ("SessionLost", None),
        ("SessionBusy", None),
    ],
)
def test_a_ghost(end: str, by: str | None) -> None:
    """What ended before its turn must not have run."""
    assert {"ghost"} == found(record(end=end, by=by), runs=[Run("rid-1", 7)])


def test_a_running_request_may_be_cancelled() -> None:
    """What its caller ended while it ran has run."""
    assert set() == found(record(end="cancelled", by="caller, running"), runs=[Run("rid-1", 7)])


def test_a_run_for_nobody() -> None:
    """A run that belongs to no accepted request, or to a refused one, is a ghost."""
    book = Book()
    book.refused.append("rid-2")

    assert {"ghost"} == found(runs=[Run("rid-1", 7)])
    assert {"ghost"} == {row for row, _ in check_book(book, [Run("rid-2", 7)])}


def test_a_second_run() -> None:
    """A request that ran twice is found, whatever its end."""
    assert {"ran_twice"} == found(record(end="WorkerDied"), runs=[Run("rid-1", 7), Run("rid-1", 8)])


def test_wrong_answers() -> None:
    """A result without a run, of another process, or of another request is found."""
    swapped = record()
    swapped.value = ["rid-9", 7, None]

    assert {"wrong_answer"} == found(record(), runs=[])
    assert {"wrong_answer"} == found(record(), runs=[Run("rid-1", 8)])
    assert {"wrong_answer"} == found(swapped, runs=[Run("rid-1", 7)])


def test_counters_that_differ() -> None:
    """Every counter that is not the callers' own is named."""
    book = Book()
    book.records += [record("rid-1"), record("rid-2", "CommandTimeout"), record("rid-3", "SessionLost")]
    right = PoolStats(requests=3, completed=1, command_timeouts=1, errors=1)

    assert [] == check_counters(book, right)
    names = ["requests", "completed", "errors", "cancelled", "queue_timeouts", "command_timeouts"]
    for name in [*names, "pool_saturated", "queued", "running"]:
        (row, text) = check_counters(book, attrs.evolve(right, **{name: getattr(right, name) + 1}))[0]
        assert ("counters", name) == (row, text.split(":")[0])


# Sessions -------------------------------------------------------------------------------------------


def visits(*ends: str, steps: int = 0, epochs: tuple[int, ...] = ()) -> set[str]:
    """Return what is found for a session's calls, each ``nonce n``, or how it ended without a run."""
    session = SessionBook("s", "strict", steps)
    runs = []
    for number, end in enumerate(ends):
        made = record(f"rid-{number}", "completed" if " " in end else end)
        if " " in end:
            nonce, count = end.split()
            runs.append(Run(made.rids[0], 7, nonce, int(count)))
            made.value = [made.rids[0], 7, nonce, int(count), steps]
        session.calls.append(Call(epochs[number] if epochs else 0, made))
    return {row for row, _ in check_sessions([session], runs)}


def test_sessions_as_they_have_to_be() -> None:
    """One incarnation after another, each told of or with a set-up or after the session's end."""
    assert set() == visits("a 1", "a 2", "cancelled", "a 3")
    assert set() == visits("a 1", "WorkerDied", "SessionLost", "b 1", "b 2")
    assert set() == visits("a 1", "WorkerDied", "b 1", steps=2)
    assert set() == visits("a 1", "b 1", epochs=(0, 1))


@pytest.mark.parametrize(
    "ends",
    [
        ("a 1", "b 1"),
        ("a 1", "WorkerDied", "cancelled", "b 1"),
        ("a 1", "SessionLost", "a 2"),
        ("a 1", "SessionLost", "b 1", "SessionLost", "a 1"),
        ("a 1", "a 3"),
        ("a 2",),
    ],
)
def test_a_session_on_a_wrong_incarnation(ends: tuple[str, ...]) -> None:
    """Another state without a word, an old one, one that was not empty, and one that was left out are found."""
    assert "wrong_session" in visits(*ends)


def test_a_loss_in_spite_of_a_setup() -> None:
    """A session that can be set up again is never lost."""
    assert {"wrong_session"} == visits("a 1", "SessionLost", steps=1)


def test_a_session_out_of_order() -> None:
    """Requests of a session that ran in another order than they were accepted are found."""
    session = SessionBook("s", "strict")
    session.calls += [Call(0, record("rid-1", "WorkerDied")), Call(0, record("rid-2", "WorkerDied"))]

    rows = {row for row, _ in check_sessions([session], [Run("rid-2", 7, "a", 1), Run("rid-1", 7, "a", 2)])}

    assert "wrong_order" in rows


def test_the_run_log_is_read() -> None:
    """Lines of both shapes become runs, in order."""
    assert [Run("rid-1", 7), Run("rid-2", 8, "a", 3)] == read_log(["S rid-1 7", "S rid-2 8 a 3"])


# The seam -------------------------------------------------------------------------------------------


def test_the_account_of_a_pool(gate: Gate) -> None:
    """The book of a real pool has each request with its end, and who cancelled it."""
    with watched_futures(), handler_pool(1) as ex:
        book = Book()
        book.follow(ex._ledger)
        held = ex.submit("hold", {"gate": gate.path, "value": new_rid()})
        gate.wait_started()
        queued = [ex.submit("run", {"value": new_rid()}) for _ in range(2)]
        queued[0].cancel()
        gate.open()
        held.result(LIMIT_S)
        queued[1].result(LIMIT_S)

    assert ["completed", "cancelled", "completed"] == [record.end for record in book.records]
    assert [None, "caller", None] == [record.by for record in book.records]
    assert all(len(record.rids) == 1 for record in book.records)
    assert [] == check_counters(book, ex.stats())


def test_a_late_settlement_is_noted() -> None:
    """A result that comes after the end is noted, although the future refuses it."""
    with handler_pool(1) as ex:
        future = WatchedFuture(ex._ledger)
        future.set_result([1])

        for settle in (lambda: future.set_result(2), lambda: future.set_exception(ValueError())):
            with pytest.raises(Exception, match="FINISHED"):
                settle()
        future.cancel_for_pool()

    assert ["completed", "ValueError", "cancelled"] == future.record.refused
    assert ["completed", "cancelled"] == future.record.ends
