"""Compares what callers saw with what workers wrote down and what the pool counted.

Pure: takes one pool's book, run log and counters, and returns the discrepancies.  A kind of discrepancy
that must not occur is a row of ``ROWS``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from .watch import Book, Record

__all__ = ("ROWS", "Call", "Run", "SessionBook", "check_book", "check_counters", "check_sessions", "read_log")

ROWS = {
    "lost": "futures lost",
    "twice": "futures settled twice",
    "ghost": "ran although cancelled, timed out in the queue or refused",
    "ran_twice": "ran twice",
    "wrong_answer": "result of another request, of no run, or of another process",
    "wrong_session": "strict session on a wrong incarnation, or its state wrong",
    "wrong_order": "requests of a session out of order",
    "counters": "counters unlike the callers' own",
    "wrong_error": "an error where another one, or none, was due",
    "oversize": "more processes than the pool's size",
    "not_full": "pool did not come back to full size",
    "hung": "did not end in time",
    "internal": "internal errors and failures in the log",
    "children": "children left",
    "fds": "extra file descriptors",
    "threads": "extra threads",
}

NEVER_RAN = frozenset(
    ("QueueTimeout", "SessionLost", "SessionBusy", "SessionQuotaExceeded", "EncodeError", "InvalidArguments")
)
"""Ends of a request whose handler must not have begun."""
RAN_ONCE = frozenset(("completed", "CommandError", "ResultError"))
"""Ends of a request whose handler must have run exactly once."""

CUT_SHORT = frozenset(("CommandTimeout", "cancelled", "ProtocolError"))
"""Ends that are told before the process has ended, which may even begin the request in its last moment: its
session's next one, elsewhere, waits for the end of the future and not for that."""

Finding = tuple[str, str]
"""(a key of ROWS, what was seen)."""


@attrs.frozen
class Run:
    """One line of a run log."""

    rid: str
    pid: int
    nonce: str | None = None
    n: int | None = None


def read_log(lines: Iterable[str]) -> list[Run]:
    """Return the runs in the order in which they began."""
    runs = []
    for line in lines:
        _, rid, pid, *rest = line.split()
        runs.append(Run(rid, int(pid), rest[0], int(rest[1])) if rest else Run(rid, int(pid)))
    return runs


def check_book(book: Book, runs: list[Run]) -> list[Finding]:
    """Return what does not fit between the callers' account and the workers'."""
    found: list[Finding] = []
    by_rid: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_rid[run.rid].append(run)
    known = set(book.refused)
    for record in book.records:
        known.update(record.rids)
        if not record.ends:
            found.append(("lost", repr(record)))
            continue
        if len(record.ends) > 1 or record.refused:
            found.append(("twice", repr(record)))
        never = record.end in NEVER_RAN or (record.end == "cancelled" and record.by != "caller, running")
        for rid in record.rids:
            times = len(by_rid[rid])
            if times > 1:
                found.append(("ran_twice", f"{record!r} ran as {by_rid[rid]}"))
            if never and times:
                found.append(("ghost", f"{record!r} ran as {by_rid[rid]}"))
        found += _check_answer(record, by_rid)
    found += [("ghost", f"refused, but ran as {by_rid[rid]}") for rid in book.refused if by_rid[rid]]
    unknown = sorted({run.rid for run in runs} - known)
    found += [("ghost", f"nobody's request ran: {by_rid[rid]}") for rid in unknown]
    return found


def _check_answer(record: Record, by_rid: Mapping[str, list[Run]]) -> list[Finding]:
    found: list[Finding] = []
    if record.end in RAN_ONCE and any(not by_rid[rid] for rid in record.rids):
        found.append(("wrong_answer", f"{record!r}: no run of it is known"))
    if record.end == "completed" and not found:
        answers = record.value if len(record.rids) > 1 or _is_chunk(record.value) else [record.value]
        if [answer[0] for answer in answers] != list(record.rids):
            found.append(("wrong_answer", repr(record)))
        elif any(by_rid[answer[0]][0].pid != answer[1] or answer[1] != record.pid for answer in answers):
            found.append(("wrong_answer", f"{record!r}: ran as {[by_rid[rid] for rid in record.rids]}"))
    return found


def _is_chunk(value: Any) -> bool:
    return bool(value) and isinstance(value[0], list)


def check_counters(book: Book, stats: Any) -> list[Finding]:
    """Return the counters of a pool that has ended which are not the callers' own count."""
    expected = book.counts()
    wrong = {name: (getattr(stats, name), value) for name, value in expected.items() if getattr(stats, name) != value}
    return [("counters", f"{name}: the pool says {says}, callers saw {saw}") for name, (says, saw) in wrong.items()]


# Sessions -------------------------------------------------------------------------------------------


@attrs.frozen
class Call:
    """One accepted request of a session, in the order of acceptance.

    Attributes:
        epoch: How often the session had been ended before.
        record: What became of it.
    """

    epoch: int
    record: Record


@attrs.define
class SessionBook:
    """The calls of one session of one pool.

    Attributes:
        steps: Set-up commands it has; with some, a lost worker is no loss.
        expires: Its binding may end by itself between two calls.
    """

    session_id: str
    mode: str
    steps: int = 0
    expires: bool = False
    calls: list[Call] = attrs.Factory(list)


def check_sessions(sessions: Iterable[SessionBook], runs: list[Run]) -> list[Finding]:
    """Return what contradicts the promises of strict and fail_fast sessions.

    Between two incarnations of a session's state stands a ``SessionLost`` in the order of acceptance, or the end of
    the session, unless it has a set-up; each incarnation begins empty and counts every request that ran there.
    """
    found: list[Finding] = []
    place = {run.rid: number for number, run in enumerate(runs)}
    run_of = {run.rid: run for run in runs}
    for session in sessions:
        if session.mode == "hint":
            continue
        found += _check_incarnations(session, run_of)
        last: Record | None = None
        for call in session.calls:
            rid = call.record.rids[0]
            if rid not in place or call.record.end in CUT_SHORT:
                continue
            if last is not None and place[rid] < place[last.rids[0]]:
                what = f"{session.session_id} ({session.mode}, {session.steps} set-up steps)"
                found.append(("wrong_order", f"{what}: {call.record!r} ran before {last!r}"))
            last = call.record
    return found


def _check_incarnations(session: SessionBook, run_of: Mapping[str, Run]) -> list[Finding]:
    found: list[Finding] = []
    seen: set[str] = set()
    nonce: str | None = None
    count = 0
    epoch = 0
    told = True
    for place, call in enumerate(session.calls):
        record = call.record
        what = f"{session.session_id} ({session.mode}, {session.steps} set-up steps), {record!r}"
        if call.epoch != epoch:
            epoch, told, nonce = call.epoch, True, None
        if record.end == "SessionLost":
            told, nonce = True, None
            if session.steps:
                found.append(("wrong_session", f"{what}: lost in spite of its set-up"))
        run = run_of.get(record.rids[0])
        if run is None:
            continue
        if run.nonce != nonce:
            if run.nonce in seen:
                found.append(("wrong_session", f"{what}: an earlier incarnation came back in {run}"))
            elif not (told or session.steps or session.expires):
                before = [
                    f"{run_of.get(c.record.rids[0])} {c.record!r}" for c in session.calls[max(0, place - 5) : place]
                ]
                found.append(("wrong_session", f"{what}: nobody was told of a loss before {run}; before it: {before}"))
            nonce, count, told = run.nonce, 0, False
            seen.add(str(run.nonce))
        if run.n != count + 1:
            found.append(("wrong_session", f"{what}: {run} after {count} runs"))
        count = run.n or 0
        if record.end == "completed" and list(record.value[2:]) != [run.nonce, run.n, session.steps]:
            found.append(("wrong_session", f"{what}: its run was {run}"))
    return found
